"""`init_from`: begin a run with another one's weights as far as they fit, and say what was done."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.distributed.checkpoint.state_dict_loader import load

from msrec.launch.checkpointing.checkpoint import COMMIT, Checkpoints, verify_checkpoint
from msrec.launch.checkpointing.dcp_storage import JsonReader, read_index

Action = Literal["taken", "grown", "left", "new", "unused"]
MEANING: dict[Action, str] = {
    "taken": "as it was saved",
    "grown": "its rows as they were saved, those behind them as initialised",
    "left": "as initialised: the saved one has another shape",
    "new": "as initialised: the checkpoint has none",
    "unused": "only in the checkpoint",
}


@dataclass(frozen=True)
class Part:
    """What became of one tensor; a shape is None where there is none."""

    name: str
    action: Action
    saved: tuple[int, ...] | None
    here: tuple[int, ...] | None


def warm_start(source: Path, model: nn.Module, strict: bool) -> list[Part]:
    """Load weights by name; optimizer state begins anew. Every rank calls this.

    A table that has more rows here than in the checkpoint gets the saved rows in its first ones: a
    vocabulary that grew keeps the rows of its old values.

    Args:
        source: a run folder, whose best checkpoint is taken, or a checkpoint.
        model: the sharded model, initialised.
        strict: refuse unless every tensor of both is there and fits.

    Returns:
        Every tensor of the model and of the checkpoint.

    Raises:
        FileNotFoundError: there is no committed checkpoint.
        ValueError: it is damaged; or with `strict`, something does not fit.
    """
    path = source
    if not (source / COMMIT).is_file():
        best = Checkpoints(source / "checkpoints").best()
        if best is None:
            raise FileNotFoundError(
                f"init_from={source} must be a run folder with a committed checkpoint, or such a "
                "checkpoint; it is neither."
            )
        path = best
    verify_checkpoint(path)
    here: dict[str, Any] = model.state_dict()
    index = {name: told for name, told in read_index(path).items() if name.startswith("model.")}
    saved = {name.removeprefix("model."): tuple(told["size"]) for name, told in index.items()}
    parts = [_part(name, saved.get(name), tuple(tensor.size())) for name, tensor in here.items()]
    parts += [Part(n, "unused", size, None) for n, size in saved.items() if n not in here]
    if strict:
        _refuse(path, [part for part in parts if part.action != "taken"])
    wanted = {part.name: here[part.name] for part in parts if part.action == "taken"}
    grown = {
        part.name: _first_rows(here[part.name], part.saved)
        for part in parts
        if part.action == "grown" and part.saved is not None
    }
    if wanted or grown:
        load({"model": wanted | grown}, storage_reader=JsonReader(path))
    for name, rows in grown.items():
        _copy_first_rows(rows, here[name])
    model.load_state_dict(here)
    return parts


def parts_table(source: Path, parts: list[Part]) -> Table:
    """What a person reads: how many tensors of each kind, and all that were not simply taken."""
    table = Table(title=f"init_from {source}", title_justify="left")
    for head in ("tensor", "saved", "here", ""):
        table.add_column(head, overflow="fold")
    taken = [part for part in parts if part.action == "taken"]
    table.add_row(f"{len(taken)} tensors", "", "", f"taken: {MEANING['taken']}")
    for part in parts:
        if part.action != "taken":
            shapes = ["" if s is None else "x".join(map(str, s)) for s in (part.saved, part.here)]
            table.add_row(part.name, *shapes, f"{part.action}: {MEANING[part.action]}")
    return table


def parts_record(source: Path, parts: list[Part]) -> dict[str, Any]:
    """The same for the run's folder."""
    return {"init_from": str(source), "tensors": [asdict(part) for part in parts]}


def _part(name: str, saved: tuple[int, ...] | None, here: tuple[int, ...]) -> Part:
    if saved is None:
        return Part(name, "new", None, here)
    if saved == here:
        return Part(name, "taken", saved, here)
    is_table = ".embedding_bags." in name
    grew = is_table and saved[1:] == here[1:] and saved[0] < here[0]
    return Part(name, "grown" if grew else "left", saved, here)


def _refuse(path: Path, parts: list[Part]) -> None:
    if not parts:
        return
    told = "; ".join(
        f"{action} {', '.join(part.name for part in parts if part.action == action)}"
        for action in MEANING
        if any(part.action == action for part in parts)
    )
    raise ValueError(
        f"{path} must hold every tensor of this model and no other, in the same shapes; "
        f"{len(parts)} differ: {told}. To take what fits, say strict=false."
    )


def _first_rows(tensor: Any, saved: tuple[int, ...]) -> Any:
    """Room for the saved rows, spread over the ranks as the rows of `tensor` are."""
    if not isinstance(tensor, ShardedTensor):
        return torch.empty(saved, dtype=tensor.dtype, device=tensor.device)
    whole = tensor.metadata()
    metadata = ShardedTensorMetadata(
        shards_metadata=[m for m in map(_cut(saved[0]), whole.shards_metadata) if m is not None],
        size=torch.Size(saved),
        tensor_properties=whole.tensor_properties,
    )
    shards = []
    for shard in tensor.local_shards():
        cut = _cut(saved[0])(shard.metadata)
        if cut is not None:
            shards.append(Shard(shard.tensor.new_empty(cut.shard_sizes), cut))
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=tensor._process_group
    )


def _cut(rows: int) -> Any:
    """Of a shard's place -> that of its part below `rows`, None where there is none."""

    def cut(metadata: ShardMetadata) -> ShardMetadata | None:
        first, size = metadata.shard_offsets[0], metadata.shard_sizes[0]
        left = min(first + size, rows) - first
        if left <= 0:
            return None
        sizes = [left, *metadata.shard_sizes[1:]]
        return ShardMetadata(list(metadata.shard_offsets), sizes, metadata.placement)

    return cut


def _copy_first_rows(rows: Any, tensor: Any) -> None:
    with torch.no_grad():
        if not isinstance(tensor, ShardedTensor):
            tensor[: len(rows)].copy_(rows)
            return
        to = {shard.metadata.shard_offsets[0]: shard.tensor for shard in tensor.local_shards()}
        for shard in rows.local_shards():
            to[shard.metadata.shard_offsets[0]][: len(shard.tensor)].copy_(shard.tensor)
