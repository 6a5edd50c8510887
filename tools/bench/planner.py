"""Our plans beside the best of TorchRec's own proposers and partitioners, by its own rating."""

import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
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

from msrec.launch.distributed import quiet_libraries
from msrec.tools.planner.hardware import Hardware, load_hardware
from msrec.tools.planner.make_plan import make_plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.sharding_options import SPAN
from msrec.tools.planner.tables import TableLoad, meta_collection

NODES, PER_NODE, BATCH = 2, 8, 2048
HEADROOM = 0.05
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


class _Rated(NoopPerfModel):  # type: ignore[misc]  # TorchRec is untyped
    """TorchRec's rating, which keeps the best that it gave."""

    best = math.inf

    def rate(self, plan: list[ShardingOption]) -> float:
        rating = float(super().rate(plan))
        self.best = min(self.best, rating)
        return rating


def table_sets(seed: int = 0) -> dict[str, list[TableLoad]]:
    """Five sets of tables."""
    rng = np.random.default_rng(seed)

    def tables(rows: list[float], dims: list[int], pooling: list[float]) -> list[TableLoad]:
        return [
            TableLoad(name=f"t{i}", rows=max(int(r), 10), dim=d, pooling=p)
            for i, (r, d, p) in enumerate(zip(rows, dims, pooling, strict=True))
        ]

    def lengths(count: int) -> list[float]:
        return [float(x) for x in rng.integers(1, 30, count)]

    skewed = np.exp(rng.uniform(np.log(1e3), np.log(3e8), 40))
    tiny = np.exp(rng.uniform(np.log(1e2), np.log(1e5), 150))
    mixed = np.exp(rng.uniform(np.log(1e4), np.log(2e7), 40))
    return {
        "skewed": tables(list(skewed), [64] * 40, lengths(40)),
        "uniform": tables([5e6] * 40, [64] * 40, [10.0] * 40),
        "one giant": tables([1e9, *[1e5] * 20], [128, *[64] * 20], [1.0, *lengths(20)]),
        "many tiny": tables(list(tiny), [32] * 150, lengths(150)),
        "mixed dims": tables(
            list(mixed), [int(d) for d in rng.choice([16, 64, 128, 512], 40)], lengths(40)
        ),
    }


def bench_planner(seconds: int) -> None:
    """Plan each set, by us and by each pair of TorchRec's proposer and partitioner.

    Args:
        seconds: for all pairs of a set together.
    """
    quiet_libraries()
    warnings.filterwarnings("ignore", module="torchrec")
    console = Console(width=130)
    hardware = load_hardware("h100")
    table = Table(title=f"estimated ms of a step on {NODES} x {PER_NODE} h100, {BATCH} rows a rank")
    for head in ("tables", "ours", "took, s", "its defaults", "took, s", "best of TorchRec"):
        table.add_column(head, justify="left" if head == "tables" else "right")
    for head in ("by", "took, s", "ours / theirs"):
        table.add_column(head, justify="left" if head == "by" else "right")
    for name, tables in table_sets().items():
        console.print(f"{name} ...", highlight=False)
        started = time.perf_counter()
        plan = make_plan(
            PlanRequest(
                tables=tables,
                batch=BATCH,
                hardware_name="h100",
                hardware=hardware,
                nodes=NODES,
                per_node=PER_NODE,
                shardings=tuple(SPAN),
                headroom=HEADROOM,
            )
        )
        ours = time.perf_counter() - started
        started = time.perf_counter()
        defaults, said = _by_torchrec(tables, hardware, seconds)
        default_s = time.perf_counter() - started
        console.print(f"  TorchRec's defaults: {defaults:.3f}{said}", highlight=False)
        started = time.perf_counter()
        best, by, told = _best_of_torchrec(tables, hardware, seconds)
        theirs = time.perf_counter() - started
        table.add_row(
            f"{name} ({len(tables)})",
            f"{plan.step_ms:.3f}" if plan.fits else "does not fit",
            f"{ours:.2f}",
            f"{defaults:.3f}",
            f"{default_s:.1f}",
            f"{best:.3f}",
            by,
            f"{theirs:.0f}",
            f"{plan.step_ms / best:.3f}",
        )
        for line in told:
            console.print(f"  {line}", highlight=False)
    console.print(table)


def _best_of_torchrec(
    tables: list[TableLoad], hardware: Hardware, seconds: int
) -> tuple[float, str, list[str]]:
    """The smallest rating, by which pair, and a line about each pair."""
    pairs = [(p, q) for p in PROPOSERS for q in PARTITIONERS]
    found, told = [], []
    end = time.perf_counter() + seconds
    for number, (proposer, partitioner) in enumerate(pairs):
        # What one pair leaves is for those that come after it.
        left = max(int((end - time.perf_counter()) / (len(pairs) - number)), 1)
        parts = {"proposer": PROPOSERS[proposer](), "partitioner": PARTITIONERS[partitioner]()}
        rating, said = _by_torchrec(tables, hardware, left, **parts)
        told.append(f"{proposer} + {partitioner}: {rating:.3f}{said}")
        found.append((rating, f"{proposer} + {partitioner}"))
    best, by = min(found)
    return best, by, told


def _by_torchrec(
    tables: list[TableLoad], hardware: Hardware, seconds: int, **parts: object
) -> tuple[float, str]:
    """The smallest rating its planner meets, with its defaults but for `parts`; what failed."""
    topology = hardware.topology(NODES * PER_NODE, PER_NODE)
    rated = _Rated(topology)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=BATCH,
        performance_model=rated,
        storage_reservation=FixedPercentageStorageReservation(HEADROOM),
        constraints={
            t.name: ParameterConstraints(pooling_factors=[t.pooling] * t.features) for t in tables
        },
        timeout_seconds=seconds,
        debug=False,
        **parts,
    )
    module = torch.nn.ModuleDict({"ebc": meta_collection(tables, "rowwise_adagrad")})
    try:
        planner.plan(module, [EmbeddingBagCollectionSharder()])
    except (PlannerError, RuntimeError) as error:
        return rated.best, f": {str(error).strip().splitlines()[0]:.60}"
    return rated.best, ""
