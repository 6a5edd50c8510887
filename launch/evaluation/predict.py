"""Score a split with a checkpoint: one Parquet part per rank, committed as a whole."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from rich.progress import track

from msrec.data.io.parquet_files import parquet_files, parquet_names, read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.loading.loader import Loader
from msrec.data.loading.quarantine import BadRows, count_reasons, count_rows
from msrec.data.schema import Schema, Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predictions import TRUTH, Commit, write_commit
from msrec.launch.training.skipped_rows import gather_bad_rows
from msrec.model.ranker import Outcome

PART_ROWS = 1 << 20
"""Rows of a row group of a part."""


def predict(
    model: torch.nn.Module,
    loader: Loader,
    schema: Schema,
    process: Process,
    dataset: AnyPath,
    checkpoint: str,
    split: Split,
    out: Path,
) -> BadRows:
    """Write this rank's predictions; rank 0 then commits them all.

    Rows in = rows out, but for those that the run's `faults` leave out: the marker counts them.

    Returns:
        The rows left out, of all ranks.

    Raises:
        FileNotFoundError, ValueError: of the data.
        OSError: a part could not be written.
    """
    if process.is_main:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    dist.barrier()
    keys = read_parquet(dataset / "users.parquet", ["user_key"])["user_key"]
    keys = keys.combine_chunks()
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    model.eval()
    outcomes = track(
        BatchPipeline(model, process).outcomes(loader.batches()),
        f"predict {split}",
        total=len(loader),
        disable=not process.is_main,
        transient=True,
    )
    for outcome in outcomes:
        waiting.append(_table(outcome, loader, keys))
        if sum(map(len, waiting)) >= PART_ROWS:
            writer = _write(writer, waiting, out, process)
            waiting = []
    writer = _write(writer, waiting, out, process)
    writer.close()
    dist.barrier()
    bad = gather_bad_rows(loader.reader.quarantine)
    if process.is_main:
        commit = Commit(
            rows=loader.reader.num_rows,
            split=split,
            checkpoint=checkpoint,
            dataset=schema.name,
            left_out=count_rows(bad),
            reasons=count_reasons(bad),
        )
        write_commit(out, commit)
    dist.barrier()
    return bad


def truth_column(dataset: AnyPath, split: Split) -> list[str]:
    """The column of known click probabilities, where a dataset has it."""
    first = next(iter(parquet_files(dataset / split)), None)
    has_truth = first is not None and TRUTH in parquet_names(first)
    return [TRUTH] if has_truth else []


def _table(outcome: Outcome, loader: Loader, keys: pa.Array) -> pa.Table:
    real = (outcome.row_id >= 0).cpu().numpy()
    row_id = outcome.row_id.cpu().numpy()[real]
    columns = {
        "row_id": row_id,
        "scenario": outcome.scenario.cpu().numpy()[real].astype(np.int32),
        "user": keys.take(pa.array(outcome.user.cpu().numpy()[real])),
        "label": outcome.label[:, 0].cpu().numpy()[real],
        "weight": outcome.weight.cpu().numpy()[real],
        "score": torch.sigmoid(outcome.logits[:, 0]).cpu().numpy()[real],
    }
    if TRUTH in loader.reader.columns:
        columns[TRUTH] = loader.reader.take(row_id)[TRUTH]
    return pa.table(columns)


def _write(
    writer: pq.ParquetWriter | None, tables: list[pa.Table], out: Path, process: Process
) -> pq.ParquetWriter:
    table = pa.concat_tables(tables)
    if writer is None:
        writer = pq.ParquetWriter(out / f"part-{process.rank:05d}.parquet", table.schema)
    writer.write_table(table)
    return writer
