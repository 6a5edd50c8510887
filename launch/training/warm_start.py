"""Starts a run with the weights of another run, as far as they fit, and reports each tensor.

With `init_optimizer` it also takes the optimizer state.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch.distributed as dist
from rich.table import Table
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.io.atomic_files import write_json
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT, verify_checkpoint
from msrec.launch.checkpointing.dcp_storage import JsonReader
from msrec.launch.checkpointing.grown_rows import copy_first_rows, empty_rows
from msrec.launch.checkpointing.loading import saved_shapes
from msrec.launch.config.run_config import RunConfig, Strictness
from msrec.launch.console import PlainConsole
from msrec.launch.daily.kept_rows import require_kept_rows
from msrec.model.distributed.collectives import from_rank_0
from msrec.model.distributed.optimizers import init_state
from msrec.model.frozen_items import without_frozen

INIT_FILE = "init_from.json"
"""File of a run folder with the use of each tensor."""
Action = Literal["taken", "grown", "left", "new", "unused"]
MEANING: dict[Action, str] = {
    "taken": "as it was saved",
    "grown": "first rows as they were saved, the rows after them as initialised",
    "left": "as initialised: the saved one does not fit",
    "new": "as initialised: the checkpoint has none",
    "unused": "only in the checkpoint",
}
ACCEPTED: dict[Strictness, tuple[Action, ...]] = {
    True: ("taken",),
    "grown": ("taken", "grown"),
    False: ("taken", "grown", "left", "new", "unused"),
}
"""`strict` -> actions that it accepts."""
Shape = tuple[int, ...]
WEIGHT, STATE = "model.", "optim."
"""Beginnings of names in a checkpoint, of weights and of optimizer state."""


@dataclass(frozen=True)
class TensorReport:
    """Use of one tensor; a shape is None on the side that does not have the tensor.

    Names of optimizer state begin with `optim.`.
    """

    name: str
    action: Action
    saved: Shape | None
    here: Shape | None


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
        PlainConsole(stderr=True).print(_table(source, reports))
        config.run_dir.mkdir(parents=True, exist_ok=True)
        tensors = [asdict(report) for report in reports]
        record = {"init_from": str(source), "checkpoint": path.name, "tensors": tensors}
        write_json(config.run_dir / INIT_FILE, record)


class Origin(NamedTuple):
    """Origin of a run's first weights: name of the checkpoint, and table -> rows of grown ones."""

    checkpoint: str
    rows: dict[str, int]


def read_origin(run_dir: Path) -> Origin:
    """Reads what `warm_start` has written."""
    content = json.loads((run_dir / INIT_FILE).read_bytes())
    grown = [tensor for tensor in content["tensors"] if tensor["action"] == "grown"]
    rows = {t["name"].split(".")[-2]: t["saved"][0] for t in grown if _is_table(t["name"])}
    return Origin(content["checkpoint"], rows)


def _checkpoint_of(source: Path) -> Path:
    """Returns the best checkpoint of a run folder, or the checkpoint itself."""
    path: Path | None = source
    if not (source / COMMIT).is_file():
        path = Checkpoints(source / CHECKPOINTS).best()
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
        A report of every tensor of model, optimizer and checkpoint.

    Raises:
        ValueError: it is damaged; or with `strict`, something does not fit.
    """
    verify_checkpoint(path)
    weights: dict[str, Any] = model.state_dict()
    tensors = {f"{WEIGHT}{name}": tensor for name, tensor in without_frozen(weights).items()}
    saved = saved_shapes(path, WEIGHT)
    reports = {name: _weight_report(name, saved.get(name), t) for name, t in tensors.items()}
    settings: dict[str, Any] = {}
    if optimizer is not None:
        init_state(optimizer)
        settings = optimizer.state_dict()
        saved |= saved_shapes(path, STATE)
        for key, parts in without_frozen(settings["state"]).items():
            weight = reports[_weight_of(key, tensors)]
            for part, tensor in parts.items():
                name = f"{STATE}{key}.{part}"
                tensors[name] = tensor
                reports[name] = _state_report(name, saved.get(name), tensor, weight)
    every = list(reports.values())
    for name, shape in saved.items():
        if name not in tensors:
            every.append(TensorReport(name.removeprefix(WEIGHT), "unused", shape, None))
    _require_accepted(path, every, ACCEPTED[strict])
    _load_tensors(path, reports, tensors)
    model.load_state_dict(weights)
    if optimizer is not None:
        optimizer.load_state_dict(settings)
    return every


def _is_table(name: str) -> bool:
    return ".embedding_bags." in name and not name.startswith(STATE)


def _weight_of(key: str, tensors: Mapping[str, Any]) -> str:
    """Returns the name of a parameter; the key of its optimizer state has the part in front."""
    while key and f"{WEIGHT}{key}" not in tensors:
        key = key.partition(".")[2]
    return f"{WEIGHT}{key}"


def _weight_report(name: str, saved: Shape | None, tensor: Any) -> TensorReport:
    name, here = name.removeprefix(WEIGHT), tuple(tensor.size())
    if saved is None:
        return TensorReport(name, "new", None, here)
    if saved == here:
        return TensorReport(name, "taken", saved, here)
    grew = _is_table(name) and saved[1:] == here[1:] and saved[0] < here[0]
    return TensorReport(name, "grown" if grew else "left", saved, here)


def _state_report(
    name: str, saved: Shape | None, tensor: Any, weight: TensorReport
) -> TensorReport:
    """Returns the report of a part of the optimizer state of a parameter.

    A count of steps has the same shape as ever, but belongs to the saved parameter.
    """
    here = tuple(tensor.size())
    if saved is None:
        return TensorReport(name, "new", None, here)
    if weight.action in ("taken", "grown") and saved == here:
        return TensorReport(name, "taken", saved, here)
    grew = weight.action == "grown" and saved[1:] == here[1:]
    if grew and weight.saved is not None and weight.here is not None:
        grew = (saved[0], here[0]) == (weight.saved[0], weight.here[0])  # one value per row
    return TensorReport(name, "grown" if grew else "left", saved, here)


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


def _table(source: Path, reports: list[TensorReport]) -> Table:
    """Returns a table with one row per tensor, but one row for all that were taken."""
    table = Table(title=f"init_from {source}", title_justify="left")
    for head in ("tensor", "saved", "here", ""):
        table.add_column(head, overflow="fold")
    num_taken = sum(report.action == "taken" for report in reports)
    table.add_row(f"{num_taken} tensors", "", "", f"taken: {MEANING['taken']}")
    for report in reports:
        if report.action != "taken":
            shapes = ["x".join(map(str, shape or ())) for shape in (report.saved, report.here)]
            table.add_row(report.name, *shapes, f"{report.action}: {MEANING[report.action]}")
    return table


def _require_accepted(
    path: Path, reports: Sequence[TensorReport], accepted: tuple[Action, ...]
) -> None:
    others = [report for report in reports if report.action not in accepted]
    if not others:
        return
    by_action = "; ".join(
        f"{action} {', '.join(names)}"
        for action in MEANING
        if (names := [report.name for report in others if report.action == action])
    )
    may_grow = ", but for tables that grew" if "grown" in accepted else ""
    raise ValueError(
        f"{path} must hold every tensor of this model and no other, in the same shapes{may_grow}; "
        f"{len(others)} differ: {by_action}. To take what fits, say strict=false."
    )
