"""Encode, train, evaluate, report: one job after the other, files between them."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from msrec.data.io.atomic_files import write_json
from msrec.launch.cluster.job_specs import JobSpec, encode_spec, planned_evaluate_spec, train_spec
from msrec.launch.cluster.profiles import Profile
from msrec.launch.cluster.submit import launch
from msrec.launch.config import RunConfig
from msrec.launch.reporting.report import write_report

STAGES_FILE = "pipeline.json"
REPORT_FILE = "report.html"


def run_pipeline(
    config: RunConfig,
    profile: tuple[str, Profile],
    j: str,
    console: Console,
    *,
    dry_run: bool = False,
) -> int:
    """Run the stages that are not done; stops at the first one that fails.

    `pipeline.json` in the run's folder keeps the seconds of each stage that is done, and the config
    it was done with: with another config everything is done anew. Encoding and training go on where
    they were stopped, whatever that file says.

    Args:
        config: of the run; encodes where `llm.store` is given.
        profile: name and values.
        j: nodes x ranks per node, of every job.
        console: where to print.
        dry_run: print what each stage would submit, and stop.

    Returns:
        The exit status of the stage that failed, or 0.

    Raises:
        ValueError: as `launch`.
    """
    record = config.run_dir / STAGES_FILE
    asked = {"config": config.model_dump(mode="json")}
    seconds = _done(record, asked)

    def submit(work: JobSpec) -> int:
        return launch(work, profile, j, console, dry_run=dry_run, wait=True)

    stages = list(_stages(config, submit))
    for number, (name, stage) in enumerate(stages, 1):
        head = f"stage {number} of {len(stages)}, {name}"
        if name in seconds:
            console.print(f"{head}: done before, in {seconds[name]:.0f} s", highlight=False)
            continue
        console.print(head, highlight=False)
        if dry_run and name == "report":
            console.print(f"would write {config.run_dir / REPORT_FILE}", highlight=False)
            continue
        begin = time.monotonic()
        if status := stage():
            console.print(f"{name} failed; the same command goes on from here", highlight=False)
            return status
        if not dry_run:
            seconds[name] = time.monotonic() - begin
            write_json(record, asked | {"seconds": seconds})
    if not dry_run:
        console.print(f"wrote {config.run_dir / REPORT_FILE}", highlight=False, soft_wrap=True)
    return 0


def _stages(
    config: RunConfig, submit: Callable[[JobSpec], int]
) -> Iterator[tuple[str, Callable[[], int]]]:
    if config.llm.store is not None:
        yield "encode", lambda: submit(encode_spec(config))
    yield "train", lambda: submit(train_spec(config))
    evaluate = planned_evaluate_spec(config.run_dir, [])
    yield "evaluate", lambda: submit(evaluate)
    yield "report", lambda: _report(config)


def _report(config: RunConfig) -> int:
    write_report(config.run_dir / REPORT_FILE, {config.run_id: config.run_dir})
    return 0


def _done(record: Path, asked: dict[str, Any]) -> dict[str, float]:
    """Seconds of the stages that are done with this config."""
    if not record.is_file():
        return {}
    try:
        kept = json.loads(record.read_text())
        seconds = {str(name): float(value) for name, value in kept.pop("seconds").items()}
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"{record} must be what `msrec launch pipeline` writes; it is not."
        ) from None
    return seconds if kept == asked else {}
