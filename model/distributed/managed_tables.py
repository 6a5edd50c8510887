"""Updates of the maps of managed tables after a step, the same on every rank."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardingPlan

from msrec.data.features.value_counts import ValueCounts
from msrec.model.distributed.kernels import table_groups
from msrec.model.managed.managed_ids import IdMap, ManagedIds


def check_managed(managed: ManagedIds | None, plan: ShardingPlan, group: int | None) -> None:
    """Refuses a plan with a managed table whose rows cannot be reset in place.

    Args:
        managed: managed features of the model; None if there are none.
        plan: of the tables.
        group: number of ranks that share a copy of the tables; None if all do.

    Raises:
        ValueError: the table is replicated, or cached in another memory, or there are several
            copies of it.
    """
    if managed is None:
        return
    if group is not None:
        raise ValueError(
            f"embeddings.group_ranks must be null for a dataset with managed features; it is "
            f"{group}. A row that an id gets is reset in one copy of the tables only."
        )
    for of_module in plan.plan.values():
        for table in (name for name in managed.tables if name in of_module):
            if (kernel := of_module[table].compute_kernel) != "fused":
                raise ValueError(
                    f"the managed table {table!r} must have the kernel fused, whose rows can be "
                    f"reset; the sharding plan has {kernel}. Use embeddings.optimizer="
                    "rowwise_adagrad and a plan without caches for it."
                )


@torch.no_grad()
def update_managed(model: nn.Module, managed: ManagedIds) -> None:
    """Records the ids of the step that was just taken, and updates the maps if it is time to.

    Every rank calls this. A row that gets a new id starts as any other row does: with random values
    and without optimizer state. It has nothing of the id that it belonged to.

    Args:
        model: the sharded model, after its backward pass and update.
        managed: its managed features.
    """
    if managed.seen is None:
        return
    seen, managed.seen = managed.seen, None
    of_ranks = [torch.empty_like(seen) for _ in range(dist.get_world_size())]
    dist.all_gather(of_ranks, seen.contiguous())
    of_all = torch.cat(of_ranks, dim=1)
    maps = managed.by_feature.values()
    for of_map, table, ids in zip(maps, managed.tables, of_all, strict=True):
        of_map.record(ids)
        rows = of_map.update()
        if rows is not None and len(rows):
            _reset_rows(model, managed, of_map, table, rows)


def take_lookup_counts(managed: ManagedIds | None) -> dict[str, ValueCounts]:
    """Returns feature -> values looked up in eval mode, and those without a row; starts anew.

    Every rank calls this and gets the sums over all ranks. Missing values are not counted.
    """
    if managed is None:
        return {}
    counts = managed.lookups.clone()
    managed.lookups.zero_()
    dist.all_reduce(counts)
    values, unknown = counts.tolist()
    return {
        name: ValueCounts(*numbers)
        for name, *numbers in zip(managed.features, values, unknown, strict=True)
    }


def _reset_rows(
    model: nn.Module, managed: ManagedIds, of_map: IdMap, table: str, rows: torch.Tensor
) -> None:
    """Gives rows of a table values that depend only on (seed, table, step, order of the rows)."""
    options = managed.options
    name = f"{options.seed}/{table}/{of_map.step}"
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(len(rows), options.dim, generator=generator) * options.init_std
    for shard in table_shards(model, table):
        last_row = shard.first_row + len(shard.weights)
        is_local = (rows >= shard.first_row) & (rows < last_row)
        local = rows[is_local] - shard.first_row
        columns = slice(shard.first_column, shard.first_column + shard.weights.shape[1])
        shard.weights[local] = values[:, columns].to(shard.weights)[is_local]
        for state in shard.states:
            state[local] = 0


class TableShard(NamedTuple):
    """A part of a table on this rank, which may be written.

    Shape:
        weights: (rows, columns), float, of the table from `first_row` and `first_column` on.
        states: (rows,) or (rows, columns), float, of the optimizer.
    """

    first_row: int
    first_column: int
    weights: torch.Tensor
    states: list[torch.Tensor]


def table_shards(model: nn.Module, table: str) -> Iterator[TableShard]:
    """Yields the parts of a table with a fused optimizer that this rank has."""
    for group in table_groups(model):
        for number, config in enumerate(group.config.embedding_tables):
            if config.name == table:
                first_row, first_column = config.local_metadata.shard_offsets
                yield TableShard(
                    first_row,
                    first_column,
                    group.emb_module.split_embedding_weights()[number],
                    group.emb_module.split_optimizer_states()[number],
                )
