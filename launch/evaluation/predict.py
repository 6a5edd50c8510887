"""Scores a split with a checkpoint: one Parquet part per rank, committed as a whole."""

from collections.abc import Iterator
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
from msrec.data.schema import Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predictions import TRUTH, Commit, write_commit
from msrec.launch.trained_run import TrainedRun
from msrec.launch.training.skipped_rows import gather_bad_rows
from msrec.model.ranker import Outcome

GROUP_ROWS = 1 << 20
"""Fewest rows of a row group of a part, except the last one."""


def predict(run: TrainedRun, loader: Loader, process: Process, split: Split, out: Path) -> BadRows:
    """Writes this rank's predictions to an empty folder; rank 0 commits it when all are done.

    Every row of the split gets a score, except the rows that the run's `faults` policy excludes.
    The commit counts those.

    Returns:
        The excluded rows of all ranks.

    Raises:
        FileNotFoundError, ValueError: the data is missing or broken.
        OSError: a part could not be written.
    """
    tables = _scored_tables(run, loader, process, split)
    _write_part(out / f"part-{process.rank:05d}.parquet", tables)
    dist.barrier()
    excluded = gather_bad_rows(loader.reader.quarantine)
    if process.is_main:
        commit = Commit(
            rows=loader.reader.num_rows,
            split=split,
            checkpoint=run.checkpoint,
            dataset=run.schema.name,
            left_out=count_rows(excluded),
            reasons=count_reasons(excluded),
        )
        write_commit(out, commit)
    dist.barrier()
    return excluded


def truth_column(dataset: AnyPath, split: Split) -> list[str]:
    """Returns the column of true click probabilities, if the dataset has it."""
    first = next(iter(parquet_files(dataset / split)), None)
    has_truth = first is not None and TRUTH in parquet_names(first)
    return [TRUTH] if has_truth else []


def click_scores(outcome: Outcome) -> torch.Tensor:
    """Returns the predicted click probability of each row (B,), float32 in [0, 1]."""
    return torch.sigmoid(outcome.outputs[:, 0])


def _scored_tables(
    run: TrainedRun, loader: Loader, process: Process, split: Split
) -> Iterator[pa.Table]:
    """Yields the predictions of one step after the other."""
    keys = read_parquet(run.scored.dataset / "users.parquet", ["user_key"])["user_key"]
    keys = keys.combine_chunks()
    run.model.eval()
    outcomes = track(
        BatchPipeline(run.model, process).outcomes(loader.batches()),
        f"predict {split}",
        total=len(loader),
        disable=not process.is_main,
        transient=True,
    )
    for outcome in outcomes:
        yield _table(outcome, loader, keys)


def _table(outcome: Outcome, loader: Loader, keys: pa.Array) -> pa.Table:
    real = (outcome.row_id >= 0).cpu().numpy()  # padding and excluded rows have -1
    row_id = outcome.row_id.cpu().numpy()[real]
    columns = {
        "row_id": row_id,
        "scenario": outcome.scenario.cpu().numpy()[real].astype(np.int32),
        "user": keys.take(pa.array(outcome.user.cpu().numpy()[real])),
        "label": outcome.label[:, 0].cpu().numpy()[real],
        "weight": outcome.weight.cpu().numpy()[real],
        "score": click_scores(outcome).cpu().numpy()[real],
    }
    if TRUTH in loader.reader.columns:
        columns[TRUTH] = loader.reader.take(row_id)[TRUTH]
    return pa.table(columns)


def _write_part(path: Path, tables: Iterator[pa.Table]) -> None:
    """Writes tables in row groups of `GROUP_ROWS` rows or more."""
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        group = [first]
        for table in tables:
            if sum(map(len, group)) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
            group.append(table)
        writer.write_table(pa.concat_tables(group))
