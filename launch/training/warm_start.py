"""Starts a run with the weights of another run, as far as they fit, and reports each tensor."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.state_dict_loader import load

from msrec.data.io.atomic_files import write_json
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT, verify_checkpoint
from msrec.launch.checkpointing.dcp_storage import JsonReader
from msrec.launch.checkpointing.loading import saved_shapes, saved_types, type_name
from msrec.launch.console import PlainConsole
from msrec.model.frozen_items import without_frozen

Action = Literal["taken", "grown", "left", "new", "unused"]
MEANING: dict[Action, str] = {
    "taken": "as it was saved",
    "grown": "first rows as they were saved, the rows after them as initialised",
    "left": "as initialised: the saved one has another shape",
    "new": "as initialised: the checkpoint has none",
    "unused": "only in the checkpoint",
}
CONVERTED = ", converted to the type of the model"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorReport:
    """Use of one tensor; a shape is None on the side that does not have the tensor.

    `converted` tells that the saved values have another type, as with another `embeddings.dtype`.
    """

    name: str
    action: Action
    saved: Shape | None
    here: Shape | None
    converted: bool = False


def warm_start(source: Path, model: nn.Module, strict: bool, run_dir: Path) -> None:
    """Loads weights, prints a table of them and writes `init_from.json`; every rank calls this.

    Args and errors are those of `load_weights`.
    """
    reports = load_weights(source, model, strict)
    if dist.get_rank() == 0:
        PlainConsole(stderr=True).print(_table(source, reports))
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {"init_from": str(source), "tensors": [asdict(report) for report in reports]}
        write_json(run_dir / "init_from.json", record)


def load_weights(source: Path, model: nn.Module, strict: bool) -> list[TensorReport]:
    """Loads weights by name; the optimizer state starts anew. Every rank calls this.

    If a table has more rows here than in the checkpoint, its first rows are the saved ones: a
    vocabulary that grew keeps the rows of its old values.

    Args:
        source: a run folder (for its best checkpoint) or a checkpoint.
        model: the sharded model, initialised.
        strict: refuse unless model and checkpoint have the same tensors in the same shapes.

    Returns:
        A report of every tensor of the model and of the checkpoint.

    Raises:
        FileNotFoundError: there is no committed checkpoint.
        ValueError: it is damaged; or with `strict`, something does not fit.
    """
    path: Path | None = source
    if not (source / COMMIT).is_file():
        path = Checkpoints(source / CHECKPOINTS).best()
    if path is None:
        raise FileNotFoundError(
            f"init_from={source} must be a run folder with a committed checkpoint, or such a "
            "checkpoint; it is neither."
        )
    verify_checkpoint(path)
    state: dict[str, Any] = model.state_dict()
    shapes = saved_shapes(path)
    trained = without_frozen(state)
    types = saved_types(path)
    reports = [
        _report(n, shapes.get(n), tuple(tensor.size()), types.get(n) != type_name(tensor))
        for n, tensor in trained.items()
    ]
    reports += [TensorReport(n, "unused", s, None) for n, s in shapes.items() if n not in state]
    if strict:
        _require_all_taken(path, reports)
    taken = {report.name: state[report.name] for report in reports if report.action == "taken"}
    grown = {
        report.name: _empty_rows(state[report.name], shapes[report.name])
        for report in reports
        if report.action == "grown"
    }
    if taken or grown:
        load({"model": taken | grown}, storage_reader=JsonReader(path))
    for name, rows in grown.items():
        _copy_first_rows(rows, state[name])
    model.load_state_dict(state)
    return reports


def _report(name: str, saved: Shape | None, here: Shape, converted: bool) -> TensorReport:
    if saved is None:
        return TensorReport(name, "new", None, here)
    if saved == here:
        return TensorReport(name, "taken", saved, here, converted)
    is_table = ".embedding_bags." in name
    grew = is_table and saved[1:] == here[1:] and saved[0] < here[0]
    return TensorReport(name, "grown" if grew else "left", saved, here, grew and converted)


def _table(source: Path, reports: list[TensorReport]) -> Table:
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


def _require_all_taken(path: Path, reports: list[TensorReport]) -> None:
    others = [report for report in reports if report.action != "taken"]
    if not others:
        return
    by_action = "; ".join(
        f"{action} {', '.join(names)}"
        for action in MEANING
        if (names := [report.name for report in others if report.action == action])
    )
    raise ValueError(
        f"{path} must hold every tensor of this model and no other, in the same shapes; "
        f"{len(others)} differ: {by_action}. To take what fits, say strict=false."
    )


def _empty_rows(tensor: Any, saved: Shape) -> Any:
    """Returns an empty tensor of the saved shape, with its rows on the ranks of `tensor`'s rows.

    DCP fills it, each rank reading only its rows. So no rank ever holds a whole table.
    """
    if not isinstance(tensor, ShardedTensor):
        return torch.empty(saved, dtype=tensor.dtype, device=tensor.device)
    whole = tensor.metadata()
    cut = [_first_rows(shard, saved[0]) for shard in whole.shards_metadata]
    metadata = ShardedTensorMetadata(
        shards_metadata=[shard for shard in cut if shard is not None],
        size=torch.Size(saved),
        tensor_properties=whole.tensor_properties,
    )
    shards = [
        Shard(shard.tensor.new_empty(own.shard_sizes), own)
        for shard in tensor.local_shards()
        if (own := _first_rows(shard.metadata, saved[0])) is not None
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=tensor._process_group
    )


def _first_rows(shard: ShardMetadata, num_rows: int) -> ShardMetadata | None:
    """Returns the part of a shard within the first rows of the table; None if it is empty."""
    rows = min(shard.shard_sizes[0], num_rows - shard.shard_offsets[0])
    if rows <= 0:
        return None
    sizes = [rows, *shard.shard_sizes[1:]]
    return ShardMetadata(list(shard.shard_offsets), sizes, shard.placement)


def _copy_first_rows(rows: Any, tensor: Any) -> None:
    with torch.no_grad():
        if not isinstance(tensor, ShardedTensor):
            tensor[: len(rows)].copy_(rows)
            return
        to = {shard.metadata.shard_offsets[0]: shard.tensor for shard in tensor.local_shards()}
        for shard in rows.local_shards():
            to[shard.metadata.shard_offsets[0]][: len(shard.tensor)].copy_(shard.tensor)
