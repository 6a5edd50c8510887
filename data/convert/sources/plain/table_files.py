"""Files of plain tables: Parquet, Delta, Iceberg, or text whose columns tables.yaml describes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from msrec.data.convert.row_filter import ROW
from msrec.data.convert.sources.plain.delta_tables import delta_files, delta_version, is_delta
from msrec.data.convert.sources.plain.iceberg_tables import (
    iceberg_files,
    iceberg_snapshot,
    is_iceberg,
)
from msrec.data.convert.sources.plain.version_files import VersionFile
from msrec.data.convert.sources.text_blocks import CsvFormat, read_blocks, split_lines
from msrec.data.convert.sources.text_reader import Columns, Scalar, TextReader
from msrec.data.io.parquet_files import parquet_names, read_frame, read_rows, scan_parquet
from msrec.data.io.paths import AnyPath, entries, is_file

PARQUET = ".parquet"
CSV_FORMATS = {".csv": CsvFormat(), ".tsv": CsvFormat("\t")}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (PARQUET, *CSV_FORMATS, *JSON_LINES)
PACKED = ".gz"
TIMESTAMP = "timestamp"
FIRST_LINES = 1000
"""Lines of a file of JSON lines that name its columns."""
LISTS = list[Scalar] | None
"""Type of a column of lists."""
TABLES = ("interactions", "users", "items")
TableFile = AnyPath | VersionFile
Versions = Mapping[str, int]
"""Table -> version of a Delta table, or snapshot of an Iceberg table."""


def table_versions(folder: AnyPath, given: Versions, earlier: Versions) -> dict[str, int]:
    """Returns the version of each Delta or Iceberg table: given, of an earlier call, or latest.

    Raises:
        ValueError: a version is given for another table, or a package is not installed.
    """
    latest: dict[str, Callable[[AnyPath], int]] = {}
    for table in TABLES:
        if is_delta(folder / table):
            latest[table] = delta_version
        elif is_iceberg(folder / table):
            latest[table] = iceberg_snapshot
    if other := [table for table in given if table not in latest]:
        raise ValueError(
            f"a version must be of a Delta or Iceberg table in {folder} "
            f"({', '.join(latest) or 'none'}); got one of {', '.join(other)}. Leave it out."
        )
    known = {**earlier, **given}
    return {t: known[t] if t in known else find(folder / t) for t, find in latest.items()}


def table_files(folder: AnyPath, table: str, versions: Versions) -> list[TableFile]:
    """Returns the files of a table by name: of a version, of `interactions`, or a single one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `interaction_files`, `find_table`, `delta_files` and `iceberg_files`.
    """
    if table not in versions:
        if table == "interactions":
            return [*interaction_files(folder)]
        return [find_table(folder, table)]
    _refuse_single(folder, table)
    files_of = delta_files if is_delta(folder / table) else iceberg_files
    return [*files_of(folder / table, versions[table])]


def file_path(file: TableFile) -> AnyPath:
    """Returns the path of a file."""
    return file.path if isinstance(file, VersionFile) else file


def file_columns(file: TableFile) -> list[str]:
    """Returns the columns of the table that a Parquet file belongs to."""
    return list(file.schema) if isinstance(file, VersionFile) else parquet_names(file)


def file_rows(
    file: TableFile, start: int, rows: int, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Reads rows [start, start + rows) of a Parquet file; see `read_rows`."""
    if isinstance(file, VersionFile):
        return file.read(start, rows, columns)
    return read_rows(file, start, rows, columns)


def is_text(path: TableFile) -> bool:
    """Returns whether a file of a table is CSV or JSON lines."""
    return _suffix(path) != PARQUET


def is_json(path: TableFile) -> bool:
    """Returns whether a file of a table is JSON lines."""
    return _suffix(path) in JSON_LINES


def find_table(folder: AnyPath, table: str) -> AnyPath:
    """Returns the file of a table: `users.parquet`, `users.csv`, `users.jsonl.gz`, ...

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    names = [table + suffix + packed for suffix in SUFFIXES for packed in ("", PACKED)]
    found = {path.name: path for path in entries(folder, f"{table}.*")}
    files = [found[name] for name in names if name in found and is_file(found[name])]
    if not files:
        raise FileNotFoundError(
            f"{folder / table}{PARQUET} must exist: plain tables are interactions, users and items "
            f"({', '.join(SUFFIXES)}; text files may be {PACKED})."
        )
    if len(files) > 1:
        several = ", ".join(path.name for path in files)
        raise ValueError(f"{folder} must have one file of {table}; found {several}. Remove one.")
    return files[0]


def interaction_files(folder: AnyPath) -> list[AnyPath]:
    """Returns the file of the interactions, or the files of the folder `interactions` by name.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: there are both, or the files of the folder have different formats or columns.
    """
    found = entries(folder / "interactions")
    files = [path for path in found if not path.name.startswith((".", "_"))]  # such as _SUCCESS
    if other := next((p for p in files if _suffix(p) not in SUFFIXES), None):
        raise ValueError(
            f"{other.parent} must hold only files of rows ({', '.join(SUFFIXES)}; text files may "
            f"be {PACKED}); found {other.name}. Move it away, or give it the name of its format."
        )
    if not files:
        return [find_table(folder, "interactions")]
    _refuse_single(folder, "interactions")
    if other := next((p for p in files if _suffix(p) != _suffix(files[0])), None):
        raise ValueError(
            f"{folder / 'interactions'} must hold files of one format; found {files[0].name} and "
            f"{other.name}. Convert one of them."
        )
    if not is_text(files[0]):
        scan_parquet(files)  # refuses files with different columns
    return files


def _refuse_single(folder: AnyPath, table: str) -> None:
    """Refuses a file of a table that has a folder."""
    single = [path for path in entries(folder, f"{table}.*") if _suffix(path) in SUFFIXES]
    if single:
        raise ValueError(
            f"{folder} must have {single[0].name} or the folder {table}, not both. Remove one."
        )


def text_columns(path: TableFile, declared: Columns) -> Columns:
    """Returns the columns of a text file with their types; none for a Parquet file.

    Text has no types of its own: a column is what tables.yaml says, else text. The columns are
    those of the header, or those of the first `FIRST_LINES` JSON lines and also the declared ones
    but the timestamp. There, a column whose first value is a list is one.

    Args:
        path: a file of a table.
        declared: types of columns.

    Raises:
        ValueError: a column is called `row`.
    """
    if isinstance(path, VersionFile) or not is_text(path):
        return {}
    if ROW in declared:
        raise ValueError(
            f"{path}: no column of a text table may be called {ROW!r}, by which msrec numbers the "
            "rows. Rename it."
        )
    first = _first_values(path)
    is_csv = _suffix(path) in CSV_FORMATS
    others = () if is_csv else (name for name in declared if name != TIMESTAMP)
    columns: dict[str, Any] = {}
    for name in dict.fromkeys((*first, *others)):
        kind = declared.get(name, str | None)
        is_list = kind == LISTS if first.get(name) is None else isinstance(first[name], list)
        if is_list and not is_csv:
            kind = LISTS
        elif kind == LISTS:
            kind = Scalar | None
        columns[name] = kind
    columns.pop(ROW, None)
    return columns


def read_text(path: AnyPath, columns: Columns, reader: TextReader) -> Iterator[pl.DataFrame]:
    """Yields the rows of a text file, with their numbers in the column `row`."""
    form = CSV_FORMATS.get(_suffix(path))
    return reader.json_lines(path, columns) if form is None else reader.csv(path, columns, form)


def read_table(path: TableFile, columns: Columns, reader: TextReader) -> pl.DataFrame:
    """Reads a file of a table; that of a text file has the column `row`.

    Args:
        path: file of `table_files`.
        columns: those of `text_columns`.
        reader: reads text, with the policy for bad rows.

    Raises:
        ValueError: the file is damaged; or, by the policy, a value does not have its type.
    """
    if isinstance(path, VersionFile):
        return path.read()
    if is_text(path):
        return pl.concat(read_text(path, columns, reader))
    return read_frame(path)


def read_files(
    table: str, files: Sequence[TableFile], columns: Columns, reader: TextReader
) -> pl.DataFrame:
    """Reads all files of a table; see `read_table`."""
    return pl.concat([read_table(file, columns, reader) for file in files])


def _first_values(path: AnyPath) -> Mapping[str, Any]:
    """Returns the names of the columns in a text file, with the first values in JSON."""
    form = CSV_FORMATS.get(_suffix(path))
    if form is not None:
        return dict.fromkeys(TextReader().header(path, form))
    first: dict[str, Any] = {}
    for line in split_lines(next(read_blocks(path, None, None), b""))[:FIRST_LINES]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a bad line, which is counted or refused when the rows are read
        if isinstance(row, dict):
            first |= {name: value for name, value in row.items() if first.get(name) is None}
    return first


def _suffix(path: TableFile) -> str:
    """Returns the suffix that tells the format: `.csv` for x.csv.gz."""
    return Path(path.name.removesuffix(PACKED)).suffix
