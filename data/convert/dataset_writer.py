"""Files of a dataset folder: Parquet parts of a split, and tables of users and items."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.schema import Schema

ROW_GROUP_ROWS = 65_536
FILE_ROWS = 4 * 1024 * 1024
TABLE_ROWS = 1024 * 1024
"""Rows of a row group of users.parquet and items.parquet."""
_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))


def arrow_schema(schema: Schema, extra: Iterable[str] = ()) -> pa.Schema:
    """Returns the columns of an interactions file; `extra` ones are float32. None is nullable."""
    types = {name: pa.int32() for name in ("user", "item", "scenario")}
    types |= {f.name: _LIST if f.multi else pa.int32() for f in schema.sparse}
    types |= {f.name: pa.int64() for f in schema.managed}
    numbers = (*schema.dense, *schema.labels, *schema.weights, *extra)
    types |= dict.fromkeys(numbers, pa.float32())
    types |= {name: pa.int64() for name in (schema.timestamp, schema.impression) if name}
    order = [*schema.columns, *extra]
    return pa.schema([pa.field(name, types[name], nullable=False) for name in order])


def arrow_column(values: pl.Series, kind: pa.DataType) -> pa.Array:
    """Returns a column in the type of the file; lists become list<int32> with 32-bit offsets."""
    array = values.rechunk().to_arrow()
    if not pa.types.is_list(kind):
        return array.cast(kind)
    return pa.ListArray.from_arrays(array.offsets.cast(pa.int32()), array.values, type=kind)


class PartWriter:
    """Writes the rows of a split as part-00000.parquet, part-00001.parquet, ...

    Row groups have `row_group_rows` rows and files have `file_rows`; the last ones may have fewer.
    The same rows give the same bytes, however they are divided into tables. `first_file` is the
    number of the first file.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        row_group_rows: int = ROW_GROUP_ROWS,
        file_rows: int = FILE_ROWS,
        first_file: int = 0,
    ) -> None:
        assert file_rows % row_group_rows == 0, "a file must hold whole row groups"
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._schema = folder, schema
        self._row_group_rows, self._file_rows = row_group_rows, file_rows
        self._num_written = first_file * file_rows
        self._waiting = schema.empty_table()
        self._file: Any = None

    def append(self, table: pa.Table) -> None:
        """Adds rows. Whole row groups are written at once; the other rows wait for more."""
        self._waiting = pa.concat_tables([self._waiting, table])
        while self._waiting.num_rows >= self._row_group_rows:
            self._write(self._waiting.slice(0, self._row_group_rows))
            self._waiting = self._waiting.slice(self._row_group_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Writes the waiting rows, except after an error, and closes the file."""
        if error is None and self._waiting.num_rows:
            self._write(self._waiting)
        self._close_file()

    def _write(self, table: pa.Table) -> None:
        if self._file is None:
            name = f"part-{self._num_written // self._file_rows:05d}.parquet"
            self._file = pq.ParquetWriter(
                self._folder / name, self._schema, compression="lz4", write_statistics=True
            )
        self._file.write_table(table.combine_chunks(), row_group_size=self._row_group_rows)
        self._num_written += table.num_rows
        if self._num_written % self._file_rows == 0:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_table(
    frame: pl.DataFrame,
    path: Path,
    converted: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame,
) -> None:
    """Writes users.parquet or items.parquet, as int64 and plain strings that any reader knows.

    Args:
        frame: the rows.
        path: the file.
        converted: makes keys and strings of some rows, so that not all are in memory.
    """
    with ExitStack() as stack:
        file = None
        for start in range(0, max(frame.height, 1), TABLE_ROWS):
            some = converted(frame.slice(start, TABLE_ROWS))
            columns = [some[column].rechunk().to_arrow() for column in some.columns]
            kinds = [pa.int64() if pa.types.is_integer(a.type) else pa.string() for a in columns]
            arrays = [array.cast(kind) for array, kind in zip(columns, kinds, strict=True)]
            table = pa.table(arrays, names=some.columns)
            if file is None:
                file = stack.enter_context(pq.ParquetWriter(path, table.schema, compression="lz4"))
            file.write_table(table)
