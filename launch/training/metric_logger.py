"""Logs the metrics of a run to metrics.jsonl, TensorBoard and a progress line, on rank 0."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from msrec.launch.console import PlainConsole, duration
from msrec.launch.distributed import Process
from msrec.launch.training.metric_log import LOG_FILE
from msrec.model.metrics.definitions import MAIN_METRIC, metric_name, parse_metric_name

logger = logging.getLogger(__name__)


class MetricLogger:
    """Logs metrics and the training speed; a context. Ranks other than 0 only measure time.

    Args:
        run_dir: gets `tensorboard/` and `metrics.jsonl` (one JSON object per line: time, step,
            epoch, split, metrics).
        process: this rank.
        total_steps: steps of the whole run, for the time left.
        first_step: the step from which this start continues.
    """

    def __init__(self, run_dir: Path, process: Process, total_steps: int, first_step: int) -> None:
        self._run_dir = run_dir
        self._is_main = process.is_main
        self._total_steps, self._first_step = total_steps, first_step
        self.paused_s = 0.0
        """Seconds spent inside `paused`."""
        self._started = self._last_time = time.perf_counter()
        self._last_paused_s = 0.0

    def __enter__(self) -> Self:
        if self._is_main:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._file = (self._run_dir / LOG_FILE).open("a")
            self._board = SummaryWriter(str(self._run_dir / "tensorboard"))
            self._console = PlainConsole(stderr=True)
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[line]}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                disable=not self._console.is_terminal,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=self._total_steps, completed=self._first_step, line=""
            )
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._is_main:
            return
        self._bar.stop()
        for stream in (self._board, self._file):
            try:
                stream.close()
            except OSError as failure:
                if error is None:
                    raise
                # The error that ended the run is the one to raise; this one followed from it.
                logger.warning("%s: %s", self._run_dir, failure)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside, of validations and checkpoints, out of the training speed."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - started

    def log_training(self, step: int, epoch: int, rows: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of the `rows` trained since the last call, and their number per second."""
        now = time.perf_counter()
        seconds = now - self._last_time - (self.paused_s - self._last_paused_s)
        self._last_time, self._last_paused_s = now, self.paused_s
        self.log("train", step, epoch, {"rows_per_s": rows / seconds, **metrics})

    def log(self, split: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Appends a JSON line, writes the same values to TensorBoard, and prints a line."""
        if not self._is_main:
            return
        record = {"time": time.time(), "step": step, "epoch": epoch}
        self._file.write(json.dumps(record | {"split": split, "metrics": metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        self._print(split, step, epoch, metrics)

    def _print(self, split: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        if split == "train":
            line = f"{metrics['rows_per_s']:,.0f} rows/s  loss {metrics['loss']:.4f}"
            line += f"  {_summary(metrics)}{_managed_summary(metrics)}"
            self._bar.update(self._task, completed=step, line=line)
            if self._console.is_terminal:  # the progress bar shows it
                return
            share_left = (self._total_steps - step) / max(step - self._first_step, 1)
            seconds = share_left * (time.perf_counter() - self._started)
            line += f"  up to {duration(seconds)} left"
        else:
            line = _summary(metrics, by_scenario=True)
        position = f"epoch {epoch} step {step}/{self._total_steps}"
        self._console.print(f"{position} {split:5} {line}", soft_wrap=True)


def _managed_summary(metrics: Mapping[str, float]) -> str:
    """Returns the ids of each managed feature that have, got and lost rows."""
    start = "ids_with_row/"
    names = [name.removeprefix(start) for name in metrics if name.startswith(start)]
    return "".join(
        f"  {name} {metrics[start + name]:,} ids with rows "
        f"(+{metrics[f'ids_inserted/{name}']:,} -{metrics[f'ids_evicted/{name}']:,})"
        for name in names
    )


def _summary(metrics: Mapping[str, float], by_scenario: bool = False) -> str:
    """Returns the AUC of each binary label and the RMSE of each regression label, in one line."""
    parts = []
    names = [parsed for name in metrics if (parsed := parse_metric_name(name)) is not None]
    for label in (None, *sorted({name.label for name in names if name.label is not None})):
        is_binary = metric_name("log_loss", label=label) in metrics
        metric = MAIN_METRIC["binary" if is_binary else "regression"]
        value = metrics.get(metric_name(metric, label=label))
        shown = f"{metric.upper()} undefined" if value is None else f"{metric.upper()} {value:.4f}"
        parts.append(f"{label or ''} {shown}".lstrip())
        if by_scenario and label is None:
            of_scenarios = [
                f"{scenario} {metrics[metric_name(metric, scenario)]:.4f}"
                for name, scenario, of_label in names
                if name == metric and scenario is not None and of_label is None
            ]
            parts.append(f"({'  '.join(of_scenarios)})")
            if is_binary:
                parts.append(f"log loss {metrics['log_loss/all']:.4f}")
    return "  ".join(parts)
