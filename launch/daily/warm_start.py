"""Starts a run with the weights of another run, as far as they fit, and reports each tensor.

With `init_optimizer` it also takes the optimizer state.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.io.atomic_files import write_json
from msrec.data.io.paths import AnyPath
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT, verify_checkpoint
from msrec.launch.checkpointing.dcp_storage import JsonReader, read_index
from msrec.launch.checkpointing.grown_rows import copy_first_rows, empty_rows
from msrec.launch.checkpointing.remote_runs import local_run
from msrec.launch.checkpointing.row_accumulators import (
    read_accumulators,
    take_divided_otherwise,
)
from msrec.launch.checkpointing.tensor_reports import (
    STATE,
    USED,
    WEIGHT,
    TensorReport,
    is_table,
    of_all_ranks,
    report_table,
    require_accepted,
    state_report,
    weight_of,
    weight_report,
)
from msrec.launch.config.run_config import RunConfig, Strictness
from msrec.launch.console import PlainConsole
from msrec.launch.daily.kept_rows import require_kept_rows
from msrec.model.distributed.collectives import from_rank_0
from msrec.model.distributed.optimizers import init_state
from msrec.model.frozen_items import without_frozen

INIT_FILE = "init_from.json"
"""File of a run folder with the use of each tensor."""


def warm_start(config: RunConfig, model: nn.Module, optimizer: CombinedOptimizer) -> None:
    """Loads weights, prints a table of them and writes `init_from.json`; every rank calls this.

    Raises:
        FileNotFoundError: `init_from` has no committed checkpoint.
        ValueError: as `load_weights`; or with `strict=grown`, a value of the dataset of
            `init_from` has another table row here.
    """
    source = config.init_from
    assert source is not None
    if config.strict == "grown":
        from_rank_0(lambda: require_kept_rows(source, config))
    path = _checkpoint_of(source)
    state = optimizer if config.init_optimizer else None
    reports = load_weights(path, model, config.strict, state)
    if any(each.action == "grown" for each in reports) and (
        config.scale != 1 or config.embeddings.per_scenario
    ):
        raise ValueError(
            "tables can grow with scale=1 and embeddings.per_scenario=false only, because the rows "
            f"of old ids move otherwise; got scale={config.scale:g} and embeddings.per_scenario="
            f"{str(config.embeddings.per_scenario).lower()}. Train without init_from."
        )
    if dist.get_rank() == 0:
        PlainConsole(stderr=True).print(report_table(source, reports))
        config.run_dir.mkdir(parents=True, exist_ok=True)
        tensors = [asdict(report) for report in reports]
        record = {"init_from": str(source), "checkpoint": path.name, "tensors": tensors}
        write_json(config.run_dir / INIT_FILE, record)


def saved_rows(run_dir: Path) -> dict[str, int]:
    """Returns table -> rows that `init_from` has, of the tables that grew when a run began."""
    tensors = json.loads((run_dir / INIT_FILE).read_bytes())["tensors"]
    grown = [each for each in tensors if each["action"] == "grown" and is_table(each["name"])]
    return {each["name"].split(".")[-2]: each["saved"][0] for each in grown}


def _checkpoint_of(source: AnyPath) -> Path:
    """Returns the best checkpoint of a run folder, or the checkpoint itself, on this machine."""
    folder = local_run(source)
    path: Path | None = folder
    if not (folder / COMMIT).is_file():
        path = Checkpoints(folder / CHECKPOINTS).best()
    if path is None:
        raise FileNotFoundError(
            f"init_from={source} must be a run folder with a committed checkpoint, or such a "
            "checkpoint; it is neither."
        )
    return path


def load_weights(
    path: Path,
    model: nn.Module,
    strict: Strictness,
    optimizer: CombinedOptimizer | None = None,
) -> list[TensorReport]:
    """Loads weights by name, and optimizer state if an optimizer is given; every rank calls this.

    If a table has more rows here than in the checkpoint, its first rows are the saved ones: a
    vocabulary that grew keeps the rows of its old values. Optimizer state is taken, or grows, with
    its parameter. State that is not taken is zero, so that its parameter starts as in a new run.

    Args:
        path: a checkpoint.
        model: the sharded model, initialised.
        strict: tensors that are refused, see `RunConfig`.
        optimizer: of `optimizers`; None leaves the optimizer state as it is.

    Returns:
        A report of every tensor of model, optimizer and checkpoint, the same on every rank.

    Raises:
        ValueError: the checkpoint is damaged; or with `strict`, something does not fit.
    """
    verify_checkpoint(path)
    index = read_index(path)
    weights: dict[str, Any] = model.state_dict()
    trained = without_frozen(weights)
    reports = {f"{WEIGHT}{n}": weight_report(index, n, tensor) for n, tensor in trained.items()}
    settings: dict[str, Any] = {"state": {}}
    if optimizer is not None:
        init_state(optimizer)
        settings = optimizer.state_dict()
    state = {key: dict(parts) for key, parts in without_frozen(settings["state"]).items()}
    for key, parts in state.items():
        weight = reports[weight_of(key, reports)]
        for part, tensor in list(parts.items()):
            name = f"{STATE}{key}.{part}"
            reports[name] = state_report(index, name, tensor, weight)
            if reports[name].action not in USED:
                del parts[part]
    prefixes = (WEIGHT,) if optimizer is None else (WEIGHT, STATE)
    every = of_all_ranks(reports, index, prefixes)
    require_accepted(path, every, strict)
    by_row = take_divided_otherwise(index, state)
    tensors = {f"{WEIGHT}{name}": tensor for name, tensor in trained.items()}
    for key, parts in state.items():
        tensors |= {f"{STATE}{key}.{part}": tensor for part, tensor in parts.items()}
    _load_tensors(path, {name: reports[name] for name in tensors}, tensors)
    read_accumulators(path, index, by_row, trained)
    model.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict(settings)
    return every


def _load_tensors(
    path: Path, reports: Mapping[str, TensorReport], tensors: Mapping[str, Any]
) -> None:
    grown: dict[str, Any] = {}
    for name, report in reports.items():
        if report.action == "grown" and report.saved is not None:
            grown[name] = empty_rows(tensors[name], report.saved)
    taken = {name: tensors[name] for name, each in reports.items() if each.action == "taken"}
    if taken or grown:
        load(taken | grown, storage_reader=JsonReader(path))
    for name, rows in grown.items():
        copy_first_rows(rows, tensors[name])
