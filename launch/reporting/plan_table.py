"""Shows a sharding plan and the size of a model as a table."""

from rich.table import Table
from torch import nn
from torchrec.distributed.types import ShardingPlan

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES, HALF_BYTES, format_bytes, format_ranks
from msrec.model.distributed.tables import frozen_tables, table_sizes


def plan_table(plan: ShardingPlan, model: nn.Module, world_size: int) -> Table:
    """Returns a table with the sharding, ranks and size of each embedding table.

    Args:
        plan: sharding of the model's tables.
        model: the model before sharding.
        world_size: number of ranks of the plan.

    Units:
        size: weights without optimizer state, over all ranks; float16 of frozen tables.
        per rank: the same on the rank with the most.
    """
    table = Table(title=f"plan for {world_size} rank{'s' if world_size > 1 else ''}")
    for column in ("table", "sharding", "ranks"):
        table.add_column(column)
    for column in ("rows", "dim", "size", "per rank"):
        table.add_column(column, justify="right")
    total, on_rank = 0, [0] * world_size
    sizes, frozen = table_sizes(model), frozen_tables(model)
    for module in plan.plan.values():
        for name, sharding in module.items():
            rows, dim = sizes[name]
            value_bytes = HALF_BYTES if name in frozen else FLOAT_BYTES
            by_rank = _values_by_rank(sharding, rows * dim, world_size)
            by_rank = [value_bytes * values for values in by_rank]
            on_rank = [a + b for a, b in zip(on_rank, by_rank, strict=True)]
            total += sum(by_rank)
            table.add_row(
                name,
                sharding.sharding_type,
                format_ranks(list(sharding.ranks or range(world_size))),
                f"{rows:,}",
                f"{dim}",
                format_bytes(sum(by_rank)),
                format_bytes(max(by_rank)),
            )
    table.add_section()
    table.add_row("all tables", "", "", "", "", format_bytes(total), format_bytes(max(on_rank)))
    dense = dense_parameters(model)
    note = "on every rank"
    table.add_row(
        "dense parameters", note, "", f"{dense:,}", "", "", format_bytes(dense * FLOAT_BYTES)
    )
    return table


def dense_parameters(model: nn.Module) -> int:
    """Returns the number of weights outside the embedding tables."""
    return sum(p.numel() for name, p in model.named_parameters() if ".embedding_bags." not in name)


def _values_by_rank(sharding: object, whole: int, world_size: int) -> list[int]:
    """Returns the values of a table on each rank; a replicated table is whole on every rank."""
    shards = getattr(getattr(sharding, "sharding_spec", None), "shards", None)
    if not shards:
        return [whole] * world_size
    by_rank = [0] * world_size
    for shard in shards:
        rows, dim = shard.shard_sizes
        by_rank[shard.placement.rank()] += rows * dim
    return by_rank
