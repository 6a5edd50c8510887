"""Score each new checkpoint of a run that trains, and add it to the run's curves."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split
from msrec.launch.checkpointing.checkpoint import COMMIT, committed
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import Results
from msrec.launch.trained_run import CHECKPOINTS
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
    tell: Callable[[int, Results], None],
) -> int:
    """Evaluate every checkpoint that is committed and not in the curve, until the run has ended.

    Appends a line a checkpoint to `watched.jsonl` in the run's folder, of the form of
    `metrics.jsonl`. A checkpoint that training removes before it is read is told and passed over:
    `trainer.keep` keeps more.

    Args:
        run_dir: a run folder.
        process: this rank; all ranks watch together.
        split: whose rows.
        data: another dataset folder; None is the run's own.
        every_s: seconds between two looks.
        tell: called on rank 0 with the step and what was found.

    Returns:
        Checkpoints evaluated.

    Raises:
        FileNotFoundError, ValueError: as `evaluate`.
    """
    name = f"{WATCHED}{split}" + (f" of {data.name}" if data is not None else "")
    seen = set(load_metric_log(run_dir).steps.get(name, {}))
    count = 0
    while True:
        path, ended = _agreed(run_dir, seen, process)
        if path is None and ended:
            return count
        if path is None:
            time.sleep(every_s)
            continue
        step = int(path.name.removeprefix("step-"))
        seen.add(step)
        try:
            found = evaluate(run_dir, process, split, path, data=data, judging=NO_INTERVALS)
        except (FileNotFoundError, ValueError):
            if (path / COMMIT).exists():  # which training removes first
                raise
            logger.warning("%s was removed before it was read; trainer.keep keeps more.", path)
            continue
        count += 1
        if found is not None:
            _append(run_dir, name, step, found)
            tell(step, found)


def _agreed(run_dir: Path, seen: set[int], process: Process) -> tuple[Path | None, bool]:
    """The oldest checkpoint that was not seen; whether no other will come, as rank 0 sees it."""
    told: list[tuple[Path | None, bool]] = [(None, False)]
    if process.is_main:
        ended = _has_ended(run_dir)  # before the look: what comes later comes into the next one
        paths = committed(run_dir / CHECKPOINTS)
        new = (path for path in paths if int(path.name.removeprefix("step-")) not in seen)
        told = [(next(new, None), ended)]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _has_ended(run_dir: Path) -> bool:
    try:
        return status_of(run_dir).word != "trains"
    except FileNotFoundError:
        return True  # no rank ever said anything


def _append(run_dir: Path, split: str, step: int, found: Results) -> None:
    record = {"time": time.time(), "step": step, "split": split, "metrics": found.metrics.named()}
    with (run_dir / WATCHED_FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")
