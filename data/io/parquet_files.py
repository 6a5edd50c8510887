"""Reads Parquet files, local or remote."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from msrec.data.io.paths import AnyPath, entries, first_line, is_file, is_remote, unreachable


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """Returns the Parquet files of a folder by name; none if the folder does not exist."""
    return entries(folder, "*.parquet")


def named_parquet_files(path: AnyPath) -> list[AnyPath]:
    """Returns a Parquet file, or those of a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = [path] if is_file(path) else parquet_files(path)
    if not paths:
        raise FileNotFoundError(f"{path} must be a Parquet file or a folder of some.")
    return paths


REMOTE_READERS = 8
"""Remote files or row groups that a process reads at the same time: mostly it waits."""


@contextmanager
def readable(path: AnyPath) -> Iterator[Any]:
    """Yields what pyarrow and polars can read: a local path, or an open remote file.

    A remote file has no cache, so that only the bytes that are needed are transferred.

    Raises:
        OSError: the file cannot be opened or read; a ConnectionError if the network failed.
    """
    if isinstance(path, Path):
        yield path
        return
    try:
        with path.fs.open(path.path, "rb", cache_type="none") as file:
            yield file
    except (OSError, ValueError, pl.exceptions.PolarsError):
        raise
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        # An error class of a provider's library: its requests failed after all retries.
        raise ConnectionError(f"{type(error).__name__}: {first_line(error)}") from error


@contextmanager
def named_errors(path: AnyPath) -> Iterator[None]:
    """Turns what pyarrow and polars say about a broken file into a sentence that names it.

    Raises:
        OSError: the file cannot be opened; a ConnectionError if the network failed.
        ValueError: the file is not a whole Parquet file.
    """
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        network = (ConnectionError, TimeoutError, FileNotFoundError, PermissionError)
        if is_remote(path) and isinstance(error, network):
            raise unreachable(path, error) from None
        if isinstance(error, OSError) and (error.errno or isinstance(error, ConnectionError)):
            raise
        reason = first_line(error).rstrip(".")
        raise ValueError(f"{path} must be a whole Parquet file; {reason}.") from None


def parquet_metadata(path: AnyPath) -> pq.FileMetaData:
    """Reads the footer of a Parquet file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not a whole Parquet file.
    """
    with named_errors(path), readable(path) as file:
        return pq.read_metadata(file)


def footers(paths: Sequence[AnyPath]) -> list[pq.FileMetaData]:
    """Reads the footers of Parquet files, those of remote ones at the same time."""
    if not paths or not is_remote(paths[0]):
        return [parquet_metadata(path) for path in paths]
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        return list(pool.map(parquet_metadata, paths))


def num_rows(folder: AnyPath) -> int:
    """Returns the number of rows of all Parquet files of a folder."""
    return sum(parquet_metadata(path).num_rows for path in parquet_files(folder))


def parquet_names(path: AnyPath) -> list[str]:
    """Returns the column names of a Parquet file."""
    names: list[str] = parquet_metadata(path).schema.to_arrow_schema().names
    return names


def read_parquet(path: AnyPath, columns: Sequence[str]) -> pa.Table:
    """Reads columns of a whole Parquet file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not a whole Parquet file, or lacks a column.
    """
    with named_errors(path), readable(path) as source:
        file = pq.ParquetFile(source, pre_buffer=is_remote(path))
        names = file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise ValueError(
                f"{path} must have the column {', '.join(map(repr, missing))}; found "
                f"{', '.join(names)}."
            )
        return file.read(columns=list(columns))


def read_row_group(
    path: AnyPath, index: int, columns: list[str], metadata: pq.FileMetaData
) -> pa.Table:
    """Reads columns of one row group; of a remote file in as few requests as possible."""
    with readable(path) as source:
        file = pq.ParquetFile(source, metadata=metadata, pre_buffer=is_remote(path))
        return file.read_row_group(index, columns=columns, use_threads=False)


def read_frame(path: AnyPath) -> pl.DataFrame:
    """Reads a whole Parquet file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not a whole Parquet file.
    """
    with named_errors(path), readable(path) as source:
        return pl.read_parquet(source, glob=False)


def read_rows(
    path: AnyPath, start: int, rows: int, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Reads rows [start, start + rows), of a remote file only the row groups that have them.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not a whole Parquet file.
    """
    if isinstance(path, Path):
        with named_errors(path):
            frame = pl.scan_parquet(path, glob=False).slice(start, rows)
            return (frame if columns is None else frame.select(columns)).collect()
    with named_errors(path), readable(path) as source:
        file = pq.ParquetFile(source, pre_buffer=True)
        sizes = (file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))
        ends = list(itertools.accumulate(sizes, initial=0))
        of_group = list(itertools.pairwise(ends))
        groups = [
            n for n, (low, high) in enumerate(of_group) if low < start + rows and high > start
        ]
        table = file.read_row_groups(groups, columns=columns)
        skipped = start - ends[groups[0]] if groups else 0
        names = table.column_names if columns is None else list(columns)
        return pl.DataFrame(pl.from_arrow(table.select(names).slice(skipped, rows)))


def scan_parquet(paths: Iterable[AnyPath]) -> pl.LazyFrame:
    """Returns the files as one lazy frame.

    Raises:
        ValueError: a file is not a whole Parquet file, or has other columns than the first one.
    """
    paths = list(paths)
    first = None
    for path, footer in zip(paths, footers(paths), strict=True):
        schema = footer.schema.to_arrow_schema()
        columns = {field.name: field.type for field in schema}
        first = first or columns
        if columns != first:
            differing = sorted(
                name for name in {*columns, *first} if columns.get(name) != first.get(name)
            )
            raise ValueError(
                f"{path} must have the columns and types of {paths[0]}; it differs in "
                f"{', '.join(differing)}."
            )
    if not is_remote(paths[0]):
        rows = pl.scan_parquet(paths, glob=False)  # type: ignore[arg-type]
        with named_errors(paths[0]):
            rows.collect_schema()
        return rows
    names = [path.path for path in paths]  # type: ignore[union-attr]
    files = pa.dataset.dataset(names, format="parquet", filesystem=paths[0].fs)  # type: ignore[union-attr]
    return pl.scan_pyarrow_dataset(files)
