"""The loader against decoding alone, and how far training hides it."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from msrec.data.io.parquet_files import parquet_files
from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.tools.bench.harness.measure import Aim, interleaved, rates
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.harness.shapes import movielens_tables, shaped
from msrec.tools.bench.harness.training import Training
from msrec.tools.bench.step import IN_MEMORY, OPTIONS


@contextmanager
def dataset_or_made(dataset: Path | None, batches: int, batch: int) -> Iterator[Path]:
    """The given dataset, or random rows of MovieLens' shape in a folder that goes away."""
    if dataset is not None:
        yield dataset
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield shaped(Path(scratch) / "data", movielens_tables(), batches, batch)


def bench_loader(dataset: Path | None, batch: int, batches: int, repeats: int) -> None:
    """A shuffled epoch, checked and made into batches by one thread; and the columns decoded.

    Args:
        dataset: a folder; None makes random rows.
        batch: rows of one.
        batches: of the rows that are made.
        repeats: rounds.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on = machine()
    with dataset_or_made(dataset, batches, batch) as folder:
        columns = open_loader(folder, "train", batch).reader.columns

        def ours() -> None:
            for _ in open_loader(folder, "train", batch, prefetch=0).batches():
                pass

        def tables() -> list[pa.Table]:
            return [
                file.read_row_group(number, columns=columns, use_threads=False)
                for file in map(pq.ParquetFile, parquet_files(folder / "train"))
                for number in range(file.num_row_groups)
            ]

        def decoded() -> None:
            tables()

        rows = open_loader(folder, "train", batch).reader.num_rows
        order = pa.array(np.random.default_rng(0).permutation(rows))

        def shuffled() -> None:
            table = pa.concat_tables(tables()).combine_chunks()
            for name in columns:
                table.column(name).chunk(0).take(order)

        took = interleaved({"ours": ours, "decoded": decoded, "shuffled": shuffled}, repeats)
        name = load_schema(folder).name
    aim: Aim = ("at least", 0.7)
    limit = "the rows must be shuffled too, which pyarrow's decoding leaves out: see the next line"
    findings = [
        rates(
            f"{name}: against decoding", took["ours"], took["decoded"], rows, aim=aim, limit=limit
        ),
        rates(f"{name}: against decoding and one take", took["ours"], took["shuffled"], rows),
    ]
    report("loader", f"{rows:,} rows from Parquet to shuffled batches", findings, on)


def bench_hidden(dataset: Path | None, batch: int, steps: int, repeats: int) -> None:
    """The fastest model of the zoo trains from Parquet, and on batches in memory.

    The first epoch each time: a data set of few row groups stays decoded in later ones. The wait
    for its first batch counts.

    Args:
        dataset: a folder; None makes random rows.
        batch: rows of a step.
        steps: of a round, at most those of an epoch.
        repeats: rounds.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on = machine()
    with (
        dataset_or_made(dataset, steps, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
        process_group("cpu") as process,
    ):
        options = [*OPTIONS, f"trainer.global_batch={batch}"]
        training = Training(folder, Path(scratch), options, process)
        steps = min(steps, sum(1 for _ in training.parquet()))
        batches = training.batches(IN_MEMORY)
        took = interleaved(
            {
                "ours": lambda: training.run(training.parquet, steps),
                "memory": lambda: training.run(lambda: itertools.cycle(batches), steps),
            },
            repeats,
        )
        name = load_schema(folder).name
    limit = (
        "loading has a thread of its own: it shares Python's lock with training, and needs a core"
    )
    found = rates(
        f"{name}: from Parquet",
        took["ours"],
        took["memory"],
        steps * batch,
        aim=("at least", 0.97),
        limit=limit,
    )
    report("hidden", f"training {steps} steps, against the same on batches in memory", [found], on)
