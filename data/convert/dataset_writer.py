"""The files of a dataset folder: Parquet parts, row groups, and a folder that appears whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.schema import SCHEMA_FILE, Schema

ROW_GROUP_ROWS = 65_536
FILE_ROWS = 4 * 1024 * 1024
_LIST = pa.list_(pa.field("element", pa.int32(), nullable=False))


def arrow_schema(schema: Schema, extra: tuple[str, ...] = ()) -> pa.Schema:
    """The columns of an interactions file, none of them nullable; `extra` ones are float32."""
    types = {name: pa.int32() for name in ("user", "item", "scenario")}
    types |= {f.name: _LIST if f.multi else pa.int32() for f in schema.sparse}
    types |= {name: pa.float32() for name in (*schema.dense, *schema.labels, *extra)}
    if schema.timestamp:
        types[schema.timestamp] = pa.int64()
    order = [*schema.columns, *extra]
    return pa.schema([pa.field(name, types[name], nullable=False) for name in order])


def arrow_column(values: pl.Series, kind: pa.DataType) -> pa.Array:
    """One column in the type of the file; lists become list<int32> with 32-bit offsets."""
    array = values.rechunk().to_arrow()
    if not pa.types.is_list(kind):
        return array.cast(kind)
    return pa.ListArray.from_arrays(array.offsets.cast(pa.int32()), array.values, type=kind)


class PartWriter:
    """Writes a stream of tables as part-00000.parquet, part-00001.parquet, ... of a split.

    Row groups have `row_group_rows` rows and files `file_rows` (the last ones fewer), wherever the
    incoming tables were cut, so that the same rows give the same bytes.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        row_group_rows: int = ROW_GROUP_ROWS,
        file_rows: int = FILE_ROWS,
    ) -> None:
        assert file_rows % row_group_rows == 0, "a file must hold whole row groups"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._folder, self._schema = folder, schema
        self._row_group_rows, self._file_rows = row_group_rows, file_rows
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._file: Any = None

    def append(self, table: pa.Table) -> None:
        """Add rows; whole row groups are written at once, the rest waits for more."""
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        if self._num_waiting >= self._row_group_rows:
            ready = pa.concat_tables(self._waiting)
            whole = ready.num_rows - ready.num_rows % self._row_group_rows
            for start in range(0, whole, self._row_group_rows):
                self._write(ready.slice(start, self._row_group_rows))
            self._waiting, self._num_waiting = [ready.slice(whole)], ready.num_rows - whole

    def close(self) -> None:
        """Write what waits and finish the file."""
        if self._num_waiting:
            self._write(pa.concat_tables(self._waiting))
        self._waiting, self._num_waiting = [], 0
        self._finish_file()

    def __enter__(self) -> Self:
        """Use the writer as a context, which closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an error only the open file, since the folder is thrown away."""
        if kind is None:
            self.close()
        else:
            self._finish_file()

    def _write(self, table: pa.Table) -> None:
        if self._file is None:
            name = f"part-{self.rows // self._file_rows:05d}.parquet"
            self._file = pq.ParquetWriter(
                self._folder / name, self._schema, compression="lz4", write_statistics=True
            )
        self._file.write_table(table.combine_chunks(), row_group_size=self._row_group_rows)
        self.rows += table.num_rows
        if self.rows % self._file_rows == 0:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write users.parquet or items.parquet: plain strings and integers that any reader takes."""
    large = [frame[column].rechunk().to_arrow() for column in frame.columns]
    arrays = [a.cast(pa.int64() if pa.types.is_integer(a.type) else pa.string()) for a in large]
    pq.write_table(pa.table(arrays, names=frame.columns), path, compression="lz4")


@contextmanager
def new_folder(
    out: Path | str, overwrite: bool = False, marker: str = SCHEMA_FILE
) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name when the block ends well.

    What a killed run left in the scratch folder is removed by the next one. With `overwrite` the
    old folder stays until the new one is complete.

    Args:
        out: the folder to make.
        overwrite: replace an older one.
        marker: the file by which one of this kind is known; nothing else is replaced.

    Raises:
        ValueError: `out` is there already, or is not such a folder that could be replaced.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise ValueError(
            f"{out} must not exist yet, so that nothing is lost; it does. Choose another folder or "
            "pass overwrite."
        )
    if out.exists() and not (out / marker).is_file():
        raise ValueError(
            f"{out} must hold {marker} to be overwritten; it does not. Remove it yourself or "
            "choose another folder."
        )
    scratch, old = (out.parent / f".{out.name}.{word}" for word in ("partial", "old"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        scratch.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
