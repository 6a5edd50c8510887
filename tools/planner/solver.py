"""Choose a way to place each table and the ranks of its shards: the shortest step that fits.

The step's estimate is TorchRec's: the largest sum over a rank's shards of what each costs. Tables
over all ranks or nodes add the same to each; the others are dealt out, costliest first, each to the
rank (or node) with the least to do that has room. From the cheapest choice of ways, tables of the
busiest rank are placed in another way as long as that makes the step shorter, or, before
anything fits, as long as it makes what does not fit smaller; then again from a choice shaken a bit.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrec.tools.planner.sharding_options import Option

Floats = npt.NDArray[np.float64]
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 1e-4)
"""Of a rank's memory: a table that takes more is large."""
QUANTILES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Of the tables, the largest first: as many are large, also where all have the same size."""
EFFORT = 200_000
FEWEST = 300
MOST = 1500
"""Placements that are tried at least and at most."""
SHAKEN = 3
"""Tables that are placed in ways drawn by chance before the next climb."""
TRIED = 12
"""Tables of the busiest rank that are tried in other ways, the costliest ones."""


@dataclass(frozen=True)
class Space:
    """What ranks have for tables.

    Attributes:
        ranks, ranks_a_node: how many.
        memory: bytes on the accelerator of a rank.
        host: bytes in host memory of a rank.
    """

    ranks: int
    ranks_a_node: int
    memory: int
    host: int


@dataclass(frozen=True)
class Placement:
    """One way for each table, and where its shards lie.

    Attributes:
        chosen: table -> way.
        ranks: table -> ranks of its shards, in order.
        ms, memory, host: (ranks,), of each rank.
        missing: bytes for which there is no room.
    """

    chosen: dict[str, Option]
    ranks: dict[str, list[int]]
    ms: Floats
    memory: Floats
    host: Floats
    missing: float

    @property
    def step_ms(self) -> float:
        """Of the busiest rank."""
        return float(self.ms.max())

    @property
    def order(self) -> tuple[float, float]:
        """Smaller is better: what does not fit, then the step."""
        return self.missing, self.step_ms


def place(
    chosen: Mapping[str, Option], space: Space, nudge: Mapping[str, float] | None = None
) -> Placement:
    """Deal out the shards of tables whose ways are chosen, costliest first.

    Args:
        chosen: table -> way.
        space: what the ranks have.
        nudge: table -> factor of its cost, for the order alone.
    """
    nudge = nudge or {}
    everywhere = [option for option in chosen.values() if option.span == "all"]
    dealt = _Dealt(space, everywhere)
    ranks = {option.table: list(range(space.ranks)) for option in everywhere}
    rest = [option for option in chosen.values() if option.span != "all"]
    rest.sort(key=lambda o: (-o.cost.total * nudge.get(o.table, 1.0), -o.memory, o.table))
    for option in rest:
        if option.span == "node":
            ranks[option.table] = dealt.take_node(option)
        else:
            ranks[option.table] = [dealt.take_rank(option) for _ in range(option.pieces)]
    loads = (dealt.ms, dealt.memory, dealt.host)
    return Placement(dict(chosen), ranks, *loads, _missing(*loads[1:], space))


def placed(chosen: Mapping[str, Option], ranks: Mapping[str, list[int]], space: Space) -> Placement:
    """A placement that somebody else made.

    Args:
        chosen: table -> way.
        ranks: table -> ranks of its shards, in order.
        space: what the ranks have.
    """
    ms, memory, host = (np.zeros(space.ranks) for _ in range(3))
    for table, option in chosen.items():
        for rank in ranks[table]:
            ms[rank] += option.cost.total
            memory[rank] += option.memory
            host[rank] += option.host
    return Placement(dict(chosen), dict(ranks), ms, memory, host, _missing(memory, host, space))


def step_with(placement: Placement, option: Option, space: Space) -> float | None:
    """The step if a table alone went another way, the others staying; None where it has no room.

    Its shards go where the least is to do, as `place` deals them out.
    """
    table = option.table
    ms, memory, host = (part.copy() for part in (placement.ms, placement.memory, placement.host))
    before = placement.chosen[table]
    for rank in placement.ranks[table]:  # one by one: a rank may have several pieces
        ms[rank] -= before.cost.total
        memory[rank] -= before.memory
        host[rank] -= before.host
    room = (memory + option.memory <= space.memory) & (host + option.host <= space.host)
    if option.span == "all":
        return float(ms.max()) + option.cost.total if room.all() else None
    size = space.ranks_a_node if option.span == "node" else 1
    for _ in range(option.pieces):
        rooms = room.reshape(-1, size).all(axis=1)
        if not rooms.any():
            return None
        first = int(np.argmin(np.where(rooms, ms.reshape(-1, size).max(axis=1), np.inf))) * size
        ms[first : first + size] += option.cost.total
        memory[first : first + size] += option.memory
        host[first : first + size] += option.host
        room = (memory + option.memory <= space.memory) & (host + option.host <= space.host)
    return float(ms.max())


def _missing(memory: Floats, host: Floats, space: Space) -> float:
    """Bytes for which there is no room."""
    over = np.maximum(memory - space.memory, 0) + np.maximum(host - space.host, 0)
    return float(over.sum())


class _Dealt:
    """What each rank has so far, and who has the least to do.

    Lists and heaps, not arrays: a shard changes a few numbers, and there are many shards. An entry
    of a heap whose value is not its rank's (node's) any more is dropped when it comes up.

    Args:
        space: what the ranks have.
        everywhere: tables with a shard on each rank, which are there before others are dealt out.
    """

    def __init__(self, space: Space, everywhere: Sequence[Option]) -> None:
        self._space = space
        nodes = -(-space.ranks // space.ranks_a_node)
        ms = sum(option.cost.total for option in everywhere)
        memory = sum(option.memory for option in everywhere)
        host = sum(option.host for option in everywhere)
        self._of_ranks = _Loads([ms] * space.ranks, [memory] * space.ranks, [host] * space.ranks)
        # The most that a rank of each node has; it only grows.
        self._of_nodes = _Loads([ms] * nodes, [memory] * nodes, [host] * nodes)

    @property
    def ms(self) -> Floats:
        """Milliseconds of each rank."""
        return np.array(self._of_ranks.ms, dtype=np.float64)

    @property
    def memory(self) -> Floats:
        """Bytes on the accelerator of each rank."""
        return np.array(self._of_ranks.memory, dtype=np.float64)

    @property
    def host(self) -> Floats:
        """Bytes in host memory of each rank."""
        return np.array(self._of_ranks.host, dtype=np.float64)

    def take_node(self, option: Option) -> list[int]:
        """The node whose busiest rank has the least to do among those with room."""
        size = self._space.ranks_a_node
        node = self._of_nodes.least_busy(option, self._space)
        self._of_nodes.add(node, option)
        ranks = list(range(node * size, (node + 1) * size))
        for rank in ranks:
            self._of_ranks.add(rank, option)
        return ranks

    def take_rank(self, option: Option) -> int:
        """The rank with the least to do among those with room, else the one with most room."""
        rank = self._of_ranks.least_busy(option, self._space)
        self._of_ranks.add(rank, option)
        self._of_nodes.raise_to(rank // self._space.ranks_a_node, self._of_ranks, rank)
        return rank


class _Loads:
    """Milliseconds, bytes and host bytes of ranks or of nodes."""

    def __init__(self, ms: list[float], memory: list[int], host: list[int]) -> None:
        self.ms, self.memory, self.host = ms, memory, host
        self._heap = [(value, place) for place, value in enumerate(ms)]

    def least_busy(self, option: Option, space: Space) -> int:
        """The one with the least to do among those with room, else the one with most room."""
        most, most_host = space.memory - option.memory, space.host - option.host
        full, found, heap = [], None, self._heap
        while heap and found is None:
            entry = heapq.heappop(heap)
            value, place = entry
            if value != self.ms[place]:
                continue  # it has got more since; a newer entry says so
            full.append(entry)
            if self.memory[place] <= most and self.host[place] <= most_host:
                found = place
        for entry in full:
            heapq.heappush(heap, entry)
        if found is None:
            found = min(range(len(self.ms)), key=lambda p: self.memory[p] + self.host[p])
        return found

    def add(self, place: int, option: Option) -> None:
        """A shard."""
        self.ms[place] += option.cost.total
        self.memory[place] += option.memory
        self.host[place] += option.host
        heapq.heappush(self._heap, (self.ms[place], place))

    def raise_to(self, place: int, other: "_Loads", at: int) -> None:
        """Have at least what one of others has."""
        self.memory[place] = max(self.memory[place], other.memory[at])
        self.host[place] = max(self.host[place], other.host[at])
        if other.ms[at] > self.ms[place]:
            self.ms[place] = other.ms[at]
            heapq.heappush(self._heap, (self.ms[place], place))


def solve(options: Mapping[str, Sequence[Option]], space: Space, effort: int = EFFORT) -> Placement:
    """The best placement found; look at `missing` whether it fits.

    The same question has the same answer in every process: what bounds the search is not time but
    the number of shards that are dealt out.

    Args:
        options: table -> its ways, one or more.
        space: what the ranks have.
        effort: tables dealt out in all; each placement deals out all of them.
    """
    tries = _Tries(options, space, min(max(effort // len(options), FEWEST), MOST))
    best = min((tries.place(start) for start in _starts(options, space)), key=_order)
    best = tries.climb(best)
    rng = np.random.default_rng(0)
    names = list(options)
    while tries.left > 0:
        moved = rng.choice(len(names), size=min(SHAKEN, len(names)), replace=False)
        ways = {
            names[t]: options[names[t]][int(rng.integers(len(options[names[t]])))] for t in moved
        }
        tries.nudge = dict(zip(names, np.exp(rng.normal(0, 0.3, len(names))), strict=True))
        best = min(best, tries.climb(tries.place(best.chosen | ways)), key=_order)
    return best


def _order(placement: Placement) -> tuple[float, float]:
    return placement.order


class _Tries:
    """Placements tried so far, of a number that is allowed."""

    def __init__(self, options: Mapping[str, Sequence[Option]], space: Space, allowed: int) -> None:
        self._options, self._space = options, space
        self.left = allowed
        self.nudge: dict[str, float] = {}

    def place(self, chosen: Mapping[str, Option]) -> Placement:
        """One more."""
        self.left -= 1
        return place(chosen, self._space, self.nudge)

    def climb(self, best: Placement) -> Placement:
        """Place one table of the busiest rank in another way, as long as that is better."""
        while (better := self._better(best)) is not None:
            best = better
        return best

    def _better(self, best: Placement) -> Placement | None:
        space = self._space
        excess = (best.memory - space.memory) + (best.host - space.host)
        busiest = int(np.argmax(excess if best.missing else best.ms))
        on_it = [o for t, o in best.chosen.items() if busiest in best.ranks[t]]
        on_it.sort(key=lambda o: -(o.memory + o.host) if best.missing else -o.cost.total)
        for option in on_it if best.missing else on_it[:TRIED]:
            for way in self._options[option.table]:
                if way is option or self.left <= 0:
                    continue
                tried = self.place(best.chosen | {option.table: way})
                if tried.order < best.order:
                    return tried
        return None


def _starts(options: Mapping[str, Sequence[Option]], space: Space) -> Iterator[dict[str, Option]]:
    """Choices by classes of tables: those of little work, then one way for small and one for large.

    A table is large if its values, placed on one rank, take more than a share of a rank, or if it
    is among so many that are the largest.
    """
    # A table's ways from much work to little, so that the last one of a kind is its cheapest.
    ordered = {t: sorted(w, key=lambda o: work(o, space))[::-1] for t, w in options.items()}
    cheapest = {t: ways[-1] for t, ways in ordered.items()}
    of_kind = {t: {(o.sharding, o.kernel): o for o in ways} for t, ways in ordered.items()}
    yield dict(cheapest)
    kinds = sorted({kind for ways in of_kind.values() for kind in ways})
    size = {t: max(o.weights + o.state + o.host for o in ways) for t, ways in options.items()}
    largest = sorted(size, key=lambda table: (-size[table], table))
    counts = {sum(size[t] > share * space.memory for t in size) for share in SHARES}
    counts |= {round(share * len(size)) for share in QUANTILES}
    divided = [frozenset(largest[:count]) for count in sorted(counts - {0, len(size)})]
    for large in kinds:
        for small in kinds:
            for chosen in divided if small != large else [frozenset()]:
                yield {
                    table: ways.get(large if table in chosen else small, cheapest[table])
                    for table, ways in of_kind.items()
                }


def work(option: Option, space: Space) -> float:
    """Milliseconds over all ranks."""
    shards = {"rank": option.pieces, "node": space.ranks_a_node, "all": space.ranks}
    return option.cost.total * shards[option.span]
