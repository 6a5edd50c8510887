"""What a run tells while it trains: one progress line, metrics.jsonl, TensorBoard; rank 0 only."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from msrec.launch.distributed import Process

logger = logging.getLogger(__name__)


class MetricLogger:
    """Writes a run's course. On other ranks than 0 it only keeps time.

    Args:
        run_dir: gets `tensorboard/` and `metrics.jsonl` (one JSON object a line: time, step, epoch,
            split, metrics).
        process: this rank.
        total_steps: steps of the whole run, for the time left.
        step: the step a resumed run starts from.
    """

    def __init__(self, run_dir: Path, process: Process, total_steps: int, step: int) -> None:
        self._run_dir = run_dir
        self._is_main = process.is_main
        self._total_steps, self._first_step = total_steps, step
        self.seconds_aside = 0.0
        """Time spent inside `aside()`: evaluation and checkpoints."""
        self._started = self._last_time = time.perf_counter()
        self._last_aside = 0.0

    def __enter__(self) -> Self:
        if self._is_main:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._file = (self._run_dir / "metrics.jsonl").open("a")
            self._board = SummaryWriter(str(self._run_dir / "tensorboard"))
            self._console = Console(stderr=True)
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[line]}"),
                TimeRemainingColumn(),
                console=self._console,
                disable=not self._console.is_terminal,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "train", total=self._total_steps, completed=self._first_step, line=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            self._bar.stop()
            for stream in (self._board, self._file):
                try:
                    stream.close()
                except OSError as failure:
                    if error is None:
                        raise
                    # The error that ended the run is the one to tell; this one came of it.
                    logger.warning("%s: %s", self._run_dir, failure)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training, left out of rows/s."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_aside += time.perf_counter() - started

    def train_line(self, step: int, epoch: int, rows: int, metrics: Mapping[str, float]) -> None:
        """Log `rows` trained since the last line."""
        now = time.perf_counter()
        seconds = now - self._last_time - (self.seconds_aside - self._last_aside)
        self._last_time, self._last_aside = now, self.seconds_aside
        rate = rows / seconds
        self.write("train", step, epoch, {"rows_per_s": rate, **metrics})

    def write(self, split: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Append one JSON line, the same values to TensorBoard, and one line to the terminal."""
        if not self._is_main:
            return
        record = {
            "time": time.time(),
            "step": step,
            "epoch": epoch,
            "split": split,
            "metrics": metrics,
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        self._show(split, step, epoch, metrics)

    def _show(self, split: str, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        auc = f"AUC {metrics['auc/all']:.4f}" if "auc/all" in metrics else "AUC undefined"
        if split == "train":
            line = f"{metrics['rows_per_s']:,.0f} rows/s  loss {metrics['loss']:.4f}  {auc}"
            self._bar.update(self._task, completed=step, line=line)
            if self._console.is_terminal:
                return
            left = (self._total_steps - step) / max(step - self._first_step, 1)
            seconds = left * (time.perf_counter() - self._started)
            line += f"  up to {seconds / 60:.1f} min left"
        else:
            per_scenario = "  ".join(
                f"{name.partition('=')[2]} {value:.4f}"
                for name, value in metrics.items()
                if name.startswith("auc/scenario=")
            )
            line = f"{auc}  ({per_scenario})  log loss {metrics['log_loss/all']:.4f}"
        self._console.print(
            f"[dim]epoch {epoch} step {step}/{self._total_steps}[/] {split:5} {line}",
            soft_wrap=True,
        )
