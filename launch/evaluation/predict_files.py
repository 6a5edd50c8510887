"""Scores the rows of any Parquet files with a run: every row in, every row out, in the same order.

The output folder::

    _request.json         run, checkpoint, files and columns; a resumed job must have the same
    part-00000.parquet    the kept columns and the scores of consecutive rows, in order
    _COMMIT               written last: rows, parts, rows without scores, and the labels

The scores are `score` of the first label, `score_1`, `score_2`, ... of the further ones, and
`combined` if the run has a formula.

A part holds whole row groups of one file and does not depend on the number of ranks. A job that was
killed therefore resumes with the missing parts, on the same number of ranks or on another.
"""

import io
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from rich.progress import track

from msrec.data.features.row_encoder import OTHER_NAMES
from msrec.data.features.value_counts import (
    CountedColumns,
    Counts,
    ValueCounts,
    count_sentences,
)
from msrec.data.io.atomic_files import write_bytes, write_json
from msrec.data.io.json_files import read_json_object
from msrec.data.io.outputs import FolderKind, check_output
from msrec.data.io.parquet_files import (
    named_parquet_files,
    parquet_files,
    parquet_metadata,
    parquet_names,
    read_row_group,
)
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.loading.loader import Loader
from msrec.data.loading.quarantine import count_reasons
from msrec.data.loading.split_reader import RowGroup, SplitReader
from msrec.data.schema import KEYS
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predict import RunScores
from msrec.launch.evaluation.scored_rows.commit import COMMIT_FILE
from msrec.launch.loaders import build_file_loader, eval_batch
from msrec.launch.trained_run import TrainedRun, unwrapped
from msrec.launch.training.skipped_rows import gather_bad_rows
from msrec.model.distributed.managed_tables import take_lookup_counts
from msrec.model.ranker import Outcome

PART_ROWS = 1 << 20
"""Fewest rows of a part, except the last part of a file."""
REQUEST_FILE = "_request.json"
PREDICTED = FolderKind(
    "a folder of msrec predict", REQUEST_FILE, (REQUEST_FILE, "part-*.parquet", COMMIT_FILE)
)
ENCODED_COLUMNS = ("user", "item", "scenario")
"""Columns kept by default of a file of encoded ids."""


@dataclass(frozen=True)
class OutputPart:
    """Consecutive row groups of one file; `rows` is their range among the rows of all files."""

    number: int
    groups: tuple[RowGroup, ...]
    rows: range

    @property
    def name(self) -> str:
        """Name of the Parquet file."""
        return f"part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class PredictionSummary:
    """Counts of what a job wrote.

    Attributes:
        rows: rows in all parts.
        parts: number of parts, including the resumed ones.
        resumed: parts that an earlier start had written.
        unscored: rows without a score, because they break the schema and the run's `faults` policy
            excludes them.
        reasons: reason -> rows of this start that were excluded for it.
        counts: column -> counts of the raw values of this start; of encoded ids only those of
            managed features.
    """

    rows: int
    parts: int
    resumed: int
    unscored: int
    reasons: dict[str, int]
    counts: Counts

    def sentence(self, out: AnyPath) -> str:
        """Returns the summary for the terminal."""
        line = f"{out}: {self.rows:,} rows in {self.parts:,} parts"
        if self.resumed:
            line += f", {self.resumed:,} of them from an earlier start"
        if self.unscored:
            why = "; ".join(f"{rows:,} {reason}" for reason, rows in self.reasons.items())
            line += f"; {self.unscored:,} rows have no score{f' ({why})' if why else ''}"
        return "\n  ".join([line, *count_sentences(self.counts)])


def predict_files(
    run: TrainedRun,
    process: Process,
    data: Sequence[AnyPath],
    out: AnyPath,
    keep: Sequence[str] | None = None,
) -> PredictionSummary | None:
    """Scores the rows of Parquet files. Every rank must call this.

    Args:
        run: the run and its model.
        process: this rank.
        data: files, or folders of files. They hold either raw rows (see `RowEncoder`), or the
            columns that the run's schema names, with the ids of the dataset to score. Files with
            a column `user_key` or `user_id` and no column `user` are raw. Labels and timestamps are
            not needed.
        out: the output folder, local or remote.
        keep: columns of the files to write with the scores; None means user, item and scenario, or
            their keys for raw rows.

    Returns:
        A summary on rank 0, None on the others.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file does not fit the schema, a kept column is missing, or `out` holds
            predictions of another request.
    """
    paths = [file for path in data for file in named_parquet_files(path)]
    raw_columns = _raw_columns(parquet_names(paths[0]))
    raw = bool(raw_columns)
    if raw and run.scored.alignment is not None:
        raise ValueError(
            f"{paths[0]} must hold encoded ids, because dataset=... is given; it holds raw values."
        )
    if keep is None:
        keep = raw_columns or ENCODED_COLUMNS
    batch = eval_batch(run.config, process.world_size)
    loader = build_file_loader(
        run.config, process, run.knowledge, batch, paths, raw=raw, scored=run.scored
    )
    reader, scores = loader.reader, RunScores(run)
    _check_kept_columns(reader, keep, scores.columns)
    parts = list(_plan_parts(reader))
    _save_request(out, _request(run, reader, keep), process)
    present = {path.name for path in parquet_files(out)}
    dist.barrier()  # no rank writes a part before all ranks have listed the folder
    missing = [part for part in parts if part.name not in present]
    _score_parts(run, scores, loader, process, missing, out, keep)
    reasons = count_reasons(gather_bad_rows(reader.quarantine))
    # Which numbers of a managed feature have rows is known to the model alone.
    of_maps = take_lookup_counts(unwrapped(run.model).ranker.embeddings.managed)
    counts = dict(_gather_counts(reader))
    for name, count in of_maps.items():
        counts[name] = counts.get(name, ValueCounts(count.values, 0))._replace(
            unknown=count.unknown
        )
    if not process.is_main:
        return None
    summary = PredictionSummary(
        rows=reader.num_rows,
        parts=len(parts),
        resumed=len(parts) - len(missing),
        unscored=sum(_null_scores(out / part.name, len(scores.columns)) for part in parts),
        reasons=reasons,
        counts=counts,
    )
    commit = {
        "rows": summary.rows,
        "parts": summary.parts,
        "unscored": summary.unscored,
        "labels": scores.labels,
        "combined": run.config.objective.score,
        "calibration": run.calibration_method,
    }
    write_json(out / COMMIT_FILE, commit)
    return summary


def _raw_columns(names: Sequence[str]) -> list[str]:
    """Returns the columns to keep of a file of raw values; none for a file of encoded ids."""
    keys = [key if key in names else OTHER_NAMES[key] for key in KEYS]
    # Files of encoded ids have a feature `user_id`, too.
    is_raw = "user" not in names and ("user_key" in names or "item" not in names)
    return [*keys, "scenario"] if is_raw and keys[0] in names else []


def _gather_counts(reader: SplitReader) -> Counts:
    """Returns the counts of the raw values of all ranks, each row group once."""
    parts: list[dict[tuple[str, int], Counts]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, reader.counts)
    total = CountedColumns()
    for counts in dict(itertools.chain(*(part.items() for part in parts))).values():
        total.add(counts)
    return total.take()


def _check_kept_columns(
    reader: SplitReader, keep: Sequence[str], score_columns: Sequence[str]
) -> None:
    if set(score_columns) & set(keep) or len(set(keep)) < len(keep):
        raise ValueError(
            f"columns must name columns to keep besides {', '.join(score_columns)}, each once; "
            f"got {', '.join(keep)}."
        )
    for path, metadata in reader.metadata.items():
        names = metadata.schema.to_arrow_schema().names
        missing = [name for name in keep if name not in names]
        if missing:
            raise ValueError(
                f"{path} must have the columns to keep; {', '.join(missing)} are not among "
                f"{', '.join(names)}."
            )


def _plan_parts(reader: SplitReader) -> Iterator[OutputPart]:
    """Gathers the row groups of each file until they have `PART_ROWS` rows."""
    number, start = 0, 0
    for _, file_groups in itertools.groupby(reader.groups, key=lambda group: group.path):
        groups: list[RowGroup] = []
        remaining = list(file_groups)
        for group in remaining:
            groups.append(group)
            rows = sum(each.num_rows for each in groups)
            if rows >= PART_ROWS or group is remaining[-1]:
                yield OutputPart(number, tuple(groups), range(start, start + rows))
                number, start, groups = number + 1, start + rows, []


def _request(run: TrainedRun, reader: SplitReader, keep: Sequence[str]) -> dict[str, Any]:
    """Returns the facts that a resumed job must share with the job that started."""
    calibration = {}
    if run.calibration is not None:
        calibration = {"calibration": zlib.crc32(run.calibration.model_dump_json().encode())}
    return {
        "run": run.config.run_id,
        "checkpoint": run.checkpoint,
        "dataset": run.schema.name,
        "columns": list(keep),
        **calibration,
        "row_groups": [[str(group.path), group.index, group.num_rows] for group in reader.groups],
    }


def _save_request(out: AnyPath, request: dict[str, Any], process: Process) -> None:
    """Writes the request, or checks that the folder has the same one."""
    file = out / REQUEST_FILE
    check_output(out, PREDICTED)
    if is_file(file):
        if read_json_object(file, "Choose another folder or delete this one.") != request:
            raise ValueError(
                f"{out} must hold predictions of this run, these files and these columns, to "
                f"resume; {file.name} has others. Choose another folder."
            )
    dist.barrier()  # rank 0 writes after all ranks have checked
    if process.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, request)
    dist.barrier()


def _score_parts(
    run: TrainedRun,
    run_scores: RunScores,
    loader: Loader,
    process: Process,
    parts: Sequence[OutputPart],
    out: AnyPath,
    keep: Sequence[str],
) -> None:
    """Scores each part on all ranks; the ranks take turns in writing the parts."""
    batch = loader.order.global_batch
    steps = [
        (part, range(start, min(start + batch, part.rows.stop)))
        for part in parts
        for start in range(part.rows.start, part.rows.stop, batch)
    ]
    run.model.eval()
    pipeline = BatchPipeline(run.model, process)
    outcomes = pipeline.outcomes_on_host(loader.in_order([rows for _, rows in steps]))
    columns = run_scores.columns
    scores = np.empty((0, len(columns)), np.float32)
    shown = track(steps, "predict", disable=not process.is_main, transient=True)
    for (part, rows), outcome in zip(shown, outcomes, strict=True):
        if rows.start == part.rows.start:
            scores = np.zeros((len(part.rows), len(columns)), np.float32)
        _fill(scores, outcome, run_scores.array(outcome), rows, part, process)
        if rows.stop == part.rows.stop:
            owner = part.number % process.world_size
            dist.reduce(torch.from_numpy(scores), dst=owner)
            if process.rank == owner:
                by_column = dict(zip(columns, scores.T, strict=True))
                _write_part(out / part.name, part, loader.reader, by_column, keep)
    dist.barrier()


def _fill(
    scores: npt.NDArray[np.float32],
    outcome: Outcome,
    of_outcome: npt.NDArray[np.float32],
    rows: range,
    part: OutputPart,
    process: Process,
) -> None:
    """Fills in the scores of this rank's rows of a batch; NaN for excluded rows."""
    share = len(outcome.row_id)
    start = rows.start + process.rank * share
    row_id = outcome.row_id[: max(0, min(share, rows.stop - start))].numpy()
    at = start - part.rows.start
    own = of_outcome[: len(row_id)]
    scores[at : at + len(row_id)] = np.where(row_id[:, np.newaxis] >= 0, own, np.nan)


def _write_part(
    path: AnyPath,
    part: OutputPart,
    reader: SplitReader,
    scores: Mapping[str, npt.NDArray[np.float32]],
    keep: Sequence[str],
) -> None:
    table = pa.table({})
    if keep:
        file = part.groups[0].path
        metadata = reader.metadata[file]
        groups = [read_row_group(file, group.index, list(keep), metadata) for group in part.groups]
        table = pa.concat_tables(groups).select(list(keep))
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values, from_pandas=True))  # NaN becomes null
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def _null_scores(path: AnyPath, num_scores: int) -> int:
    """Returns the number of nulls in the first of the columns of scores, which are the last."""
    metadata = parquet_metadata(path)
    position = metadata.num_columns - num_scores
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(position).statistics.null_count for group in groups)
