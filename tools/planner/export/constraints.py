"""A plan as Python source: constraints for a call of TorchRec's own planner."""

from collections.abc import Sequence

from msrec.tools.planner.plan import Plan, TablePlan
from msrec.tools.planner.tables import TableLoad

HEADER = '''"""Constraints for TorchRec's planner, from plan {hash} of msrec plan.

{tables} tables on {nodes} x {per_node} {hardware}, {batch} rows of a step on one rank:

    EmbeddingShardingPlanner(topology=..., batch_size={batch}, constraints=constraints)
"""

from torchrec.distributed.planner import ParameterConstraints
'''


def constraints_source(plan: Plan, tables: Sequence[TableLoad]) -> str:
    """Returns Python source with `constraints`, table -> ParameterConstraints.

    Each table may have its planned sharding type and kernel only. TorchRec's planner still chooses
    the ranks; to keep those too, use `load_plan`.

    Args:
        plan: of the tables.
        tables: that the plan was made for, with their lookups.
    """
    by_name = {table.name: table for table in plan.tables}
    lines = [
        HEADER.format(
            hash=plan.hash[:12],
            tables=len(tables),
            nodes=plan.nodes,
            per_node=plan.per_node,
            hardware=plan.hardware,
            batch=plan.batch,
        )
    ]
    if any(table.load_factor is not None for table in plan.tables):
        lines[0] += "from torchrec.distributed.types import CacheParams\n"
    lines.append("constraints = {")
    lines += [_entry(table, by_name[table.name]) for table in tables]
    return "\n".join([*lines, "}", ""])


def _entry(table: TableLoad, planned: TablePlan) -> str:
    """Returns the lines of a table."""
    # TorchRec counts ids per bag: `pooling` ids in `bags` bags of each row.
    bags = [table.bags] * table.features
    values: dict[str, object] = {
        "sharding_types": [planned.sharding],
        "compute_kernels": [planned.kernel],
        "pooling_factors": [table.pooling / table.bags] * table.features,
        "num_poolings": None if table.bags == 1 else bags,
        "batch_sizes": None if table.batch is None else [table.batch] * table.features,
        "min_partition": table.min_partition,
        "is_weighted": True if table.weighted else None,
    }
    arguments = [f"{name}={value!r}" for name, value in values.items() if value is not None]
    if planned.load_factor is not None:
        arguments.append(f"cache_params=CacheParams(load_factor={planned.load_factor!r})")
    inner = "".join(f"        {argument},\n" for argument in arguments)
    return f"    {table.name!r}: ParameterConstraints(\n{inner}    ),"
