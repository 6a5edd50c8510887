"""Two ranks against one, with the same global batch."""

import itertools
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msrec.launch.distributed import Process
from msrec.tools.bench.harness.measure import Took, interleaved, rates
from msrec.tools.bench.harness.processes import ranks, slowest
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.harness.training import Training
from msrec.tools.bench.loader import dataset_or_made
from msrec.tools.bench.step import IN_MEMORY, SKIP


def bench_ranks(dataset: Path | None, batch: int, steps: int, repeats: int) -> None:
    """Training steps on batches in memory; each rank has one thread.

    What two ranks could reach at most is measured too: two trainings at once that know nothing of
    each other, each with half the rows.

    Args:
        dataset: a folder; None makes random rows.
        batch: rows of a global batch.
        steps: of a round.
        repeats: rounds.
    """
    on = machine()
    with (
        dataset_or_made(dataset, IN_MEMORY, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
        ranks(1, trained, folder, Path(scratch) / "one", batch, steps) as one,
        ranks(2, trained, folder, Path(scratch) / "two", batch, steps) as two,
        ranks(1, trained, folder, Path(scratch) / "left", batch // 2, steps) as left,
        ranks(1, trained, folder, Path(scratch) / "right", batch // 2, steps) as right,
        ThreadPoolExecutor(2) as threads,
    ):

        def apart() -> Took:
            both = threads.map(lambda run: run(), (left, right))
            return slowest([took for results in both for took in results])

        took = interleaved(
            {"two": lambda: slowest(two()), "one": lambda: slowest(one()), "apart": apart}, repeats
        )
    limit = (
        "what two trainings reach that send nothing, next line; ranks send ids, vectors and more"
    )
    rows = steps * batch
    findings = [
        rates(
            "MMoE, 2 ranks against 1",
            took["two"],
            took["one"],
            rows,
            aim=("at least", 1.7),
            limit=limit,
        ),
        rates("2 trainings of half a batch, against 1", took["apart"], took["one"], rows),
    ]
    report("ranks", f"training, global batches of {batch:,} rows", findings, on)


def trained(
    process: Process, dataset: Path, folder: Path, batch: int, steps: int
) -> Iterator[Took]:
    """Rounds of a rank."""
    options = ["backbone.name=mmoe", f"trainer.global_batch={batch}"]
    training = Training(dataset, folder, options, process)
    batches = training.batches(IN_MEMORY)
    while True:
        yield training.run(lambda: itertools.cycle(batches), steps + SKIP, SKIP)
