"""A run as it was trained: its config, its data set and its model with a checkpoint's weights."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Schema, load_schema
from msrec.launch.build import Knowledge, ScoredDataset, build_sharded
from msrec.launch.checkpointing.checkpoint import COMMIT, Checkpoints, load_checkpoint
from msrec.launch.config import RunConfig, load_config
from msrec.launch.distributed import Process
from msrec.model.ranker import RankerTrain

CHECKPOINTS = "checkpoints"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A run on this rank, and what it is to score.

    `schema` is of the dataset to score, in the terms of the run; `checkpoint` names the folder that
    its weights are of.
    """

    config: RunConfig
    schema: Schema
    knowledge: Knowledge
    model: DistributedModelParallel
    checkpoint: str
    scored: ScoredDataset


class RunOf(NamedTuple):
    """A run folder, and one of its checkpoints where that was named."""

    folder: Path
    checkpoint: Path | None


def run_of(path: Path) -> RunOf:
    """The run of a run folder or of a checkpoint, RUN/checkpoints/step-N.

    Raises:
        FileNotFoundError: it is neither.
    """
    if (path / "config.yaml").is_file():
        return RunOf(path, None)
    if (path / COMMIT).is_file() and path.resolve().parent.name == CHECKPOINTS:
        return RunOf(path.resolve().parent.parent, path)
    raise FileNotFoundError(
        f"{path} must be a run folder; it has no config.yaml. Nor is it a committed checkpoint in "
        f"the {CHECKPOINTS}/ of one."
    )


def load_run_config(run_dir: Path) -> RunConfig:
    """The config that a run folder keeps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} must be a run folder; it has no config.yaml.")
    return load_config(path)


def restore(
    run_dir: Path, process: Process, checkpoint: Path | None = None, data: AnyPath | None = None
) -> TrainedRun:
    """Build a run's model and load its weights, on every rank.

    Args:
        run_dir: a run folder.
        process: this rank.
        checkpoint: which weights; None takes the one with the best validation.
        data: another dataset folder to score; None is the run's own.

    Raises:
        FileNotFoundError: there is no run, or no committed checkpoint.
        ValueError: the checkpoint, the store or the data do not fit the config.
    """
    config = load_run_config(run_dir)
    path = checkpoint or Checkpoints(run_dir / CHECKPOINTS).best()
    if path is None:
        raise FileNotFoundError(
            f"{run_dir}/checkpoints must hold a committed checkpoint; it has none."
        )
    schema = load_schema(config.dataset)
    alignment = None if data is None else _alignment(config, data, process)
    knowledge = Knowledge(config, schema, data)
    model, _ = build_sharded(config, schema, knowledge, process, plan=None)
    load_checkpoint(path, model, None)
    return TrainedRun(
        config=config,
        schema=schema if alignment is None else alignment.schema,
        knowledge=knowledge,
        model=model,
        checkpoint=path.name,
        scored=ScoredDataset(data or config.dataset, alignment),
    )


def _alignment(config: RunConfig, data: AnyPath, process: Process) -> VocabularyAlignment:
    """How the ids of another dataset become those of the run's one.

    Raises:
        ValueError: they cannot, or the run has made-up vectors of its own users.
    """
    if config.llm.control != "none":
        raise ValueError(
            f"--data needs a run with llm.control=none; this one has {config.llm.control}, which "
            "gives vectors to the users and items of its own dataset alone."
        )
    alignment = VocabularyAlignment(config.dataset, data)
    if process.is_main:
        for name, count in alignment.new_values.items():
            log.warning("%s: %d values of %s are new to the run: row 0", data, count, name)
        for name, count in alignment.lost_values.items():
            log.warning(
                "%s: %d values of %s that the run knows are not in its vocabulary: rows that held "
                "them are row 0 there; convert with --grow-from %s to keep them",
                *(data, count, name, config.dataset),
            )
    return alignment


def unwrapped(model: nn.Module) -> RankerTrain:
    """The model without what distributes it; its tables stay sharded."""
    while not isinstance(model, RankerTrain):
        model = model.module  # type: ignore[assignment]
    return model
