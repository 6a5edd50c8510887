"""Runs the jobs convert, encode, train, evaluate and report of a run one after the other."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from msrec.data.io.atomic_files import write_json
from msrec.launch.cluster.job_specs import (
    JobSpec,
    encode_spec,
    evaluate_spec,
    train_spec,
)
from msrec.launch.cluster.profiles import Target
from msrec.launch.cluster.submit import submit, torchx_app
from msrec.launch.config.run_config import RunConfig
from msrec.launch.reporting.report import write_report

STAGES_FILE = "pipeline.json"
REPORT_FILE = "report.html"
REPORT = "report"
"""The last stage. It is no job of a scheduler."""


def run_pipeline(
    config: RunConfig,
    target: Target,
    console: Console,
    conversion: JobSpec | None = None,
    *,
    dry_run: bool = False,
) -> int:
    """Runs the stages that are not finished and stops at the first one that fails.

    `pipeline.json` in the run's folder keeps the config and the seconds of each finished stage.
    With another config all stages run again. Encoding and training always continue where they were
    stopped.

    Args:
        config: config of the run; encoding is a stage if `llm.store` is given.
        target: profile, nodes and ranks of every job.
        console: console for messages.
        conversion: makes the dataset of the config as the first stage; it exists if None.
        dry_run: print what each stage would submit and stop.

    Returns:
        The exit status of the stage that failed, or 0.

    Raises:
        ValueError: as `submit`.
    """
    record, report = config.run_dir / STAGES_FILE, config.run_dir / REPORT_FILE
    resolved: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if conversion is not None:
        resolved["convert"] = list(conversion.args)
    seconds = _finished_stages(record, resolved)
    stages = _stages(config, conversion)
    for spec in stages.values():  # refuses a profile that a later stage cannot use
        if spec is not None:
            torchx_app(spec, target)
    for number, (stage, spec) in enumerate(stages.items(), 1):
        title = f"stage {number} of {len(stages)}, {stage}"
        if stage in seconds:
            console.print(f"{title}: done before, in {seconds[stage]:.0f} s", highlight=False)
            continue
        console.print(title, highlight=False)
        started = time.monotonic()
        if spec is not None:
            status = submit(spec, target, console, dry_run=dry_run, wait=True)
            if status != 0:
                message = f"{stage} failed; the same command continues from here"
                console.print(message, highlight=False)
                return status
        elif dry_run:
            console.print(f"would write {report}", highlight=False)
        else:
            write_report(report, {config.run_id: config.run_dir})
        if not dry_run:
            seconds[stage] = time.monotonic() - started
            config.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(record, resolved | {"seconds": seconds})
    if not dry_run:
        console.print(f"the report is {report}", highlight=False, soft_wrap=True)
    return 0


def _stages(config: RunConfig, conversion: JobSpec | None) -> dict[str, JobSpec | None]:
    specs = [] if conversion is None else [conversion]
    specs += [encode_spec(config)] if config.llm.store is not None else []
    specs += [train_spec(config), evaluate_spec(config.run_dir, [], is_trained=False)]
    return {spec.job: spec for spec in specs} | {REPORT: None}


def _finished_stages(record: Path, resolved: dict[str, Any]) -> dict[str, float]:
    """Returns the seconds of each stage that was finished with this config."""
    if not record.is_file():
        return {}
    try:
        saved = json.loads(record.read_text())
        seconds = {str(stage): float(value) for stage, value in saved.pop("seconds").items()}
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"{record} must be what `msrec launch pipeline` writes; it is not."
        ) from None
    return seconds if saved == resolved else {}
