"""Functions of the stages: each converts a part, or a share, to files and a small result."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.convert.chunk_counts import Sparse
from msrec.data.convert.conversion import encoded_rows, write_side
from msrec.data.convert.dataset_writer import FILE_ROWS, PartWriter, arrow_schema
from msrec.data.convert.parts.exchange import read_batches, write_batches, write_exchange
from msrec.data.convert.parts.job import (
    CODES_FILE,
    ENCODE,
    INDEX_FILE,
    ROWS_FILE,
    SPLITS_FILE,
    STAGE,
    USERS_FILE,
    VALUES,
    IndexShare,
    Job,
    RawPart,
    encoded_features,
    key_indices,
    mapped_sides,
)
from msrec.data.convert.parts.merged_counts import counts_file, write_sparse
from msrec.data.convert.raw_tables import SIDES, Chunk, Side
from msrec.data.convert.row_filter import ROW, RowFilter
from msrec.data.convert.sources.plain.table_files import file_columns, file_rows, read_text
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.text_reader import Columns, TextReader
from msrec.data.convert.split import TRAIN, user_last_split
from msrec.data.convert.staging import staged_rows
from msrec.data.convert.statistics import duplicates_among
from msrec.data.convert.vocabulary_encoding import training_columns, values_of
from msrec.data.features.value_index import SortedIndex
from msrec.data.features.value_types import stored_series
from msrec.data.features.vocabulary import merged_rows
from msrec.data.io.mapped_tables import read_mapped, write_mapped
from msrec.data.io.paths import AnyPath
from msrec.data.io.remote_folders import send_file
from msrec.data.schema import SPLITS

VALUE_SHARES = 16
"""Shares of the values of a column: a process sorts one of them at a time."""
BINS = 1 << 16
TABLE_FILE = "table.arrow"
UNSIGNED = (pl.UInt64, pl.List(pl.UInt64))
Result = dict[str, Any]


class TextFile(NamedTuple):
    """A text file of the interactions, with its columns."""

    path: AnyPath
    columns: Columns
    bad_rows: Literal["fail", "skip"]


def text_part(file: TextFile, out: Path) -> Result:
    """Makes a Parquet file of a text file, with the types of its columns."""
    row_filter = RowFilter(file.bad_rows)
    with ExitStack() as stack:
        writer = None
        for frame in read_text(file.path, file.columns, TextReader(row_filter)):
            table = frame.to_arrow()
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(out / ROWS_FILE, table.schema))
            writer.write_table(table)
    return row_filter.counts


def table_part(part: RawPart | TextFile, out: Path) -> Result:
    """Copies some users or items to a file that the command maps into memory."""
    row_filter = RowFilter()
    if isinstance(part, RawPart):
        frame = file_rows(part.path, part.start, part.rows)
    else:
        row_filter = RowFilter(part.bad_rows)
        frame = pl.concat(read_text(part.path, part.columns, TextReader(row_filter)))
    # Categories differ between parts. Whether UInt64 fits Int64 is for all rows to say.
    write_mapped(
        out / TABLE_FILE,
        pl.DataFrame([c if c.dtype in UNSIGNED else stored_series(c) for c in frame]),
    )
    return row_filter.counts


def index_part(task: IndexShare, out: Path) -> Result:
    """Sorts a share of the values of a column by their hashes, to look values up."""
    values = read_mapped(task.column).to_series()
    SortedIndex.write(out / INDEX_FILE, values, task.share, task.shares)
    return {}


def survey_part(source: TableRows, part: RawPart, out: Path) -> Result:
    """Checks the scenarios of a part, and writes those that it has."""
    names = file_columns(part.path)
    frame = part.read([name for name in names if name in source.survey_columns])
    survey = source.survey(frame, part.location)
    survey.scenarios.write_parquet(out / "scenarios.parquet")
    return {"separators": survey.separators, "given": survey.given}


def stage_part(job: Job, number: int, out: Path) -> Result:
    """Checks the rows of a part, looks up users and items, and sends each user to its share."""
    part, row_filter = job.parts[number], RowFilter(job.bad_rows)
    rows = job.source.typed(part.read(), part.location)
    rows = job.source.converted(rows, job.survey)
    raw, keys = job.raw, key_indices(job.folder, job.run_id)
    rows = staged_rows(raw, Chunk(part.location, rows), row_filter, job.extra_columns, keys)
    rows = rows.drop("user_key", "item_key")
    rows.write_parquet(out / ROWS_FILE, compression="lz4", statistics=False)
    time = [raw.timestamp] if raw.timestamp else []
    sent = rows.select("user", "item", *time, row=pl.int_range(pl.len(), dtype=pl.Int64))
    share = rows["user"].to_numpy() % job.num_shares
    write_exchange(out / USERS_FILE, sent.to_arrow(), share, job.num_shares)
    clock = rows[time[0]].to_numpy() if time and len(rows) else None
    span = None if clock is None else [int(clock.min()), int(clock.max())]
    return {"rows": len(rows), "time": span, **row_filter.counts}


def time_part(job: Job, task: tuple[int, list[tuple[int, int]]], out: Path) -> Result:
    """Counts the rows of a part in bins of time: `BINS` of a width from a first time."""
    number, ranges = task
    assert job.raw.timestamp is not None
    clock = job.rows(number, [job.raw.timestamp])[job.raw.timestamp].to_numpy()
    counts = []
    for low, width in ranges:
        bins = (clock - low) // width
        bins = bins[(clock >= low) & (bins < BINS)]
        counts.append(np.bincount(bins, minlength=BINS))
    np.save(out / "counts.npy", np.stack(counts))
    return {}


def share_part(job: Job, share: int, out: Path) -> Result:
    """Counts the duplicates of some users, and divides their rows if the split is by user."""
    paths = [job.file(STAGE, number, USERS_FILE) for number in range(len(job.parts))]
    columns: dict[str, list[npt.NDArray[Any]]] = {}
    for start, table in zip(job.starts, read_batches(paths, share), strict=False):
        for name in table.column_names:
            values = table[name].to_numpy()
            columns.setdefault(name, []).append(values + start if name == "row" else values)
    rows = {name: np.concatenate(values) for name, values in columns.items()}
    time = rows.get(job.raw.timestamp or "")
    if job.choice.method == "user_last":
        clock = rows["row"] if time is None else time
        code = user_last_split(rows["user"], clock, job.choice.last, job.choice.fractions)
        np.save(out / "row.npy", rows["row"])
        np.save(out / "code.npy", code)
    return {"duplicates": duplicates_among(rows["user"], rows["item"], time)}


def values_part(job: Job, number: int, out: Path) -> Result:
    """Divides the rows of a part, and writes the distinct values that are in training."""
    collected = training_columns(job.raw, job.table_kinds)
    time = [job.raw.timestamp] if job.raw.timestamp else []
    columns = [*SIDES, ROW, *time, *job.extra_columns, *(each.column for each in collected)]
    rows = job.rows(number, columns)
    codes = job.split_codes(number, rows)
    np.save(out / CODES_FILE, codes)
    rows = rows.filter(pl.Series(codes == TRAIN))
    for side in SIDES:
        write_sparse(out / counts_file(side), Sparse(*np.unique(rows[side], return_counts=True)))
    for position, (_, column, is_counted) in enumerate(collected):
        counts = values_of(rows[column], is_counted)
        share = (counts["value"].hash() % VALUE_SHARES).to_numpy().astype(np.int64)
        path = out / f"values-{position}.arrow"
        write_exchange(path, counts.to_arrow(), share, VALUE_SHARES)
    until = int(rows[time[0]].to_numpy().max()) if time and len(rows) else None
    return {"splits": np.bincount(codes, minlength=len(SPLITS)).tolist(), "until": until}


class ValueShare(NamedTuple):
    """A share of the values of a column, by its position among `training_columns`."""

    column: int
    share: int


def vocabulary_part(job: Job, task: ValueShare, out: Path) -> Result:
    """Sorts the distinct values of a share, and adds up their rows."""
    name = f"values-{task.column}.arrow"
    paths = [job.file(VALUES, number, name) for number in range(len(job.parts))]
    counts = pl.DataFrame(pl.from_arrow(pa.concat_tables(read_batches(paths, task.share))))
    merged_rows(counts).sort("value").write_parquet(out / "values.parquet")
    return {}


def encode_part(job: Job, number: int, out: Path) -> Result:
    """Encodes the rows of a part, counts them, and writes those of each split."""
    assert job.schema is not None
    codes = np.load(job.file(VALUES, number, CODES_FILE))
    encoded, target = encoded_features(job), arrow_schema(job.schema)
    tables, counts = encoded_rows(job.raw, encoded, job.rows(number), codes, target)
    write_batches(out / SPLITS_FILE, tables)
    for number, sparse in enumerate(counts.lookups.values()):
        write_sparse(out / counts_file(number), sparse)
    for side in SIDES:
        write_sparse(out / counts_file(side), counts.sides[side])
    return counts.totals()


class DatasetFile(NamedTuple):
    """A file of a split: pieces (part, first row, rows) of the parts' rows of that split."""

    split: int
    number: int
    pieces: list[tuple[int, int, int]]


def file_part(job: Job, task: DatasetFile | Side, out: Path) -> Result:
    """Writes a file of a split from the pieces of the parts, or that of the users or items."""
    if isinstance(task, str):
        return write_side(mapped_sides(job.raw, job.folder), task, out)
    assert job.schema is not None
    with PartWriter(out, arrow_schema(job.schema), first_file=task.number) as writer:
        for part, first, rows in task.pieces:
            table = next(read_batches([job.file(ENCODE, part, SPLITS_FILE)], task.split))
            writer.append(table.slice(first, rows))
    return {}


def send_part(file: tuple[Path, AnyPath], out: Path) -> Result:
    """Copies a file of the dataset to a remote file system."""
    send_file(*file)
    return {}


def dataset_files(rows: npt.NDArray[np.int64], file_rows: int = FILE_ROWS) -> list[DatasetFile]:
    """Returns the files of all splits; `rows` (parts, splits) has the rows of each part.

    Example:
        >>> dataset_files(np.array([[3], [4]]), file_rows=5)[1].pieces
        [(1, 2, 2)]
    """
    files = []
    for split in range(rows.shape[1]):
        ends = np.cumsum(rows[:, split])
        for number in range(-(-int(ends[-1]) // file_rows)):
            low, high = number * file_rows, min((number + 1) * file_rows, int(ends[-1]))
            pieces = []
            for part in range(int(np.searchsorted(ends, low, side="right")), len(rows)):
                start = int(ends[part] - rows[part, split])
                first, last = max(low, start), min(high, int(ends[part]))
                if first >= high:
                    break
                if last > first:
                    pieces.append((part, first - start, last - first))
            files.append(DatasetFile(split, number, pieces))
    return files
