"""Loads a checkpoint into a sharded model, on any number of ranks and with any sharding plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torchrec.optim.keyed import CombinedOptimizer

from msrec.launch.checkpointing.commit import verify_checkpoint
from msrec.launch.checkpointing.dcp_storage import Index, JsonReader, read_index
from msrec.launch.checkpointing.row_accumulators import (
    read_accumulators,
    take_divided_otherwise,
)
from msrec.model.distributed.optimizers import init_state
from msrec.model.frozen_items import without_frozen


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: CombinedOptimizer | None,
    metrics: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Loads the weights, and the optimizer state if an optimizer is given; every rank calls this.

    Args:
        path: a committed checkpoint.
        model: the sharded model.
        optimizer: of `optimizers`.
        metrics: tensors to fill with those that were saved under the same names.

    Returns:
        The trainer's state that was saved with it.

    Raises:
        FileNotFoundError: the checkpoint does not exist or was never committed.
        ValueError: it is of another model (names the first differing keys), or damaged.
    """
    state = verify_checkpoint(path).state
    state_dict = model.state_dict()
    values: dict[str, Any] = {"model": without_frozen(state_dict)}
    if metrics:
        values["metrics"] = dict(metrics)
    if optimizer is not None:
        init_state(optimizer)  # otherwise DCP silently skips Adam's moments
        settings = optimizer.state_dict()
        # A copy of each dict: accumulators that are read in another way are taken out of it.
        of_parameters = without_frozen(settings["state"]).items()
        values["optim"] = {parameter: dict(tensors) for parameter, tensors in of_parameters}
    index = read_index(path)
    _check_keys(path, index, values["model"])
    _check_optimizer(path, index, values.get("optim", {}))
    divided_otherwise = take_divided_otherwise(index, values.get("optim", {}))
    load(values, storage_reader=JsonReader(path))
    read_accumulators(path, index, divided_otherwise, values["model"])
    model.load_state_dict(state_dict | values["model"])
    if optimizer is not None:
        optimizer.load_state_dict(settings)
    return state


def type_name(tensor: torch.Tensor) -> str:
    """Returns the type of the values of a tensor as the index has it, such as `float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_keys(path: Path, index: Index, model_state: dict[str, Any]) -> None:
    prefix = "model."
    saved = {n.removeprefix(prefix): e for n, e in index.items() if n.startswith(prefix)}
    missing = sorted(model_state.keys() - saved.keys())
    extra = sorted(saved.keys() - model_state.keys())
    if missing or extra:
        raise ValueError(
            f"{path} is a checkpoint of another model: it lacks {_first_names(missing)} and has "
            f"also {_first_names(extra)}. Use the config in its run folder."
        )
    for name, tensor in model_state.items():
        shape, kind = tuple(saved[name]["size"]), saved[name]["dtype"]
        if shape != tuple(tensor.size()):
            raise ValueError(
                f"{path} is a checkpoint of another model: {name} has shape {shape} there "
                f"and {tuple(tensor.size())} here. Use the config in its run folder."
            )
        if kind != type_name(tensor):
            raise ValueError(
                f"{path} must have values of the same type as the model; {name} is {kind} "
                f"there and {type_name(tensor)} here. Keep embeddings.dtype, or start another run "
                "with init_from."
            )


def _check_optimizer(path: Path, index: Index, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises the error of one rank on all, because each has the state of its own tables only."""
    names = [f"optim.{parameter}.{name}" for parameter in state for name in state[parameter]]
    missing = sorted(name.removeprefix("optim.") for name in names if name not in index)
    of_ranks: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, missing)
    missing = sorted({name for names in of_ranks for name in names})
    if missing:
        raise ValueError(
            f"{path} must hold the state of this run's optimizers; it lacks "
            f"{_first_names(missing)}. Tables with embeddings.optimizer=adam continue on the kind "
            "of device that they were trained on; to train on with new optimizers, start another "
            "run with init_from."
        )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
