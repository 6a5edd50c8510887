"""Two ranks against one, with the same global batch."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msrec.launch.process import Process
from msrec.tools.bench.apart import ranks, slowest
from msrec.tools.bench.loader import dataset_or_made
from msrec.tools.bench.measure import Took, interleaved, rates
from msrec.tools.bench.report import machine, report
from msrec.tools.bench.step import IN_MEMORY, SKIP
from msrec.tools.bench.training import Training


def bench_ranks(dataset: Path | None, batch: int, steps: int, repeats: int) -> None:
    """Training steps on batches in memory; each rank has one thread.

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
    ):
        took = interleaved({"two": lambda: slowest(two()), "one": lambda: slowest(one())}, repeats)
    limit = (
        "two ranks need two cores that nothing else uses; they also send ids, vectors, gradients"
    )
    found = rates(
        "MMoE, 2 ranks against 1",
        took["two"],
        took["one"],
        steps * batch,
        aim=("at least", 1.7),
        limit=limit,
    )
    report("ranks", f"training, global batches of {batch:,} rows", [found], on)


def trained(
    process: Process, dataset: Path, folder: Path, batch: int, steps: int
) -> Iterator[Took]:
    """Rounds of a rank."""
    options = ["backbone.name=mmoe", f"trainer.global_batch={batch}"]
    training = Training(dataset, folder, options, process)
    batches = training.batches(IN_MEMORY)
    while True:
        yield training.run(lambda: itertools.cycle(batches), steps + SKIP, SKIP)
