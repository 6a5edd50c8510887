"""Opens a trained run: its config, its dataset and its model with the weights of a checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Schema, load_schema
from msrec.launch.build_model import build_sharded
from msrec.launch.calibration.calibration_file import Calibration, Method
from msrec.launch.calibration.checkpoint_calibration import load_calibration
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT
from msrec.launch.checkpointing.loading import load_checkpoint
from msrec.launch.checkpointing.remote_runs import local_run
from msrec.launch.config.run_config import CONFIG_FILE, RunConfig, load_config
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import ScoredDataset
from msrec.model.ranker import RankerTrain

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A run on this rank, and the dataset that it scores.

    `schema` describes the dataset to score with the ids of the run; `checkpoint` is the name of the
    folder with the weights; `calibration` belongs to these weights, if the run folder has one.
    """

    config: RunConfig
    schema: Schema
    knowledge: KnowledgeInputs
    model: DistributedModelParallel
    checkpoint: str
    scored: ScoredDataset
    calibration: Calibration | None = None

    @property
    def calibration_method(self) -> Method | None:
        """Method by which the scores of binary labels are calibrated; None if they are not."""
        return None if self.calibration is None else self.calibration.method


class RunPath(NamedTuple):
    """A run folder, and a checkpoint in it if the path named one."""

    folder: Path
    checkpoint: Path | None


def find_run(path: AnyPath) -> RunPath:
    """Returns the run folder of a path: a run folder, or a checkpoint RUN/checkpoints/step-N.

    Of a remote run it is the copy on this machine, without the tensors of the checkpoints.

    Raises:
        FileNotFoundError: the path is neither.
    """
    path = local_run(path, weights=False)
    if (path / CONFIG_FILE).is_file():
        return RunPath(path, None)
    if (path / COMMIT).is_file() and path.resolve().parent.name == CHECKPOINTS:
        return RunPath(path.resolve().parent.parent, path)
    raise FileNotFoundError(
        f"{path} must be a run folder; it has no {CONFIG_FILE} and is no committed checkpoint in "
        f"the {CHECKPOINTS}/ of one."
    )


def load_run_config(run_dir: AnyPath) -> RunConfig:
    """Reads the config that a run folder keeps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = local_run(run_dir, weights=False) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} must be a run folder; it has no {CONFIG_FILE}.")
    return load_config(path)


def run_inputs(run_dir: AnyPath) -> list[AnyPath | None]:
    """Returns the places that belong to a run, in which no other command may write.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    config = load_run_config(run_dir)
    return [run_dir / CHECKPOINTS, run_dir / "predictions", config.dataset, config.llm.store]


def open_run(
    run_dir: AnyPath,
    process: Process,
    checkpoint: AnyPath | None = None,
    data: AnyPath | None = None,
    config: RunConfig | None = None,
    *,
    calibrated: bool = True,
) -> TrainedRun:
    """Builds a run's model and loads its weights; every rank calls this.

    Args:
        run_dir: a run folder, also a remote one.
        process: this rank.
        checkpoint: the weights to load; None takes the checkpoint with the best validation.
        data: another dataset folder to score; None is the run's own.
        config: the run's config if the caller has read it already.
        calibrated: whether to read the calibration of the run folder.

    Raises:
        FileNotFoundError: there is no run, or no committed checkpoint.
        ValueError: the checkpoint, the store or the data do not fit the config, or the calibration
            belongs to other weights than those with the best validation.
    """
    config = config or load_run_config(run_dir)
    run_dir = local_run(run_dir, weights=checkpoint is None)
    path = checkpoint and local_run(checkpoint) or Checkpoints(run_dir / CHECKPOINTS).best()
    if path is None:
        raise FileNotFoundError(
            f"{run_dir / CHECKPOINTS} must hold a committed checkpoint; it has none."
        )
    schema = load_schema(config.dataset)
    calibration = None
    if calibrated:
        names = [scenario.name for scenario in schema.scenarios]
        calibration = load_calibration(run_dir, path, names, is_best=checkpoint is None)
    alignment = None if data is None else _alignment(config, data, process)
    knowledge = KnowledgeInputs(config, schema, data)
    # A plan of the training may be for other ranks. Weights load into any sharding and kernel.
    model, _ = build_sharded(config, schema, knowledge, process, plan=None, scored=True)
    load_checkpoint(path, model, None)
    return TrainedRun(
        config=config,
        schema=schema if alignment is None else alignment.schema,
        knowledge=knowledge,
        model=model,
        checkpoint=path.name,
        scored=ScoredDataset(data or config.dataset, alignment),
        calibration=calibration,
    )


def _alignment(config: RunConfig, data: AnyPath, process: Process) -> VocabularyAlignment:
    """Matches the ids of another dataset to those of the run's dataset; logs the differences.

    Raises:
        ValueError: they cannot be matched, or the run's vectors exist for its own users only.
    """
    if config.llm.control != "none":
        raise ValueError(
            f"--data needs a run with llm.control=none; this one has {config.llm.control}, whose "
            "vectors exist only for the users and items of its own dataset."
        )
    if config.sequence.encoder != "none":
        raise ValueError(
            f"--data needs a run with sequence.encoder=none; this one has "
            f"{config.sequence.encoder}, whose table has the items of its own dataset only."
        )
    alignment = VocabularyAlignment(config.dataset, data)
    if process.is_main:
        for name, count in alignment.new_values.items():
            logger.warning("%s: %d values of %s are new to the run: row 0", data, count, name)
        for name, count in alignment.lost_values.items():
            logger.warning(
                "%s: its vocabulary lacks %d values of %s that the run knows; their rows have row "
                "0 there. Convert with --grow-from %s to keep them.",
                *(data, count, name, config.dataset),
            )
    return alignment


def unwrapped(model: nn.Module) -> RankerTrain:
    """Returns the model inside its distributed wrappers; its tables stay sharded."""
    while not isinstance(model, RankerTrain):
        model = model.module  # type: ignore[assignment]
    return model
