"""A run as it was trained: its config, its data set and its model with a checkpoint's weights."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from msrec.data.schema import Schema, load_schema
from msrec.launch.build import Knowledge, build_sharded
from msrec.launch.checkpoint import Checkpoints, load_checkpoint
from msrec.launch.config import RunConfig, load_config
from msrec.launch.process import Process
from msrec.model.ranker import RankerTrain


@dataclass(frozen=True)
class Restored:
    """A run on this rank; `checkpoint` names the folder its weights are of."""

    config: RunConfig
    schema: Schema
    knowledge: Knowledge
    model: DistributedModelParallel
    checkpoint: str


def load_run_config(run_dir: Path) -> RunConfig:
    """The config that a run folder keeps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} must be a run folder; it has no config.yaml.")
    return load_config(path)


def restore(run_dir: Path, process: Process, checkpoint: Path | None = None) -> Restored:
    """Build a run's model and load its weights, on every rank.

    Args:
        run_dir: a run folder.
        process: this rank.
        checkpoint: which weights; None takes the one with the best validation.

    Raises:
        FileNotFoundError: there is no run, or no committed checkpoint.
        ValueError: the checkpoint, the store or the data do not fit the config.
    """
    config = load_run_config(run_dir)
    path = checkpoint or Checkpoints(run_dir / "checkpoints").best()
    if path is None:
        raise FileNotFoundError(
            f"{run_dir}/checkpoints must hold a committed checkpoint; it has none."
        )
    schema = load_schema(config.dataset)
    knowledge = Knowledge(config, schema)
    model, _ = build_sharded(config, schema, knowledge, process, plan=None)
    load_checkpoint(path, model, None)
    return Restored(config, schema, knowledge, model, path.name)


def unwrapped(model: nn.Module) -> RankerTrain:
    """The model without what distributes it; its tables stay sharded."""
    while not isinstance(model, RankerTrain):
        model = model.module  # type: ignore[assignment]
    return model
