"""Parquet files of raw rows, read as the encoded files of a split are."""

from collections.abc import Sequence

import pyarrow as pa

from msrec.data.features.row_encoder import RawRows
from msrec.data.io.parquet_files import read_row_group
from msrec.data.io.paths import AnyPath, first_line
from msrec.data.loading.split_reader import Columns, RowGroup, SplitFiles
from msrec.data.schema import Schema


class RawFiles(SplitFiles):
    """Rows of raw values, which a dataset's vocabularies encode while they are read.

    Args:
        dataset: whose vocabularies, users and items.
        schema: of the dataset; labels and timestamp are not read.
        paths: the files, with the columns of `RawRows`.

    Raises:
        FileNotFoundError: the dataset lacks what encodes.
        ValueError: a file is not readable Parquet or lacks a column, or (while reading) a value is
            not what it must be.
    """

    def __init__(self, dataset: AnyPath, schema: Schema, paths: Sequence[AnyPath]) -> None:
        self._rows = RawRows(dataset)
        super().__init__(dataset, schema, "test", only=(), paths=paths)

    def _check_types(self, path: AnyPath, found: pa.Schema) -> None:
        self._rows.require(found.names, str(path))

    def _columns(self, group: RowGroup) -> Columns:
        metadata = self.metadata[group.path]
        present = metadata.schema.to_arrow_schema().names
        wanted = [name for name in self._rows.names if name in present]
        try:
            table = read_row_group(group.path, group.index, wanted, metadata)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{group.path}: row group {group.index} could not be read; {first_line(error)}."
            ) from None
        columns = self._rows.encode(table, str(group.path), group.first_row)
        return {name: columns[name] for name in self.schema.columns}
