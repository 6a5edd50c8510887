"""Use of each tensor of a checkpoint by a run that starts from it: which fit, which grew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from rich.table import Table

from msrec.data.io.paths import AnyPath
from msrec.launch.checkpointing.dcp_storage import Index
from msrec.launch.checkpointing.loading import type_name
from msrec.launch.config.run_config import Strictness

Action = Literal["taken", "grown", "left", "new", "unused"]
MEANING: dict[Action, str] = {
    "taken": "as it was saved",
    "grown": "first rows as they were saved, the rows after them as initialised",
    "left": "as initialised: the saved one does not fit",
    "new": "as initialised: the checkpoint has none",
    "unused": "only in the checkpoint",
}
USED: tuple[Action, ...] = ("taken", "grown")
ACCEPTED: dict[Strictness, tuple[Action, ...]] = {
    True: ("taken",),
    "grown": USED,
    False: (*USED, "left", "new", "unused"),
}
"""`strict` -> actions that it accepts."""
CONVERTED = ", converted to the type of the model"
Shape = tuple[int, ...]
WEIGHT, STATE = "model.", "optim."
"""Beginnings of names in a checkpoint, of weights and of optimizer state."""


@dataclass(frozen=True)
class TensorReport:
    """Use of one tensor; a shape is None on the side that does not have the tensor.

    Names of optimizer state begin with `optim.`.
    `converted` tells that the saved values have another type, as with another `embeddings.dtype`.
    """

    name: str
    action: Action
    saved: Shape | None
    here: Shape | None
    converted: bool = False


def is_table(name: str) -> bool:
    """Returns whether a tensor is an embedding table."""
    return ".embedding_bags." in name and not name.startswith(STATE)


def weight_of(key: str, reports: Mapping[str, TensorReport]) -> str:
    """Returns the name of a parameter; the key of its optimizer state has the part in front."""
    while key and f"{WEIGHT}{key}" not in reports:
        key = key.partition(".")[2]
    return f"{WEIGHT}{key}"


def weight_report(index: Index, name: str, tensor: Any) -> TensorReport:
    """Returns the report of a weight; a table may have more rows than the saved one."""
    here = tuple(tensor.size())
    if (entry := index.get(f"{WEIGHT}{name}")) is None:
        return TensorReport(name, "new", None, here)
    saved, converted = tuple(entry["size"]), entry["dtype"] != type_name(tensor)
    if saved == here:
        return TensorReport(name, "taken", saved, here, converted)
    grew = is_table(name) and saved[1:] == here[1:] and saved[0] < here[0]
    return TensorReport(name, "grown" if grew else "left", saved, here, grew and converted)


def state_report(index: Index, name: str, tensor: Any, weight: TensorReport) -> TensorReport:
    """Returns the report of a part of the optimizer state of a parameter.

    A count of steps has the same shape as ever, but belongs to the saved parameter. State of rows
    grows with them; there may be some of each row, see `row_accumulators`.
    """
    here = tuple(tensor.size())
    if (entry := index.get(name)) is None:
        return TensorReport(name, "new", None, here)
    saved = tuple(entry["size"])
    if weight.action not in USED:
        return TensorReport(name, "left", saved, here)
    if saved == here:
        return TensorReport(name, "taken", saved, here)
    assert weight.saved is not None
    assert weight.here is not None
    rows = [(saved, weight.saved), (here, weight.here)]
    is_by_row = all(own and own[0] % of_weight[0] == 0 for own, of_weight in rows)
    fits = is_by_row and saved[1:] == here[1:]
    return TensorReport(name, weight.action if fits else "left", saved, here)


def of_all_ranks(
    reports: Mapping[str, TensorReport], index: Index, prefixes: tuple[str, ...]
) -> list[TensorReport]:
    """Returns the reports of all ranks, which have the optimizer state of their own tables only.

    Tensors of the checkpoint with one of the prefixes that no rank has are unused.
    """
    of_ranks: list[Mapping[str, TensorReport]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, reports)
    every = {name: report for own in of_ranks for name, report in own.items()}
    for name, entry in index.items():
        if name.startswith(prefixes) and name not in every:
            shape = tuple(entry["size"])
            every[name] = TensorReport(name.removeprefix(WEIGHT), "unused", shape, None)
    return list(every.values())


def report_table(source: AnyPath, reports: list[TensorReport]) -> Table:
    """Returns a table with one row per tensor, but one row for all that were taken."""
    table = Table(title=f"init_from {source}", title_justify="left")
    for head in ("tensor", "saved", "here", ""):
        table.add_column(head, overflow="fold")
    shown = [report for report in reports if report.action != "taken" or report.converted]
    num_taken = len(reports) - len(shown)
    table.add_row(f"{num_taken} tensors", "", "", f"taken: {MEANING['taken']}")
    for report in shown:
        shapes = ["x".join(map(str, shape or ())) for shape in (report.saved, report.here)]
        use = f"{report.action}: {MEANING[report.action]}"
        table.add_row(report.name, *shapes, use + CONVERTED * report.converted)
    return table


def require_accepted(path: Path, reports: Sequence[TensorReport], strict: Strictness) -> None:
    """Refuses tensors that `strict` does not allow; all are named.

    Raises:
        ValueError: there are some.
    """
    others = [report for report in reports if report.action not in ACCEPTED[strict]]
    if not others:
        return
    by_action = "; ".join(
        f"{action} {', '.join(names)}"
        for action in MEANING
        if (names := [report.name for report in others if report.action == action])
    )
    may_grow = ", but for tables that grew" if strict == "grown" else ""
    raise ValueError(
        f"{path} must hold every tensor of this model and no other, in the same shapes{may_grow}; "
        f"{len(others)} differ: {by_action}. To take what fits, say strict=false."
    )
