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
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.tools.planner.options import Option

Floats = npt.NDArray[np.float64]
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 1e-4)
"""Of a rank's memory: a table that takes more is large."""
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
        nudge: table -> factor of its cost in the order in which shards were dealt out.
    """

    chosen: dict[str, Option]
    ranks: dict[str, list[int]]
    ms: Floats
    memory: Floats
    host: Floats
    missing: float
    nudge: Mapping[str, float]

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
    missing = np.maximum(dealt.memory - space.memory, 0) + np.maximum(dealt.host - space.host, 0)
    return Placement(
        dict(chosen), ranks, dealt.ms, dealt.memory, dealt.host, float(missing.sum()), nudge
    )


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
    missing = np.maximum(memory - space.memory, 0) + np.maximum(host - space.host, 0)
    return Placement(dict(chosen), dict(ranks), ms, memory, host, float(missing.sum()), {})


class _Dealt:
    """What each rank has so far, and who has the least to do.

    Args:
        space: what the ranks have.
        everywhere: tables with a shard on each rank, which are there before others are dealt out.
    """

    def __init__(self, space: Space, everywhere: Sequence[Option]) -> None:
        self.ms, self.memory, self.host = (np.zeros(space.ranks) for _ in range(3))
        self._space = space
        for option in everywhere:
            self._add(slice(None), option)
        self._heap = [(value, rank) for rank, value in enumerate(self.ms.tolist())]
        size = space.ranks_a_node
        # The most that a rank of each node has; it only grows.
        self._node_ms, self._node_memory, self._node_host = (
            values[::size].copy() for values in (self.ms, self.memory, self.host)
        )

    def _add(self, ranks: slice | int, option: Option) -> None:
        """A shard for each of these ranks."""
        self.ms[ranks] += option.cost.total
        self.memory[ranks] += option.memory
        self.host[ranks] += option.host

    def take_node(self, option: Option) -> list[int]:
        """The node whose busiest rank has the least to do among those with room."""
        size = self._space.ranks_a_node
        memory, host = self._node_memory, self._node_host
        room = self._has_room(memory, host, option)
        fullness = np.where(room, self._node_ms, np.inf) if room.any() else memory + host
        node = int(np.argmin(fullness))
        first = node * size
        self._add(slice(first, first + size), option)
        self._node_ms[node] += option.cost.total
        memory[node] += option.memory
        host[node] += option.host
        ranks = list(range(first, first + size))
        for rank, value in zip(ranks, self.ms[first : first + size].tolist(), strict=True):
            heapq.heappush(self._heap, (value, rank))
        return ranks

    def take_rank(self, option: Option) -> int:
        """The rank with the least to do among those with room, else the one with most room."""
        full = []
        found = None
        while self._heap and found is None:
            value, rank = heapq.heappop(self._heap)
            if value != self.ms[rank]:
                continue  # it has got more since; a newer entry says so
            if self._has_room(self.memory[rank], self.host[rank], option):
                found = rank
            else:
                full.append((value, rank))
        if found is None:
            found = int(np.argmin(self.memory + self.host))
        self._add(found, option)
        node = found // self._space.ranks_a_node
        self._node_ms[node] = max(self._node_ms[node], self.ms[found])
        self._node_memory[node] = max(self._node_memory[node], self.memory[found])
        self._node_host[node] = max(self._node_host[node], self.host[found])
        for entry in (*full, (float(self.ms[found]), found)):
            heapq.heappush(self._heap, entry)
        return found

    def _has_room(self, memory: Any, host: Any, option: Option) -> Any:
        space = self._space
        return (memory + option.memory <= space.memory) & (host + option.host <= space.host)


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

    A table is large if its values, placed on one rank, take more than a share of a rank.
    """
    # A table's ways from much work to little, so that the last one of a kind is its cheapest.
    ordered = {t: sorted(w, key=lambda o: work(o, space))[::-1] for t, w in options.items()}
    cheapest = {t: ways[-1] for t, ways in ordered.items()}
    of_kind = {t: {(o.sharding, o.kernel): o for o in ways} for t, ways in ordered.items()}
    yield dict(cheapest)
    kinds = sorted({kind for ways in of_kind.values() for kind in ways})
    size = {t: max(o.weights + o.state + o.host for o in ways) for t, ways in options.items()}
    for large in kinds:
        for small in kinds:
            for share in SHARES if small != large else (0.0,):
                limit = share * space.memory
                yield {
                    table: ways.get(large if size[table] > limit else small, cheapest[table])
                    for table, ways in of_kind.items()
                }


def work(option: Option, space: Space) -> float:
    """Milliseconds over all ranks."""
    shards = {"rank": option.pieces, "node": space.ranks_a_node, "all": space.ranks}
    return option.cost.total * shards[option.span]
