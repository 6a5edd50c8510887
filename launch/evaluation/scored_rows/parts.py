"""Reads the parts of a folder of predictions, whole or in pieces, and checks their values."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from msrec.data.io.parquet_files import named_errors
from msrec.launch.evaluation.scored_rows.commit import (
    COLUMNS,
    COMBINED,
    COMMIT_FILE,
    IMPRESSION,
    INTEGERS,
    Commit,
    label_column,
    load_commit,
)


class Parts(NamedTuple):
    """A committed folder of predictions: its marker, its files, and the columns that all have."""

    folder: Path
    commit: Commit
    paths: list[Path]
    columns: list[str]

    @classmethod
    def open(cls, folder: Path) -> "Parts":
        """Reads the marker and the schemas of the parts.

        Raises:
            FileNotFoundError: the folder is not complete or has no parts.
            ValueError: a part lacks a column, or has one that another lacks.
        """
        commit = load_commit(folder)
        paths = sorted(folder.glob("part-*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{folder} must hold part-RANK.parquet files; found none.")
        columns = [_known_columns(path, commit) for path in paths]
        for name in dict.fromkeys(name for part in columns for name in part):
            if any(name not in part for part in columns):
                raise ValueError(f"{folder}: column {name} must be in every part or in none.")
        return cls(folder, commit, paths, columns[0])

    def read(
        self, columns: Sequence[str] | None = None, rows_at_once: int | None = None
    ) -> Iterator[tuple[Path, pa.Table]]:
        """Yields the rows of each part, as a whole or some at a time, after it checked them.

        Raises:
            ValueError: a part cannot be read, or a value is null or NaN.
        """
        names = list(columns or self.columns)
        labels = {label_column("label", number) for number in range(self.commit.num_labels)}
        for path in self.paths:
            with named_errors(path), pq.ParquetFile(path) as file:
                first = 0
                for table in _pieces(file, names, rows_at_once):
                    for name in names:
                        _check_column(path, first, name, table, may_be_nan=name in labels)
                    yield path, table
                    first += len(table)

    def column_names(self, number: int) -> dict[str, str]:
        """Returns the columns of a label that the parts have, by the names of `label_column`."""
        names = {
            name: label_column(name, number) for name in ("label", "score", "label_weight", "truth")
        }
        return {name: column for name, column in names.items() if column in self.columns}


def _pieces(file: pq.ParquetFile, names: list[str], rows: int | None) -> Iterator[pa.Table]:
    if rows is None:
        yield file.read(names)
        return
    for piece in file.iter_batches(rows, columns=names):
        yield pa.Table.from_batches([piece])


def _known_columns(path: Path, commit: Commit) -> list[str]:
    """Returns the columns of a part that predictions can have."""
    labels = range(1, commit.num_labels)
    required = [*COLUMNS, *(label_column(name, t) for t in labels for name in ("label", "score"))]
    required += [COMBINED] if commit.combined else []
    numbers, names_of_label = range(commit.num_labels), ("label_weight", "truth")
    optional = [label_column(name, number) for name in names_of_label for number in numbers]
    optional.append(IMPRESSION)
    with named_errors(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(required)}; missing: {', '.join(missing)}."
        )
    return [*required, *(name for name in optional if name in names)]


def _check_column(path: Path, first: int, name: str, table: pa.Table, *, may_be_nan: bool) -> None:
    column = table[name]
    is_float = pa.types.is_floating(column.type)
    if name in INTEGERS:
        if not pa.types.is_integer(column.type):
            raise ValueError(f"{path}: {name} must be an integer column; found {column.type}.")
    elif name != "user" and not is_float:
        raise ValueError(f"{path}: {name} must be a float column; found {column.type}.")
    bad = column.is_null(nan_is_null=is_float and not may_be_nan)
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        value = "NaN" if column[row].is_valid else "null"
        raise ValueError(
            f"{path}: {name} must be a value in every row; found {value} at row {first + row} "
            f"(row_id {table['row_id'][row].as_py()})."
        )


class RowCheck:
    """Checks that each of the committed rows exists exactly once, with a byte per row."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._seen = np.zeros(parts.commit.rows, np.bool_)
        self._count = 0

    def add(self, path: Path, row_id: NDArray[np.int64]) -> None:
        """Adds rows of a part.

        Raises:
            ValueError: an id is out of range.
        """
        outside = (row_id < 0) | (row_id >= len(self._seen))
        if outside.any():
            raise ValueError(
                f"{path}: row_id must be in 0..{len(self._seen) - 1}, as {COMMIT_FILE} says; got "
                f"{row_id[np.argmax(outside)]}. Remove parts of other runs and predict again."
            )
        self._seen[row_id] = True
        self._count += len(row_id)

    def finish(self) -> None:
        """Raises a ValueError if a row is missing or exists more than once."""
        folder, commit = self._parts.folder, self._parts.commit
        if np.count_nonzero(self._seen) < self._count:
            raise ValueError(self._duplicates())
        if self._count != commit.rows - commit.left_out:
            raise ValueError(
                f"{folder}: {COMMIT_FILE} says {commit.rows - commit.left_out} rows; found "
                f"{self._count}, the first missing row_id is {int(np.argmin(self._seen))}. Predict "
                "again."
            )

    def _duplicates(self) -> str:
        ids = [
            (path.name, table["row_id"].to_numpy()) for path, table in self._parts.read(["row_id"])
        ]
        count = np.bincount(np.concatenate([of_part for _, of_part in ids]))
        first = int(np.argmax(count > 1))
        names = sorted({name for name, of_part in ids if (of_part == first).any()})
        return (
            f"{self._parts.folder}: each row_id must exist once; {int((count > 1).sum())} exist "
            f"more than once, the first is {first} in {', '.join(names)}. Predict again."
        )
