"""Read Parquet files of this machine and of others alike."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from msrec.data.io.paths import AnyPath, first_line, is_file, is_remote


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """The Parquet files of a folder, by name; none where there is no such folder."""
    return sorted(folder.glob("*.parquet"), key=lambda path: path.name)


def named_parquet_files(path: AnyPath) -> list[AnyPath]:
    """A Parquet file that is named, or those of a folder that is.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path] if is_file(path) else parquet_files(path)
    if not found:
        raise FileNotFoundError(f"{path} must be a Parquet file or a folder of some.")
    return found


@contextmanager
def readable(path: AnyPath) -> Iterator[Any]:
    """What pyarrow and polars read `path` from.

    Of a remote one an open file without any cache: it gets what is asked for, and no more.

    Raises:
        OSError: it cannot be opened or read; a ConnectionError where the network is at fault.
    """
    if isinstance(path, Path):
        yield path
        return
    try:
        with path.fs.open(path.path, "rb", cache_type="none") as file:
            yield file
    except (OSError, ValueError):
        raise
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        # Those of a provider's library: its requests failed, for good.
        raise ConnectionError(f"{type(error).__name__}: {first_line(error)}") from error


def parquet_metadata(path: AnyPath) -> pq.FileMetaData:
    """The footer of a Parquet file."""
    with readable(path) as file:
        return pq.read_metadata(file)


def num_rows(folder: AnyPath) -> int:
    """Rows of all Parquet files of a folder."""
    return sum(parquet_metadata(path).num_rows for path in parquet_files(folder))


def parquet_names(path: AnyPath) -> list[str]:
    """The columns of a Parquet file."""
    with readable(path) as file:
        names: list[str] = pq.read_schema(file).names
        return names


def read_parquet(path: AnyPath, columns: Sequence[str]) -> pa.Table:
    """Columns of a whole Parquet file."""
    with readable(path) as file:
        return pq.read_table(file, columns=list(columns))


def read_row_group(
    path: AnyPath, index: int, columns: list[str], metadata: pq.FileMetaData
) -> pa.Table:
    """Columns of one row group; a remote one comes in as few requests as its columns allow."""
    with readable(path) as source:
        file = pq.ParquetFile(source, metadata=metadata, pre_buffer=is_remote(path))
        return file.read_row_group(index, columns=columns, use_threads=False)


def scan_parquet(paths: Iterable[AnyPath]) -> pl.LazyFrame:
    """The files as one lazy frame, read as far as it is needed."""
    paths = list(paths)
    if not is_remote(paths[0]):
        return pl.scan_parquet(paths)  # type: ignore[arg-type]
    names = [path.path for path in paths]  # type: ignore[union-attr]
    files = pa.dataset.dataset(names, format="parquet", filesystem=paths[0].fs)  # type: ignore[union-attr]
    return pl.scan_pyarrow_dataset(files)
