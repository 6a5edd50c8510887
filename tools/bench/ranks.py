"""`msrec bench ranks`: two ranks against one, with the same global batch."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msrec.launch.distributed import Process
from msrec.tools.bench.harness.measure import Seconds, compare_rates, interleaved
from msrec.tools.bench.harness.options import Batch, Dataset, Repeats, Steps
from msrec.tools.bench.harness.processes import ranks, slowest
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import dataset_or_random
from msrec.tools.bench.harness.training import IN_MEMORY, Training


def bench_ranks(
    dataset: Dataset = None, batch: Batch = 4096, steps: Steps = 20, repeats: Repeats = 9
) -> None:
    """Training on two ranks, against one rank with the same global batch.

    On the CPU; batches are in memory and each rank has one thread. Two independent trainings of
    half a batch at the same time show the most that two ranks could reach.
    """
    on = prepare()
    with (
        dataset_or_random(dataset, IN_MEMORY, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
        ranks(1, train_rounds, folder, Path(scratch) / "one", batch, steps) as one,
        ranks(2, train_rounds, folder, Path(scratch) / "two", batch, steps) as two,
        ranks(1, train_rounds, folder, Path(scratch) / "left", batch // 2, steps) as left,
        ranks(1, train_rounds, folder, Path(scratch) / "right", batch // 2, steps) as right,
        ThreadPoolExecutor(2) as threads,
    ):

        def independent() -> Seconds:
            both = threads.map(lambda run_round: run_round(), (left, right))
            return slowest([seconds for results in both for seconds in results])

        cases = {
            "one": lambda: slowest(one()),
            "two": lambda: slowest(two()),
            "independent": independent,
        }
        rounds = interleaved(cases, repeats)
    rows, one_rank = steps * batch, rounds["one"]
    findings = [
        compare_rates(
            "MMoE, 2 ranks against 1", rounds["two"], one_rank, rows, aim=("at least", 1.7)
        ),
        compare_rates(
            "2 trainings of half a batch, against 1", rounds["independent"], one_rank, rows
        ),
    ]
    report("ranks", f"training, global batches of {batch:,} rows", findings, on)


def train_rounds(
    process: Process, dataset: Path, run_root: Path, batch: int, steps: int
) -> Iterator[Seconds]:
    """Yields the time of one round of training on this rank, again and again."""
    options = ["backbone.name=mmoe", f"trainer.global_batch={batch}"]
    case = Training(dataset, run_root, options, process).in_memory(steps)
    while True:
        yield case()
