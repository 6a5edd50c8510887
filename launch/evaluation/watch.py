"""Evaluates new checkpoints during training and adds them to the run's curves."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT, committed
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import Results
from msrec.launch.training.metric_log import WATCHED, WATCHED_FILE, load_metric_log
from msrec.launch.training.run_status import status_of
from msrec.model.metrics.exact import NO_INTERVALS

logger = logging.getLogger(__name__)


def watch(
    run_dir: Path,
    process: Process,
    split: Split,
    data: AnyPath | None,
    every_s: float,
    on_results: Callable[[int, Results], None],
) -> int:
    """Evaluates every committed checkpoint that is not in the curve yet, until the run has ended.

    Appends one line per checkpoint to `watched.jsonl` in the run folder, in the format of
    `metrics.jsonl`. If training deletes a checkpoint before it is evaluated, it is skipped with a
    warning; a higher `trainer.keep` prevents that.

    Args:
        run_dir: a run folder.
        process: this rank; all ranks must call this function.
        split: the split to score.
        data: another dataset folder; None means the run's own.
        every_s: seconds between two checks for new checkpoints.
        on_results: called on rank 0 with the step and the results of each checkpoint.

    Returns:
        The number of checkpoints evaluated.

    Raises:
        FileNotFoundError, ValueError: see `evaluate`.
    """
    curve = f"{WATCHED}{split}" + (f" of {data.name}" if data is not None else "")
    seen = set(load_metric_log(run_dir).steps.get(curve, {}))
    count = 0
    while True:
        path, has_ended = _next_checkpoint(run_dir, seen, process)
        if path is None and has_ended:
            return count
        if path is None:
            time.sleep(every_s)
            continue
        step = _step_of(path)
        seen.add(step)
        try:
            results = evaluate(
                run_dir, process, split, path, data=data, metric_options=NO_INTERVALS
            )
        except (FileNotFoundError, ValueError):
            if (path / COMMIT).exists():  # training deletes this file first
                raise
            logger.warning(
                "%s was deleted before it was evaluated; trainer.keep sets how many are kept.", path
            )
            continue
        count += 1
        if results is not None:
            _append(run_dir, curve, step, results)
            on_results(step, results)


def _next_checkpoint(run_dir: Path, seen: set[int], process: Process) -> tuple[Path | None, bool]:
    """Returns the oldest new checkpoint and whether the run has ended, both as rank 0 sees them."""
    answer: list[tuple[Path | None, bool]] = [(None, False)]
    if process.is_main:
        # In this order: a run that ends after this line may still write a checkpoint.
        has_ended = _has_ended(run_dir)
        paths = committed(run_dir / CHECKPOINTS)
        answer = [(next((path for path in paths if _step_of(path) not in seen), None), has_ended)]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _has_ended(run_dir: Path) -> bool:
    try:
        return status_of(run_dir).word != "trains"
    except FileNotFoundError:
        return True  # no rank has ever reported its status


def _append(run_dir: Path, curve: str, step: int, results: Results) -> None:
    record = {"time": time.time(), "step": step, "split": curve, "metrics": results.named()}
    with (run_dir / WATCHED_FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")
