"""Scores a split with a checkpoint: one Parquet part per rank, committed as a whole."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from rich.progress import track

from msrec.data.features.value_counts import count_sentences
from msrec.data.io.parquet_files import parquet_files, parquet_names, read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.loading.loader import Loader
from msrec.data.loading.quarantine import BadRows, count_reasons, count_rows
from msrec.data.schema import Schema, Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.calibration.checkpoint_calibration import calibration_module
from msrec.launch.distributed import Process
from msrec.launch.evaluation.scored_rows.commit import (
    COMBINED,
    IMPRESSION,
    Commit,
    label_column,
    truth_name,
    write_commit,
)
from msrec.launch.run_tasks import combined_score, run_labels
from msrec.launch.trained_run import TrainedRun, unwrapped
from msrec.launch.training.skipped_rows import gather_bad_rows
from msrec.model.distributed.managed_tables import take_lookup_counts
from msrec.model.ranker import Outcome
from msrec.model.score_head import ScoreHead

logger = logging.getLogger(__name__)
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
    for line in count_sentences(take_lookup_counts(unwrapped(run.model).ranker.embeddings.managed)):
        logger.warning("%s: %s", split, line)
    excluded = gather_bad_rows(loader.reader.quarantine)
    if process.is_main:
        commit = Commit(
            rows=loader.reader.num_rows,
            split=split,
            checkpoint=run.checkpoint,
            dataset=run.schema.name,
            left_out=count_rows(excluded),
            reasons=count_reasons(excluded),
            labels=run_labels(run.config, run.schema),
            combined=run.config.objective.score,
            calibration=run.calibration_method,
        )
        write_commit(out, commit)
    dist.barrier()
    return excluded


def truth_columns(dataset: AnyPath, split: Split, schema: Schema) -> dict[str, str]:
    """Returns label -> column with its best possible scores, of the labels that have one."""
    first = next(iter(parquet_files(dataset / split)), None)
    names = [] if first is None else parquet_names(first)
    of_labels = {label: truth_name(schema.labels, label) for label in schema.labels}
    return {label: name for label, name in of_labels.items() if name in names}


def score_head(run: TrainedRun) -> ScoreHead:
    """Returns the module that turns the outputs of a run into scores, calibrated if the run is.

    Raises:
        ValueError: the formula of the combined score is wrong.
    """
    scales = unwrapped(run.model).loss.scales
    calibration = None
    if run.calibration is not None:
        calibration = calibration_module(run.calibration, [task.name for task in scales.tasks])
    return ScoreHead(scales, calibration, combined_score(run.config, run.schema))


class RunScores:
    """Computes the scores of a run from its outcomes: of all labels, calibrated, and combined.

    Raises:
        ValueError: the formula of the combined score is wrong.
    """

    def __init__(self, run: TrainedRun) -> None:
        self._head = copy.deepcopy(score_head(run)).cpu()
        self.labels, self.tasks = self._head.labels, self._head.scales.tasks

    @property
    def columns(self) -> list[str]:
        """Columns of the scores of `array`, those of the labels first."""
        return score_columns(self._head)

    def array(self, outcome: Outcome) -> npt.NDArray[np.float32]:
        """Returns the scores of an outcome on the host as an array (B, len(columns)).

        Raises:
            ValueError: the combined score of a row is not finite.
        """
        scores: torch.Tensor = self._head(outcome.outputs, outcome.scenario)
        bad = ~torch.isfinite(scores).all(1) & (outcome.row_id >= 0)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            values = zip(self.columns, scores[row].tolist(), strict=True)
            shown = ", ".join(f"{name} {value:g}" for name, value in values)
            raise ValueError(
                "objective.score must be finite for every row; at row "
                f"{int(outcome.row_id[row])} it is not: {shown}."
            )
        return scores.numpy()


def score_columns(head: ScoreHead) -> list[str]:
    """Returns the columns of scores in files: `score`, `score_1`, ..., and `combined`."""
    of_labels = [label_column("score", number) for number in range(len(head.labels))]
    return [*of_labels, *([COMBINED] if head.combined else [])]


def _scored_tables(
    run: TrainedRun, loader: Loader, process: Process, split: Split
) -> Iterator[pa.Table]:
    """Yields the predictions of one step after the other."""
    keys = read_parquet(run.scored.dataset / "users.parquet", ["user_key"])["user_key"]
    keys = keys.combine_chunks()
    scores = RunScores(run)
    run.model.eval()
    outcomes = track(
        BatchPipeline(run.model, process).outcomes_on_host(loader.batches()),
        f"predict {split}",
        total=len(loader),
        disable=not process.is_main,
        transient=True,
    )
    truths = truth_columns(run.scored.dataset, split, run.schema)
    more = {
        label_column("truth", number): truths[label]
        for number, label in enumerate(scores.labels)
        if label in truths
    }
    if run.schema.impression is not None:
        more[IMPRESSION] = run.schema.impression
    for outcome in outcomes:
        yield _table(outcome, scores, loader, keys, more)


def _table(
    outcome: Outcome, scores: RunScores, loader: Loader, keys: pa.Array, more: dict[str, str]
) -> pa.Table:
    """Returns the predictions of a step.

    Args:
        outcome: of the step, on the host.
        scores: computes the scores.
        loader: has the further columns.
        keys: raw keys of the users.
        more: further column -> its name in the dataset.
    """
    real = (outcome.row_id >= 0).numpy()  # padding and excluded rows have -1
    row_id = outcome.row_id.numpy()[real]
    columns: dict[str, Any] = {
        "row_id": row_id,
        "scenario": outcome.scenario.numpy()[real].astype(np.int32),
        "user": keys.take(pa.array(outcome.user.numpy()[real])),
        "weight": outcome.weight.numpy()[real],
    }
    for name, values in (("label", outcome.label), ("label_weight", outcome.label_weight)):
        for number, column in enumerate(values.numpy()[real].T):
            columns[label_column(name, number)] = column
    columns |= dict(zip(scores.columns, scores.array(outcome)[real].T, strict=True))
    if more:
        rows = loader.reader.take(row_id)
        columns |= {name: rows[column] for name, column in more.items()}
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
