"""Search for the sharding options and ranks that give the shortest step that fits in memory.

The search minimises the step time of the critical rank, which is the rank with the largest sum of
estimated shard costs and latency. As long as something does not fit, it minimises the excess memory
first. Of equal steps, the one with less host memory is better, and then the one with the emptier
fullest rank.

1. Starts: every small table gets one option and every large table another one, for all pairs of
   options and several limits between small and large. The best of these placements is kept.
2. Local search: a table of the critical rank gets another option, as long as that is better.
3. Restarts from a seeded random perturbation of the best placement: a few tables get random options
   and the order of assignment gets noise. Local search follows. The best of all is the result.

The search is fast because each option is estimated once, before it begins, and a placement is then
made greedily (`assign_shards`), in about a millisecond for hundreds of tables. It is bounded by the
number of placements and not by time, so a request has the same plan in every process.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from msrec.tools.planner.cluster import Cluster
from msrec.tools.planner.search.placement import Placement, assign_shards
from msrec.tools.planner.sharding_options import ShardingOption

MEMORY_SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 1e-4)
"""Limits of large tables: those that take more than this share of a rank's memory."""
TABLE_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""More limits of large tables: this share of all tables, the largest first. These also divide
tables of equal size."""
EFFORT = 200_000
"""Tables assigned in all placements together."""
MIN_PLACEMENTS = 300
MAX_PLACEMENTS = 1500
PERTURBED_TABLES = 3
"""Tables that get a random option in a restart."""
ORDER_NOISE = 0.3
"""Standard deviation of the logarithm of the noise in the order of assignment."""
CRITICAL_TABLES = 12
"""Costliest tables of the critical rank that local search tries."""
MEMORY_PLACEMENTS = 100
"""Placements at the end that look for an emptier fullest rank, with a step as short."""

Options = Mapping[str, Sequence[ShardingOption]]


def solve(options: Options, cluster: Cluster, effort: int = EFFORT) -> Placement:
    """Returns the best placement found; it fits if its `excess` is 0.

    Args:
        options: table -> its sharding options, one or more.
        cluster: the ranks.
        effort: tables assigned in all placements together; every placement assigns all tables.
    """
    placements = min(max(effort // len(options), MIN_PLACEMENTS), MAX_PLACEMENTS)
    search = _Search(options, cluster, placements)
    starts = (search.place(start) for start in _starts(options, cluster))
    best = search.improve(min(starts, key=_objective))
    rng = np.random.default_rng(0)
    names = list(options)
    while search.placements_left > 0:
        tables = rng.choice(len(names), size=min(PERTURBED_TABLES, len(names)), replace=False)
        perturbed = dict(best.options)
        for name in (names[t] for t in tables):
            perturbed[name] = options[name][int(rng.integers(len(options[name])))]
        noise = np.exp(rng.normal(0, ORDER_NOISE, len(names))).tolist()
        search.order_noise = dict(zip(names, noise, strict=True))
        best = min(best, search.improve(search.place(perturbed)), key=_objective)
    search.placements_left = MEMORY_PLACEMENTS
    return search.relieve(best)


def total_shards(option: ShardingOption, cluster: Cluster) -> int:
    """Returns the number of shards of a table."""
    return option.column_shards * cluster.ranks_of(option)


def total_cost_ms(option: ShardingOption, cluster: Cluster) -> float:
    """Returns the milliseconds of all shards of a table together."""
    return option.cost.busy * total_shards(option, cluster)


def _objective(placement: Placement) -> tuple[float, float, float, float]:
    return placement.objective


class _Search:
    """Local search, with a limited number of placements."""

    def __init__(self, options: Options, cluster: Cluster, max_placements: int) -> None:
        self._options, self._cluster = options, cluster
        self.placements_left = max_placements
        self.order_noise: dict[str, float] = {}

    def place(self, options: Mapping[str, ShardingOption]) -> Placement:
        """Makes a placement and counts it."""
        self.placements_left -= 1
        return assign_shards(options, self._cluster, self.order_noise)

    def improve(self, best: Placement) -> Placement:
        """Changes one table's option at a time, as long as that is better."""
        while (better := self._neighbour(best)) is not None:
            best = better
        return best

    def relieve(self, best: Placement) -> Placement:
        """Changes tables of the fullest rank, as long as that is better."""
        self.order_noise = {}
        while best.ms.size > 1:
            rank = int(np.argmax(self._cluster.fullness(best.memory)))
            on_rank = [o for table, o in best.options.items() if rank in best.ranks[table]]
            on_rank.sort(key=lambda o: -o.memory)
            better = self._neighbour(best, on_rank[:CRITICAL_TABLES])
            if better is None:
                break
            best = better
        return best

    def _neighbour(
        self, best: Placement, tables: Sequence[ShardingOption] | None = None
    ) -> Placement | None:
        """Returns the first better placement with another option of one table.

        The tables are those of the critical rank, or the given ones.
        """
        for current in self._critical_options(best) if tables is None else tables:
            for option in self._options[current.table]:
                if option is current or self.placements_left <= 0:
                    continue
                placement = self.place(best.options | {current.table: option})
                if placement.objective < best.objective:
                    return placement
        return None

    def _critical_options(self, best: Placement) -> list[ShardingOption]:
        """Returns the options of the costliest tables on the critical rank.

        As long as something does not fit, that is the rank with the most excess memory, and all of
        its tables are returned, the largest first.
        """
        excess = (best.memory - self._cluster.memory) + (best.host - self._cluster.host)
        rank = int(np.argmax(excess if best.excess else best.ms))
        on_rank = [o for table, o in best.options.items() if rank in best.ranks[table]]
        if best.excess:
            return sorted(on_rank, key=lambda o: -(o.memory + o.host))
        return sorted(on_rank, key=lambda o: -o.cost.busy)[:CRITICAL_TABLES]


def _starts(options: Options, cluster: Cluster) -> Iterator[dict[str, ShardingOption]]:
    """Yields the choices that the search starts with.

    First the cheapest option of each table, then one kind of option (sharding type and kernel) for
    large tables and one for small tables. A table without that kind keeps its cheapest option.
    """
    by_kind, cheapest = {}, {}
    for table, of_table in options.items():
        # Sorted by falling cost, because a dict keeps the last, cheapest option of each kind.
        falling = sorted(of_table, key=lambda o: total_cost_ms(o, cluster))[::-1]
        by_kind[table] = {(o.sharding, o.kernel): o for o in falling}
        cheapest[table] = falling[-1]
    yield dict(cheapest)
    kinds = sorted({kind for of_kind in by_kind.values() for kind in of_kind})
    large_sets = _large_tables(options, cluster)
    for large_kind, small_kind in itertools.product(kinds, kinds):
        for large in large_sets if small_kind != large_kind else [frozenset[str]()]:
            yield {
                table: of_kind.get(large_kind if table in large else small_kind, cheapest[table])
                for table, of_kind in by_kind.items()
            }


def _large_tables(options: Options, cluster: Cluster) -> list[frozenset[str]]:
    """Returns sets of large tables, one for each limit, the smallest set first."""
    size = {t: max(o.weights + o.state + o.host for o in of) for t, of in options.items()}
    largest = sorted(size, key=lambda table: (-size[table], table))
    memory = min(pool.memory for pool in cluster.pools)
    counts = {sum(s > share * memory for s in size.values()) for share in MEMORY_SHARES}
    counts |= {round(share * len(size)) for share in TABLE_SHARES}
    return [frozenset(largest[:count]) for count in sorted(counts - {0, len(size)})]
