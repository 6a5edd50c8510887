"""Parquet files of a version of a table, with the columns that they lack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from msrec.data.io.parquet_files import named_errors, parquet_metadata, read_rows
from msrec.data.io.paths import AnyPath

ID = b"PARQUET:field_id"


@dataclass(frozen=True)
class VersionFile:
    """A Parquet file of a version of a Delta or Iceberg table.

    Args:
        path: the file.
        schema: columns of the table; a file that is older than a column has nulls there.
        constants: values of columns in all rows, such as those of partitions, which the file lacks.
        ids: column -> its number, by which the columns of a file are found; by their names if None.
    """

    path: AnyPath
    schema: pl.Schema
    constants: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def read(
        self, start: int = 0, rows: int | None = None, columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Returns columns of the table for the rows [start, start + rows), or to the end."""
        metadata = parquet_metadata(self.path)
        in_file = self._in_file(metadata.schema.to_arrow_schema())
        names = list(self.schema) if columns is None else list(columns)
        # A row is counted by any column, if the file has none of those.
        read = [in_file[name] for name in names if name in in_file]
        read = read or metadata.schema.to_arrow_schema().names[:1]
        with named_errors(self.path):
            frame = read_rows(self.path, start, metadata.num_rows if rows is None else rows, read)
            values = (
                (pl.col(in_file[name]) if name in in_file else pl.lit(self.constants.get(name)))
                .cast(self.schema[name])
                .alias(name)
                for name in names
            )
            return frame.with_columns(values).select(names)

    def _in_file(self, columns: pa.Schema) -> dict[str, str]:
        """Returns column of the table -> column of the file, of those that the file has.

        Raises:
            ValueError: columns are found by their numbers, and the file has none.
        """
        if self.ids is None:
            return {name: name for name in columns.names if name not in self.constants}
        named = {int(f.metadata[ID]): f.name for f in columns if ID in (f.metadata or {})}
        if not named:
            raise ValueError(
                f"{self.path} must have the numbers of its columns, as files that Iceberg writes; "
                "it has none. Rewrite the table's files."
            )
        return {name: named[number] for name, number in self.ids.items() if number in named}
