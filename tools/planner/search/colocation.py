"""Tables that must be on the same rank: one shard for the search, and apart again in the plan."""

import dataclasses
from collections.abc import Mapping, Sequence

from msrec.tools.planner.cluster import Cluster
from msrec.tools.planner.search.placement import Placement, placement_on
from msrec.tools.planner.sharding_options import ShardCost, ShardingOption
from msrec.tools.planner.tables import TableLoad

Options = Mapping[str, Sequence[ShardingOption]]


def groups_of(tables: Sequence[TableLoad]) -> dict[str, list[str]]:
    """Returns the first table of each label -> all its tables."""
    by_label: dict[str, list[str]] = {}
    for table in tables:
        if table.co_locate is not None:
            by_label.setdefault(table.co_locate, []).append(table.name)
    return {names[0]: names for names in by_label.values() if len(names) > 1}


def merged(
    options: Options, groups: Mapping[str, Sequence[str]]
) -> dict[str, list[ShardingOption]]:
    """Returns the options with each group as one table, under the name of its first table.

    The option of a group has the same place in the list as those of its tables.
    """
    left_out = {name for names in groups.values() for name in names[1:]}
    kept = {name: list(of) for name, of in options.items() if name not in left_out}
    for first, names in groups.items():
        ways = {o.kernel: o for o in options[first]}
        for name in names[1:]:
            of_table = {o.kernel: o for o in options[name]}
            ways = {k: _sum(way, of_table[k]) for k, way in ways.items() if k in of_table}
        kept[first] = list(ways.values())
    return kept


def split(
    placement: Placement, options: Options, groups: Mapping[str, Sequence[str]], cluster: Cluster
) -> Placement:
    """Returns a placement of merged tables as one of all tables."""
    chosen, ranks = dict(placement.options), dict(placement.ranks)
    for first, names in groups.items():
        kernel, on = chosen[first].kernel, ranks[first]
        for name in names:
            chosen[name] = next(o for o in options[name] if o.kernel == kernel)
            ranks[name] = list(on)
    return placement_on(chosen, ranks, cluster)


def _sum(a: ShardingOption, b: ShardingOption) -> ShardingOption:
    """Returns an option with the cost and the bytes of two on the same rank."""
    other_costs = tuple(map(_sum_of_costs, a.other_costs, b.other_costs))
    cost = _sum_of_costs(a.cost, b.cost)
    sizes = ("weights", "state", "host", "inputs", "outputs")
    added = {name: getattr(a, name) + getattr(b, name) for name in sizes}
    latencies = tuple(dict.fromkeys((*a.latencies, *b.latencies)))
    return dataclasses.replace(a, cost=cost, other_costs=other_costs, latencies=latencies, **added)


def _sum_of_costs(a: ShardCost, b: ShardCost) -> ShardCost:
    parts = dataclasses.asdict(a)
    return ShardCost(**{part: ms + getattr(b, part) for part, ms in parts.items()})
