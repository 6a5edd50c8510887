"""Score rows of any Parquet files with a run: rows in = rows out, in order, a part at a time.

The folder that is written::

    _request.json         what was asked: run, checkpoint, files, columns; a resumed job must ask
                          the same
    part-00000.parquet    the kept columns and `score` of some consecutive rows, in order
    _COMMIT               written last: rows, parts, rows without a score

A part holds whole row groups of one file, whatever the number of ranks, so that a job that was
killed goes on with the parts that are not there, on these ranks or others.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from rich.progress import track

from msrec.data.io.atomic_files import write_bytes, write_json
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
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predictions import COMMIT_FILE
from msrec.launch.loaders import build_file_loader, eval_batch
from msrec.launch.trained_run import TrainedRun
from msrec.launch.training.skipped_rows import gather_bad_rows
from msrec.model.ranker import Outcome

PART_ROWS = 1 << 20
"""A part has so many rows or more, where its file has."""
REQUEST_FILE = "_request.json"
SCORE = "score"
IDENTITY = ("user", "item", "scenario")
RAW_IDENTITY = ("user_key", "item_key", "scenario")
"""The columns that are kept where nobody chooses; what names user and item in raw rows."""


@dataclass(frozen=True)
class Part:
    """Consecutive row groups of one file."""

    number: int
    groups: tuple[RowGroup, ...]
    rows: range
    """Among the rows of all files."""

    @property
    def name(self) -> str:
        """Of the file."""
        return f"part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class Predicted:
    """What a job wrote.

    Attributes:
        rows: in all parts.
        parts: of which `resumed` were there before.
        unscored: rows whose score is null, because they break the schema and the run's `faults`
            leave such rows out.
        reasons: why, and how many of those that this start met.
    """

    rows: int
    parts: int
    resumed: int
    unscored: int
    reasons: dict[str, int]


def predict_files(
    run: TrainedRun,
    process: Process,
    data: Sequence[AnyPath],
    out: AnyPath,
    keep: Sequence[str] | None = None,
) -> Predicted | None:
    """Score the rows of files, on every rank.

    Args:
        run: with its model.
        process: this rank.
        data: files, or folders of them, of raw rows (see `RowEncoder`), or with the columns that
            the run's schema names, ids encoded as in the dataset that the run is to score; neither
            labels nor a timestamp are needed. Raw ones have a column `user_key` and none `user`.
        out: the folder to write, here or remote.
        keep: columns of the files to write beside `score`; None keeps user, item and scenario, of
            raw rows their keys.

    Returns:
        On rank 0 what was written, None on the others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not what the schema says, a kept column is not in a file, or `out`
            holds the predictions of something else.
    """
    paths = [file for path in data for file in named_parquet_files(path)]
    names = parquet_names(paths[0])
    raw = "user" not in names and "user_key" in names
    if raw and run.scored.alignment is not None:
        raise ValueError(
            f"{paths[0]} must hold encoded ids, as dataset=... says how; it holds raw values."
        )
    if keep is None:
        keep = RAW_IDENTITY if raw else IDENTITY
    batch = eval_batch(run.config, process.world_size)
    loader = build_file_loader(
        run.config, process, run.knowledge, batch, paths, raw=raw, scored=run.scored
    )
    _check_kept(loader.reader, keep)
    parts = list(_parts(loader.reader))
    _keep_request(out, _request(run, loader.reader, keep), process)
    present = {path.name for path in parquet_files(out)}
    dist.barrier()  # all ranks have looked before one writes
    todo = [part for part in parts if part.name not in present]
    _score(run.model, loader, process, todo, out, keep)
    reasons = count_reasons(gather_bad_rows(loader.reader.quarantine))
    if not process.is_main:
        return None
    found = Predicted(
        rows=loader.reader.num_rows,
        parts=len(parts),
        resumed=len(parts) - len(todo),
        unscored=sum(_nulls(parquet_metadata(out / part.name)) for part in parts),
        reasons=reasons,
    )
    commit = {"rows": found.rows, "parts": found.parts, "unscored": found.unscored}
    write_json(out / COMMIT_FILE, commit)
    return found


def _check_kept(files: SplitReader, keep: Sequence[str]) -> None:
    if SCORE in keep or len(set(keep)) < len(keep):
        raise ValueError(
            f"columns must name columns to keep beside {SCORE}, each once; got {', '.join(keep)}."
        )
    for path, metadata in files.metadata.items():
        names = metadata.schema.to_arrow_schema().names
        missing = [name for name in keep if name not in names]
        if missing:
            raise ValueError(
                f"{path} must have the columns to keep; {', '.join(missing)} are not among "
                f"{', '.join(names)}."
            )


def _parts(files: SplitReader) -> Iterator[Part]:
    """The row groups of each file, gathered up to `PART_ROWS`."""
    number, start = 0, 0
    for _, of_file in itertools.groupby(files.groups, key=lambda group: group.path):
        groups: list[RowGroup] = []
        pending = list(of_file)
        for group in pending:
            groups.append(group)
            rows = sum(each.num_rows for each in groups)
            if rows >= PART_ROWS or group is pending[-1]:
                yield Part(number, tuple(groups), range(start, start + rows))
                number, start, groups = number + 1, start + rows, []


def _request(run: TrainedRun, files: SplitReader, keep: Sequence[str]) -> dict[str, Any]:
    """What must be the same for parts that are there to be kept."""
    return {
        "run": run.config.run_id,
        "checkpoint": run.checkpoint,
        "dataset": run.schema.name,
        "columns": list(keep),
        "row_groups": [[str(group.path), group.index, group.num_rows] for group in files.groups],
    }


def _keep_request(out: AnyPath, request: dict[str, Any], process: Process) -> None:
    file = out / REQUEST_FILE
    if is_file(file):
        if json.loads(file.read_text()) != request:
            raise ValueError(
                f"{out} must hold predictions of this run, these files and these columns to go on; "
                f"{file.name} says otherwise. Choose another folder."
            )
    elif parquet_files(out):
        raise ValueError(f"{out} must be empty or hold predictions; it has other Parquet files.")
    dist.barrier()  # all ranks have looked
    if process.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, request)
    dist.barrier()


def _score(
    model: torch.nn.Module,
    loader: Loader,
    process: Process,
    parts: Sequence[Part],
    out: AnyPath,
    keep: Sequence[str],
) -> None:
    batch = loader.order.global_batch
    steps = [
        (part, range(start, min(start + batch, part.rows.stop)))
        for part in parts
        for start in range(part.rows.start, part.rows.stop, batch)
    ]
    model.eval()
    batches = loader.in_order([rows for _, rows in steps])
    outcomes = BatchPipeline(model, process).outcomes(batches)
    scores = np.empty(0, np.float32)
    shown = track(steps, "predict", disable=not process.is_main, transient=True)
    for (part, rows), outcome in zip(shown, outcomes, strict=True):
        if rows.start == part.rows.start:
            scores = np.zeros(len(part.rows), np.float32)
        _fill(scores, outcome, rows, part, process)
        if rows.stop == part.rows.stop:
            owner = part.number % process.world_size
            dist.reduce(torch.from_numpy(scores), dst=owner)
            if process.rank == owner:
                _write(out / part.name, part, loader.reader, scores, keep)
    dist.barrier()


def _fill(
    scores: npt.NDArray[np.float32], outcome: Outcome, rows: range, part: Part, process: Process
) -> None:
    """This rank's rows of a batch; NaN for one that was left out, which is no row any more."""
    share = len(outcome.row_id)
    start = rows.start + process.rank * share
    own = outcome.row_id[: max(0, min(share, rows.stop - start))]
    found = torch.sigmoid(outcome.logits[: len(own), 0]).cpu()
    found = torch.where(own.cpu() >= 0, found, torch.nan)
    at = start - part.rows.start
    scores[at : at + len(own)] = found.numpy()


def _write(
    path: AnyPath,
    part: Part,
    files: SplitReader,
    scores: npt.NDArray[np.float32],
    keep: Sequence[str],
) -> None:
    file = part.groups[0].path
    metadata = files.metadata[file]
    groups = [read_row_group(file, group.index, list(keep), metadata) for group in part.groups]
    if keep:
        table = pa.concat_tables(groups).select(list(keep))
    else:
        table = pa.table({})
    table = table.append_column(SCORE, pa.array(scores, from_pandas=True))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def _nulls(metadata: pq.FileMetaData) -> int:
    """Of the last column, `score`."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return sum(group.column(metadata.num_columns - 1).statistics.null_count for group in groups)


def told(found: Predicted, out: AnyPath) -> str:
    """A sentence for the terminal."""
    line = f"{out}: {found.rows:,} rows in {found.parts:,} parts"
    if found.resumed:
        line += f", {found.resumed:,} of them from an earlier start"
    if found.unscored:
        why = "; ".join(f"{rows:,} {reason}" for reason, rows in found.reasons.items())
        line += f"; {found.unscored:,} rows have no score{f' ({why})' if why else ''}"
    return line
