"""What each command does on every rank: read the config, join the group, run, report."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msrec.data.llm.templates import load_template
from msrec.launch.build import write_json
from msrec.launch.config import load_config, save_config
from msrec.launch.encode import PROMPTS, encode
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


def encode_job(config_file: Path, overrides: Sequence[str], show: str | None) -> None:
    """Encode both levels into `llm.store`, or print one prompt."""
    config = load_config(config_file, overrides)
    llm = config.llm
    if show is not None:
        console.print(_prompt(config.dataset, llm.template, show), markup=False, highlight=False)
        return
    if llm.store is None:
        raise ValueError(f"{config_file}: llm.store must name a folder; it is not given.")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    _log_to_terminal(rank == 0)
    with _EncodeLine(is_main=rank == 0) as line:
        counts = encode(
            config.dataset,
            llm.store,
            model=llm.model,
            pooling=llm.pooling,
            dtype=llm.dtype,
            max_tokens=llm.max_tokens,
            batch_tokens=llm.batch_tokens,
            template=llm.template,
            rank=rank,
            world_size=world_size,
            on_progress=line.update,
        )
    for level, of_level in counts.items():
        told = ", ".join(f"{name} {count:,}" for name, count in of_level.items())
        console.print(f"rank {rank} {level}: {told}", highlight=False)
    if rank == 0:
        console.print(f"store: {llm.store}", soft_wrap=True)


class _EncodeLine:
    """Users a second and the time left: a bar on a terminal, a line every few seconds in a log."""

    EVERY_S = 10.0

    def __init__(self, is_main: bool) -> None:
        self._console = Console(stderr=True)
        self._shown = is_main
        self._bar = Progress(
            TextColumn("encode"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (is_main and self._console.is_terminal),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("encode", total=None, line="")
        self._started = self._told = time.perf_counter()
        self._first: int | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, tokens: int) -> None:
        now = time.perf_counter()
        if self._first is None:
            # What an earlier run left is not this run's speed; loading the model is not either.
            self._first, self._started = done, now
        new, seconds = done - self._first, max(now - self._started, 1e-9)
        line = f"{new / seconds:.1f} prompts/s  {tokens / seconds:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, total=total, line=line)
        is_due = now - self._told >= self.EVERY_S or done == total
        if self._shown and is_due and not self._console.is_terminal and new:
            self._told = now
            left = (total - done) * seconds / new
            self._console.print(
                f"encode {done:,}/{total:,}  {line}  {left:.0f} s left", soft_wrap=True
            )


def _prompt(dataset: Path, template: str, show: str) -> str:
    """One prompt by `user=KEY` or `scenario=NAME`."""
    level, _, wanted = show.partition("=")
    if level not in PROMPTS:
        raise ValueError(f"--show must be user=KEY or scenario=NAME; got {show!r}.")
    prompts = PROMPTS[level](dataset, load_template(template))
    for key, text in prompts.pairs():
        if str(key) == wanted:
            return text
    raise ValueError(f"{dataset} must hold the {level} {wanted!r}; it is not among {len(prompts)}.")


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
            raise ValueError(
                f"{item!r} is not known here; known are {', '.join(sorted(known))}=..."
            )
        options[key] = value
    return options


def _log_to_terminal(is_main: bool) -> None:
    level = logging.INFO if is_main else logging.ERROR
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("msrec").setLevel(level)
