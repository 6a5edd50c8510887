"""Writes the results of an evaluation to the run's TensorBoard."""

from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from msrec.launch.evaluation.results import Results

Value = tuple[str, float, int]
"""Name, value, step."""


def result_values(results: Results) -> Iterator[Value]:
    """What an evaluation found, as `evaluated test/auc/scenario=feed`, at its checkpoint's step."""
    step = int(results.checkpoint.removeprefix("step-"))
    for name, value in results.metrics.named().items():
        yield f"evaluated {results.split}/{name}", value, step


def write_tensorboard(results: Results, run_dir: Path) -> None:
    """Add an evaluation to the run's TensorBoard."""
    with SummaryWriter(str(run_dir / "tensorboard")) as board:
        for name, value, step in result_values(results):
            board.add_scalar(name, value, step)
