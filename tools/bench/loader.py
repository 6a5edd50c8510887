"""`msrec bench loader` and `hidden`: the loader against decoding, and training from files."""

import itertools
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from msrec.data.io.parquet_files import parquet_files
from msrec.data.io.paths import local_path
from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import process_group
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.tools.bench.harness.measure import Aim, compare_all, interleaved
from msrec.tools.bench.harness.options import Batch, Batches, Dataset, Repeats, Steps
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import dataset_or_random
from msrec.tools.bench.harness.training import Training
from msrec.tools.bench.step import OPTIONS


def bench_loader(
    dataset: Dataset = None,
    batch: Batch = 4096,
    batches: Batches = 100,
    repeats: Repeats = 9,
    config: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            help="config of a run, to measure its loader with histories and vectors",
            show_default="the dataset's rows alone",
        ),
    ] = None,
) -> None:
    """Parquet to shuffled batches on one thread, against pyarrow's decoding.

    Decoding leaves the rows in their order. The second reference also shuffles the decoded columns
    by one take.
    """
    on = prepare()
    run = None if config is None else load_config(config, ["trainer.prefetch=0"])
    dataset = dataset if run is None else local_path(str(run.dataset))
    with dataset_or_random(dataset, batches, batch) as folder, process_group("cpu") as process:
        schema, reader = load_schema(folder), open_loader(folder, "train", batch).reader
        name, rows, columns = schema.name, reader.num_rows, reader.columns
        order = pa.array(np.random.default_rng(0).permutation(rows))
        knowledge = None if run is None else KnowledgeInputs(run, schema)

        def load() -> None:
            if run is None or knowledge is None:
                loader = open_loader(folder, "train", batch, prefetch=0)
            else:
                loader = build_loader(run, "train", process, knowledge, batch, shuffle=True)
            for _ in loader.batches():
                pass

        def shuffle() -> None:
            table = pa.concat_tables(_decode(folder, columns)).combine_chunks()
            for column in columns:
                table.column(column).chunk(0).take(order)

        cases = {
            "ours": load,
            "decoding": lambda: _decode(folder, columns),
            "decoding and one take": shuffle,
        }
        rounds = interleaved(cases, repeats)
    findings = compare_all(name, rounds, rows, aims={"decoding": ("at least", 0.7)})
    report("loader", f"{rows:,} rows from Parquet to shuffled batches", findings, on)


def _decode(folder: Path, columns: list[str]) -> list[pa.Table]:
    return [
        file.read_row_group(number, columns=columns, use_threads=False)
        for file in map(pq.ParquetFile, parquet_files(folder / "train"))
        for number in range(file.num_row_groups)
    ]


def bench_hidden(
    dataset: Dataset = None, batch: Batch = 4096, steps: Steps = 60, repeats: Repeats = 7
) -> None:
    """Training from Parquet, against training on batches in memory.

    The model is a small MLP. Each round is a first epoch, because later epochs of a small dataset
    find it decoded in memory; the wait for the first batch counts.
    """
    on = prepare()
    with (
        dataset_or_random(dataset, steps, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
        process_group() as process,
    ):
        options = [*OPTIONS, f"trainer.global_batch={batch}"]
        training = Training(folder, Path(scratch), options, process)
        steps = min(steps, sum(1 for _ in training.parquet()))
        batches = training.batches()
        cases = {
            "from Parquet": lambda: training.run(training.parquet, steps),
            "batches in memory": lambda: training.run(lambda: itertools.cycle(batches), steps),
        }
        rounds = interleaved(cases, repeats)
        name = load_schema(folder).name
    aims: dict[str, Aim] = {"batches in memory": ("at least", 0.97)}
    findings = compare_all(f"{name}: from Parquet", rounds, steps * batch, aims=aims)
    report("hidden", f"training {steps} steps of {batch:,} rows", findings, on)
