"""What each command does on every rank: read the config, join the group, run, report."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from msrec.launch.build import write_json
from msrec.launch.config import load_config, save_config
from msrec.launch.evaluate import evaluate
from msrec.launch.process import process_group
from msrec.launch.results import results_table
from msrec.launch.trainer import Trainer
from msrec.launch.versions import installed_versions

console = Console()


def train_job(config_file: Path, overrides: Sequence[str]) -> None:
    """Train or resume a run."""
    config = load_config(config_file, overrides)
    with process_group() as process:
        _log_to_terminal(process.is_main)
        trainer = Trainer(config, process)
        if process.is_main:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            save_config(config, config.run_dir / "config.yaml")
            write_json(config.run_dir / "versions.json", installed_versions())
        result = trainer.fit()
        if process.is_main:
            progress = result.progress
            speed = f" at {result.rows_per_s:,.0f} rows/s" if result.losses else ""
            console.print(
                f"{config.run_dir}: best validation AUC {progress.best_auc:.4f} at step "
                f"{progress.best_step} of {progress.step}{speed}"
            )


def evaluate_job(run_dir: Path, overrides: Sequence[str], split: str) -> None:
    """Evaluate a run and print its table."""
    options = {"split": split, "checkpoint": None} | _options(overrides, {"split", "checkpoint"})
    if options["split"] not in ("train", "valid", "test"):
        raise ValueError(f"split must be train, valid or test; got {options['split']!r}.")
    checkpoint = Path(options["checkpoint"]) if options["checkpoint"] else None
    with process_group() as process:
        _log_to_terminal(process.is_main)
        results = evaluate(run_dir, process, options["split"], checkpoint)  # type: ignore[arg-type]
        if results is not None:
            console.print(results_table(results))


def report_job(out: Path, runs: Sequence[str]) -> None:
    """Write the HTML page of evaluated runs."""
    from msrec.launch.report import write_report

    named = {}
    for run in runs:
        name, equals, folder = run.partition("=")
        named[name if equals else Path(run).name] = Path(folder if equals else run)
    write_report(out, named)
    console.print(f"wrote {out}")


def _options(given: Sequence[str], known: set[str]) -> dict[str, str]:
    options = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{item!r} is not known here; known are {', '.join(sorted(known))}=...")
        options[key] = value
    return options


def _log_to_terminal(is_main: bool) -> None:
    level = logging.INFO if is_main else logging.ERROR
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("msrec").setLevel(level)
