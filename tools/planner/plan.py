"""A plan with all that was estimated, as one JSON file that training takes as well."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.options import Estimator, Option, Sharding, options_of
from msrec.tools.planner.solve import Placement, Space, place, solve, work
from msrec.tools.planner.tables import TableLoad, meta_collection

GIB = 2**30
FLOAT_BYTES = 4
NEXT_TRIED = 2
"""Other ways of a table, those of the least work, among which the next best is looked for."""
PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TablePlan(_Part):
    """Where a table goes, what it costs there, and the next best way.

    Units:
        weights, state, host: bytes over all ranks. ms: of its costliest shard, estimated.
        next_step_ms: the whole step if this table alone went the next best way; None where no other
            way fits.
    """

    name: str
    rows: int
    dim: int
    sharding: Sharding
    kernel: str
    load_factor: float | None
    ranks: list[int]
    weights: int
    state: int
    host: int
    ms: dict[str, float]
    next_way: str | None
    next_step_ms: float | None


class RankLoad(_Part):
    """One rank: bytes by what they are for, and estimated milliseconds."""

    memory: dict[str, int]
    host: int
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """As if nothing overlapped."""
        return sum(self.ms.values())

    @property
    def total_memory(self) -> int:
        """On the accelerator."""
        return sum(self.memory.values())


class Plan(_Part):
    """What `msrec plan` writes."""

    format: int = 1
    world_size: int
    modules: dict[str, dict[str, Any]]
    """As `msrec.model.plan` reads it."""
    hash: str
    """Of tables, topology, constraints and placement; the same in every process."""
    hardware: str
    specification: Hardware
    nodes: int
    per_node: int
    batch: int
    optimizer: str
    capacity: int
    """Bytes on an accelerator that may be used."""
    tables: list[TablePlan]
    ranks: list[RankLoad]
    fits: bool

    @property
    def step_ms(self) -> float:
        """Estimated time of the tables' part of a step, of the busiest rank."""
        return max(rank.total_ms for rank in self.ranks)

    @property
    def busiest(self) -> int:
        """The rank that the others wait for."""
        return int(np.argmax([rank.total_ms for rank in self.ranks]))

    @property
    def fullest(self) -> int:
        """The rank with the most memory in use."""
        return int(np.argmax([rank.total_memory for rank in self.ranks]))

    @property
    def imbalance(self) -> float:
        """Busiest rank over the mean, 1 at best."""
        mean = sum(rank.total_ms for rank in self.ranks) / self.world_size
        return self.step_ms / mean if mean else 1.0


@dataclass(frozen=True)
class Request:
    """What to plan.

    Attributes:
        tables: to place.
        module: dotted name of the collection in the model.
        batch: rows of a step on one rank.
        optimizer: of the tables, "rowwise_adagrad" or "adam".
        hardware: name of the accelerator, and what it can do.
        nodes, per_node: how many ranks.
        shardings: ways that are allowed.
        load_factors: of caches, if tables may lie in host memory.
        dense: bytes on every rank of what is not tables, by line.
        budget: the most bytes of an accelerator; None is all of it.
        headroom: the share that is left to the allocator and to what nobody foresees.
    """

    tables: Sequence[TableLoad]
    batch: int
    hardware: tuple[str, Hardware]
    nodes: int
    per_node: int
    module: str = "ebc"
    optimizer: str = "rowwise_adagrad"
    shardings: Sequence[Sharding] = ("table_wise", "row_wise", "table_row_wise")
    load_factors: Sequence[float] = ()
    dense: Mapping[str, int] = field(default_factory=dict)
    budget: int | None = None
    headroom: float = 0.05

    @property
    def capacity(self) -> int:
        """Bytes of an accelerator that may be used."""
        memory = self.hardware[1].memory
        return int(min(memory, self.budget or memory) * (1 - self.headroom))


def make_plan(request: Request) -> Plan:
    """Place the tables and tell what each rank and each table would hold and do.

    The plan is there also where it does not fit (`fits`), so that one can see what is too much.

    Raises:
        ValueError: a table has no allowed way at all.
    """
    hardware = request.hardware[1]
    world_size = request.nodes * request.per_node
    collection = meta_collection(request.tables, request.optimizer)
    topology = hardware.topology(world_size, request.per_node)
    estimator = Estimator(topology, request.batch, request.optimizer)
    options = options_of(
        request.tables, collection, estimator, request.shardings, request.load_factors
    )
    for table, ways in options.items():
        if not ways:
            raise ValueError(
                f"table {table!r} must have a way to be placed; of {', '.join(request.shardings)} "
                f"none can take it on {world_size} ranks. Allow table_wise."
            )
    space = Space(
        world_size,
        request.per_node,
        request.capacity - sum(request.dense.values()),
        hardware.host_memory,
    )
    placement = solve(options, space)
    by_name = {table.name: table for table in request.tables}
    modules = {
        request.module: {t: _entry(o, placement, by_name, request) for t, o in _sorted(placement)}
    }
    return Plan(
        world_size=world_size,
        modules=modules,
        hash=_hash(request, modules),
        hardware=request.hardware[0],
        specification=hardware,
        nodes=request.nodes,
        per_node=request.per_node,
        batch=request.batch,
        optimizer=request.optimizer,
        capacity=request.capacity,
        tables=[_table(by_name[t], o, placement, options[t], space) for t, o in _sorted(placement)],
        ranks=_ranks(placement, request),
        fits=not placement.missing,
    )


def _sorted(placement: Placement) -> list[tuple[str, Option]]:
    return sorted(placement.chosen.items())


def _table(
    table: TableLoad, option: Option, placement: Placement, ways: Sequence[Option], space: Space
) -> TablePlan:
    cheapest = sorted((w for w in ways if w is not option), key=lambda w: work(w, space))
    others = [
        (tried.order, way)
        for way in cheapest[:NEXT_TRIED]
        for tried in [place(placement.chosen | {table.name: way}, space, placement.nudge)]
    ]
    order, way = min(others, key=lambda pair: pair[0], default=((0.0, 0.0), None))
    shards = len(placement.ranks[table.name])
    whole = table.num_bytes * (space.ranks if option.sharding == "data_parallel" else 1)
    return TablePlan(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        sharding=option.sharding,
        kernel=option.kernel,
        load_factor=option.load_factor,
        ranks=placement.ranks[table.name],
        weights=whole if option.load_factor is None else option.weights * shards,
        state=option.state * shards,
        host=option.host * shards,
        ms={part: getattr(option.cost, part) for part in PARTS},
        next_way=None if way is None else _way(way),
        next_step_ms=None if way is None or order[0] else order[1],
    )


def _way(option: Option) -> str:
    cached = "" if option.load_factor is None else f", {option.load_factor:.0%} cached"
    return f"{option.sharding}{cached}"


def _ranks(placement: Placement, request: Request) -> list[RankLoad]:
    world_size = request.nodes * request.per_node
    memory = [dict.fromkeys(("table weights", "optimizer state"), 0) for _ in range(world_size)]
    for lines in memory:
        lines |= {"ids and vectors on the way": 0, **request.dense}
    host = [0] * world_size
    ms = [dict.fromkeys(PARTS, 0.0) for _ in range(world_size)]
    for table, option in placement.chosen.items():
        for rank in placement.ranks[table]:
            memory[rank]["table weights"] += option.weights
            memory[rank]["optimizer state"] += option.state
            buffers = option.memory - option.weights - option.state
            memory[rank]["ids and vectors on the way"] += buffers
            host[rank] += option.host
            for part in PARTS:
                ms[rank][part] += getattr(option.cost, part)
    return [RankLoad(memory=m, host=h, ms=t) for m, h, t in zip(memory, host, ms, strict=True)]


def _entry(
    option: Option, placement: Placement, tables: Mapping[str, TableLoad], request: Request
) -> dict[str, Any]:
    """A table's entry in the format of `msrec.model.plan`."""
    table, ranks = tables[option.table], placement.ranks[option.table]
    device = request.hardware[1].device
    shards = []
    rows, columns = option.shape
    for place_, rank in enumerate(ranks if option.sharding != "data_parallel" else []):
        first = (place_ * rows, 0) if option.span != "rank" else (0, place_ * columns)
        size = (
            max(0, min(rows, table.rows - first[0])),
            max(0, min(columns, table.dim - first[1])),
        )
        local = f"cuda:{rank % request.per_node}" if device == "cuda" else "cpu"
        shards.append(
            {
                "offsets": [min(first[0], table.rows), first[1]],
                "sizes": list(size),
                "placement": f"rank:{rank}/{local}",
            }
        )
    return {
        "sharding_type": option.sharding,
        "compute_kernel": option.kernel,
        "ranks": ranks,
        "shards": shards,
        **({} if option.load_factor is None else {"load_factor": option.load_factor}),
    }


def _hash(request: Request, modules: Mapping[str, Any]) -> str:
    told = {
        "tables": [table.model_dump() for table in request.tables],
        "optimizer": request.optimizer,
        "batch": request.batch,
        "hardware": request.hardware[1].model_dump(),
        "nodes": request.nodes,
        "per_node": request.per_node,
        "shardings": list(request.shardings),
        "load_factors": list(request.load_factors),
        "capacity": request.capacity,
        "modules": modules,
    }
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
