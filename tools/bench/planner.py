"""`msrec bench planner`: our plans, against TorchRec's proposers and partitioners."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.partitioners import (
    GreedyPerfPartitioner,
    MemoryBalancedPartitioner,
)
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.proposers import (
    DynamicProgrammingProposer,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption

from msrec.tools.bench.harness.measure import Finding, compare_times, compare_values, now
from msrec.tools.bench.harness.report import console, prepare, report
from msrec.tools.planner.export.published import published_steps
from msrec.tools.planner.hardware import Hardware, load_hardware
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import Sharding, TableLoad
from msrec.tools.planner.torchrec_times import meta_collection, topology

NODES, PER_NODE, BATCH = 2, 8, 2048
HEADROOM = 0.05
OFFERED_BY_TORCHREC: tuple[Sharding, ...] = (
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "data_parallel",
)
"""Sharding types that TorchRec's planner searches without constraints; not grid."""
PROPOSERS: dict[str, Callable[[], object]] = {
    "greedy": GreedyProposer,
    "greedy, wide": lambda: GreedyProposer(use_depth=False),
    "uniform": UniformProposer,
    "dynamic programming": DynamicProgrammingProposer,
    "grid search": GridSearchProposer,
}
PARTITIONERS: dict[str, Callable[[], object]] = {
    "greedy": GreedyPerfPartitioner,
    "memory balanced": MemoryBalancedPartitioner,
}


def bench_planner(
    seconds: Annotated[
        int, typer.Option(min=10, help="limit of TorchRec's defaults on a set, and of all pairs")
    ] = 600,
) -> None:
    """Sharding plans for seven sets of tables, against TorchRec's planner.

    A pair is one of TorchRec's proposers and one of its partitioners. Plans are compared by the
    step time that TorchRec's own performance model estimates. At the end msrec's own estimates are
    compared with published steps.
    """
    on, findings = prepare(threads=None), list[Finding]()
    warnings.filterwarnings("ignore", module="torchrec")
    hardware = load_hardware("h100")
    for name, tables in table_sets().items():
        findings += _compare(f"{name} ({len(tables)})", tables, hardware, seconds)
    findings += [
        compare_values(f"estimate, against {s.name}", s.estimated_ms, s.published_ms, "ms")
        for s in published_steps()
    ]
    title = f"estimated step on {NODES} x {PER_NODE} h100, {BATCH} rows a rank"
    report("planner", title, findings, on)


def _compare(name: str, tables: list[TableLoad], hardware: Hardware, seconds: int) -> list[Finding]:
    console.print(f"{name} ...")
    start = now()
    plan = _our_plan(tables, hardware)
    ours = now() - start
    start = now()
    default_ms = _torchrec_step_ms("defaults", tables, hardware, seconds)
    defaults = now() - start
    best_ms, pair = _best_of_torchrec(tables, hardware, seconds)
    step_ms = plan.step_ms if plan.fits else math.inf
    return [
        compare_values(f"{name}: step, against TorchRec's defaults", step_ms, default_ms, "ms"),
        compare_values(f"{name}: step, against {pair}", step_ms, best_ms, "ms"),
        compare_times(f"{name}: planning, against TorchRec's defaults", [ours], [defaults]),
    ]


def _our_plan(tables: list[TableLoad], hardware: Hardware) -> Plan:
    request = PlanRequest(
        tables=tables,
        batch=BATCH,
        hardware_name="h100",
        hardware=hardware,
        nodes=NODES,
        per_node=PER_NODE,
        shardings=OFFERED_BY_TORCHREC,
        headroom=HEADROOM,
        estimator="torchrec",
    )
    return make_plan(request)


def _best_of_torchrec(
    tables: list[TableLoad], hardware: Hardware, seconds: int
) -> tuple[float, str]:
    """Returns the smallest step time of all pairs, and the pair."""
    pairs = [(p, q) for p in PROPOSERS for q in PARTITIONERS]
    ratings = []
    end = time.perf_counter() + seconds
    for number, (proposer, partitioner) in enumerate(pairs):
        # A pair that ends early leaves its time to the later ones.
        left = max(int((end - time.perf_counter()) / (len(pairs) - number)), 1)
        parts = {"proposer": PROPOSERS[proposer](), "partitioner": PARTITIONERS[partitioner]()}
        pair = f"{proposer} + {partitioner}"
        ratings.append((_torchrec_step_ms(pair, tables, hardware, left, **parts), pair))
    return min(ratings)


class _RecordingPerfModel(NoopPerfModel):  # type: ignore[misc]  # TorchRec is untyped
    """TorchRec's performance model, which records the smallest rating it gave."""

    best = math.inf

    def rate(self, plan: list[ShardingOption]) -> float:
        rating = float(super().rate(plan))
        self.best = min(self.best, rating)
        return rating


def _torchrec_step_ms(
    name: str, tables: list[TableLoad], hardware: Hardware, seconds: int, **parts: object
) -> float:
    """Returns the smallest step time that TorchRec's planner considers, and prints it.

    Infinite if it finds no plan. The planner has its defaults except for `parts`.
    """
    ranks = topology(hardware, NODES * PER_NODE, PER_NODE)
    perf_model = _RecordingPerfModel(ranks)
    planner = EmbeddingShardingPlanner(
        topology=ranks,
        batch_size=BATCH,
        performance_model=perf_model,
        storage_reservation=FixedPercentageStorageReservation(HEADROOM),
        constraints={
            table.name: ParameterConstraints(pooling_factors=[table.pooling] * table.features)
            for table in tables
        },
        timeout_seconds=seconds,
        debug=False,
        **parts,
    )
    module = torch.nn.ModuleDict({"ebc": meta_collection(tables, "rowwise_adagrad")})
    failure = ""
    try:
        planner.plan(module, [EmbeddingBagCollectionSharder()])
    except (PlannerError, RuntimeError) as error:
        failure = f": {str(error).strip().splitlines()[0]:.60}"
    console.print(f"  {name}: {perf_model.best:.3f} ms{failure}")
    return perf_model.best


def table_sets(seed: int = 0) -> dict[str, list[TableLoad]]:
    """Returns seven sets of tables of different sizes, by name; the last two are public."""
    rng = np.random.default_rng(seed)

    def tables(rows: list[float], dims: list[int], pooling: list[float]) -> list[TableLoad]:
        return [
            TableLoad(name=f"t{i}", rows=int(r), dim=d, pooling=p)
            for i, (r, d, p) in enumerate(zip(rows, dims, pooling, strict=True))
        ]

    def lengths(count: int) -> list[float]:
        return [float(x) for x in rng.integers(1, 30, count)]

    skewed = np.exp(rng.uniform(np.log(1e3), np.log(3e8), 40))
    tiny = np.exp(rng.uniform(np.log(1e2), np.log(1e5), 150))
    mixed = np.exp(rng.uniform(np.log(1e4), np.log(2e7), 40))
    dcnv2, criteo = published_steps()
    return {
        "skewed": tables(list(skewed), [64] * 40, lengths(40)),
        "uniform": tables([5e6] * 40, [64] * 40, [10.0] * 40),
        "one giant": tables([1e9, *[1e5] * 20], [128, *[64] * 20], [1.0, *lengths(20)]),
        "many tiny": tables(list(tiny), [32] * 150, lengths(150)),
        "mixed dims": tables(
            list(mixed), [int(d) for d in rng.choice([16, 64, 128, 512], 40)], lengths(40)
        ),
        "DLRM-DCNv2": tables([*map(float, dcnv2.rows)], [128] * 26, dcnv2.pooling),
        "Criteo 1TB": tables([*map(float, criteo.rows)], [128] * 26, [1.0] * 26),
    }
