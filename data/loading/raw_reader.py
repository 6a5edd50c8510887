"""Reads Parquet files of raw rows as if they were the encoded files of a split."""

from collections.abc import Sequence

import pyarrow as pa

from msrec.data.features.columns import Columns
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.io.parquet_files import read_row_group
from msrec.data.io.paths import AnyPath, first_line
from msrec.data.loading.split_reader import RowGroup, SplitReader
from msrec.data.schema import Schema


class RawReader(SplitReader):
    """Rows of raw values, encoded by a dataset's vocabularies while they are read.

    Args:
        dataset: folder with the vocabularies, users and items.
        schema: of the dataset; labels and timestamp are not read.
        paths: the files, with the columns of `RowEncoder`.

    Raises:
        FileNotFoundError: the dataset lacks a vocabulary.
        ValueError: a file is not readable Parquet or lacks a column, or (while reading) a value is
            not what it must be.
    """

    def __init__(self, dataset: AnyPath, schema: Schema, paths: Sequence[AnyPath]) -> None:
        self._encoder = RowEncoder(dataset)
        super().__init__(dataset, schema, "test", only=(), paths=paths)

    def _type_error(self, path: AnyPath, found: pa.Schema) -> str | None:
        self._encoder.require(found.names, str(path))
        return None

    def _decode(self, group: RowGroup) -> Columns:
        metadata = self.metadata[group.path]
        present = metadata.schema.to_arrow_schema().names
        wanted = [name for name in self._encoder.names if name in present]
        try:
            table = read_row_group(group.path, group.index, wanted, metadata)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{group.path}: row group {group.index} could not be read; {first_line(error)}."
            ) from None
        columns = self._encoder.encode(table, str(group.path), group.first_row)
        return {name: columns[name] for name in self.schema.columns}
