"""A plan with all that was estimated, as one JSON file that training takes as well."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from msrec.launch.config import RunConfig
from msrec.model.distributed.sharding import TableSharding
from msrec.model.distributed.sharding_plan import plan_hash, shard_entry, table_entry
from msrec.tools.planner.dense_memory import DenseLoad
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.sharding_options import SPAN, Estimator, Option, options_of, way_name
from msrec.tools.planner.solver import Placement, Space, placed, solve, step_with, work
from msrec.tools.planner.tables import Sharding, TableLoad, meta_collection

GIB = 2**30
MODULE = "ranker.embeddings.ebc"
"""Dotted name of the collection in a model of ours."""
NEXT_TRIED = 2
"""Other ways of a table, those of the least work, among which the next best is looked for."""
TABLE_LINES = ("embedding weights", "optimizer state", "input buffers", "communication buffers")
PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TablePlan(_Part):
    """Where a table goes, what it costs there, and the next best way.

    Units:
        weights, state, host: bytes over all ranks. ms: of its costliest shard, estimated.
        next_step_ms: the whole step if this table alone went the next best way and the others
            stayed; None where no other way fits.
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

    @property
    def total_ms(self) -> float:
        """Of a shard, as if nothing overlapped."""
        return sum(self.ms.values())

    @property
    def held(self) -> float:
        """Bytes of weights and state of a shard, a mean."""
        return (self.weights + self.state) / len(self.ranks)

    @property
    def way(self) -> str:
        """How it is placed, for people."""
        return way_name(self.sharding, self.kernel, self.load_factor)

    @property
    def step_then(self) -> str:
        """What the next best way comes to, for people; empty where there is none."""
        if self.next_way is None:
            return ""
        return "does not fit" if self.next_step_ms is None else f"{self.next_step_ms:.2f} ms"


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
    """As `msrec.model.distributed.sharding_plan` reads it."""
    hash: str
    """Of all the rest, see `plan_hash`; the same in every process."""
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
    def by_cost(self) -> list[TablePlan]:
        """Tables, the costliest first."""
        return sorted(self.tables, key=lambda table: (-table.total_ms, table.name))

    @property
    def alike(self) -> list[list[TablePlan]]:
        """Classes of tables that are alike and placed alike, the costliest table first."""
        classes: dict[tuple[object, ...], list[TablePlan]] = {}
        for each in self.by_cost:
            same = (each.rows, each.dim, each.way, each.kernel, each.total_ms, each.next_way)
            classes.setdefault(same, []).append(each)
        return list(classes.values())

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
        batch: rows of a step on one rank; or, if that is None, `global_batch`, over all ranks.
        optimizer: of the tables, "rowwise_adagrad" or "adam".
        hardware: name of the accelerator, and what it can do.
        nodes, per_node: how many ranks.
        shardings: ways that are allowed; None is what `msrec train` runs with if there is a config,
            else all.
        load_factors: of caches, if tables may lie in host memory.
        dense: bytes on every rank of what is not tables.
        budget: the most bytes of an accelerator; None is all of it.
        headroom: the share that is left to the allocator and to what nobody foresees.
        config: of a run of ours; None for other people's tables.
    """

    tables: Sequence[TableLoad]
    batch: int | None
    hardware: tuple[str, Hardware]
    nodes: int
    per_node: int
    optimizer: str = "rowwise_adagrad"
    shardings: Sequence[Sharding] | None = None
    load_factors: Sequence[float] = ()
    dense: DenseLoad = DenseLoad()
    budget: int | None = None
    headroom: float = 0.05
    global_batch: int = 4096
    config: RunConfig | None = None

    @property
    def module(self) -> str:
        """Dotted name of the collection in the model."""
        return "ebc" if self.config is None else MODULE

    @property
    def fixed_lines(self) -> dict[str, int]:
        """Bytes of an accelerator that no placement changes, by line."""
        lines = self.dense.at(self.share)
        if self.hardware[1].device == "cpu":
            lines["rows being read"] = self.dense.host(self.share)
        return lines

    @property
    def fixed_host(self) -> int:
        """Bytes of host memory that no placement changes; on CPU they are among the lines."""
        return 0 if self.hardware[1].device == "cpu" else self.dense.host(self.share)

    @property
    def allowed(self) -> Sequence[Sharding]:
        """Ways of a table that does not say its own."""
        if self.shardings is not None:
            return self.shardings
        if self.config is None:
            return tuple(SPAN)
        is_replicated = self.optimizer == "adam" and self.hardware[1].device == "cpu"
        return ("data_parallel",) if is_replicated else get_args(TableSharding)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.per_node

    @property
    def share(self) -> int:
        """Rows of a step on one rank."""
        return self.batch or max(self.global_batch // self.world_size, 1)

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
    options, _, space = _posed(request)
    for table in request.tables:
        if not options[table.name]:
            allowed = [table.sharding] if table.sharding else request.allowed
            where = "" if table.kernel is None else f" with kernel {table.kernel}"
            raise ValueError(
                f"table {table.name!r} must have a way to be placed; of "
                f"{', '.join(allowed)}{where} none can take its {table.rows:,} rows of {table.dim} "
                f"on {request.nodes} x {request.per_node} ranks. Allow table_wise, kernel fused."
            )
    return _plan(request, options, solve(options, space), space)


def plan_as_placed(request: Request, entries: Mapping[str, Any]) -> Plan:
    """What the estimates say of a plan that is there already.

    Args:
        request: what it was made for.
        entries: table -> its entry in the plan's file.

    Raises:
        ValueError: the request has other tables.
    """
    names = {table.name for table in request.tables}
    if names != set(entries):
        other = ", ".join(sorted(names ^ set(entries))[:3])
        raise ValueError(
            f"the plan must have the tables of the model; only one of them has {other}."
        )
    options, option_of, space = _posed(request)
    chosen, ranks = {}, {}
    for table in request.tables:
        entry = entries[table.name]
        kernel: Any = entry["compute_kernel"].replace("dense", "fused")
        factor = entry.get("load_factor")
        way = option_of(table, entry["sharding_type"], kernel, factor)
        if way is None:  # fewer rows than ranks: some shards are empty
            raise ValueError(
                f"table {table.name!r} is planned {entry['sharding_type']}, of which there is no "
                f"estimate for {table.rows:,} rows on {request.world_size} ranks."
            )
        chosen[table.name] = way
        ranks[table.name] = list(entry["ranks"]) or list(range(request.world_size))
    return _plan(request, options, placed(chosen, ranks, space), space)


def _posed(
    request: Request,
) -> tuple[dict[str, list[Option]], Callable[..., Option | None], Space]:
    """The ways of each table, what estimates any other way, and what the ranks have for them."""
    hardware = request.hardware[1]
    topology = hardware.topology(request.world_size, request.per_node)
    space = Space(
        request.world_size,
        request.per_node,
        request.capacity - sum(request.fixed_lines.values()),
        hardware.host_memory - request.fixed_host,
    )
    estimator = Estimator(topology, request.share, request.optimizer)
    collection = meta_collection(request.tables, request.optimizer)
    options = options_of(
        request.tables, collection, estimator, request.allowed, request.load_factors
    )

    def option_of(table: TableLoad, *way: Any) -> Option | None:
        return estimator.option(table, collection, *way)

    return options, option_of, space


def _plan(
    request: Request, options: Mapping[str, Sequence[Option]], placement: Placement, space: Space
) -> Plan:
    by_name = {table.name: table for table in request.tables}
    chosen = sorted(placement.chosen.items())
    modules = {
        request.module: {t: _entry(by_name[t], o, placement.ranks[t], request) for t, o in chosen}
    }
    plan = Plan(
        world_size=request.world_size,
        modules=modules,
        hash="",
        hardware=request.hardware[0],
        specification=request.hardware[1],
        nodes=request.nodes,
        per_node=request.per_node,
        batch=request.share,
        optimizer=request.optimizer,
        capacity=request.capacity,
        tables=[_table(by_name[t], o, placement, options[t], space) for t, o in chosen],
        ranks=_ranks(placement, request),
        fits=not placement.missing,
    )
    return plan.model_copy(update={"hash": plan_hash(plan.model_dump(mode="json"))})


def _table(
    table: TableLoad, option: Option, placement: Placement, ways: Sequence[Option], space: Space
) -> TablePlan:
    cheapest = sorted((w for w in ways if w is not option), key=lambda w: work(w, space))
    tried = [(step_with(placement, way, space), way) for way in cheapest[:NEXT_TRIED]]
    with_room = [(step, way) for step, way in tried if step is not None]
    step, way = min(
        with_room, key=lambda pair: pair[0], default=tried[0] if tried else (None, None)
    )
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
        weights=whole if not option.host else option.weights * shards,
        state=option.state * shards,
        host=option.host * shards,
        ms={part: getattr(option.cost, part) for part in PARTS},
        next_way=None if way is None else way_name(way.sharding, way.kernel, way.load_factor),
        next_step_ms=step,
    )


def _ranks(placement: Placement, request: Request) -> list[RankLoad]:
    world_size = request.world_size
    memory = [dict.fromkeys(TABLE_LINES, 0) | request.fixed_lines for _ in range(world_size)]
    host = [request.fixed_host] * world_size
    ms = [dict.fromkeys(PARTS, 0.0) for _ in range(world_size)]
    for table, option in placement.chosen.items():
        for rank in placement.ranks[table]:
            buffers = option.memory - option.weights - option.state - option.inputs
            parts = (option.weights, option.state, option.inputs, buffers)
            for line, size in zip(TABLE_LINES, parts, strict=True):
                memory[rank][line] += size
            host[rank] += option.host
            for part in PARTS:
                ms[rank][part] += getattr(option.cost, part)
    return [RankLoad(memory=m, host=h, ms=t) for m, h, t in zip(memory, host, ms, strict=True)]


def _entry(
    table: TableLoad, option: Option, ranks: Sequence[int], request: Request
) -> dict[str, Any]:
    """A table's entry in the format of `msrec.model.distributed.sharding_plan`."""
    device = request.hardware[1].device
    rows, columns = option.shape
    shards = []
    for number, rank in enumerate(ranks if option.sharding != "data_parallel" else []):
        row, column = (0, number * columns) if option.span == "rank" else (number * rows, 0)
        row = min(row, table.rows)  # the last shards of a table may be empty
        sizes = [min(rows, table.rows - row), min(columns, table.dim - column)]
        local = f"cuda:{rank % request.per_node}" if device == "cuda" else "cpu"
        shards.append(shard_entry([row, column], sizes, f"rank:{rank}/{local}"))
    return table_entry(option.sharding, option.kernel, ranks, option.load_factor, shards)
