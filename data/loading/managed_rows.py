"""Table rows of managed features outside of the model: the map of a trained run, in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.features.columns import Columns, Ids
from msrec.data.features.value_counts import Counts, ValueCounts
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.io.names import safe_name
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Schema

MANAGED = "managed"
"""Folder of files FEATURE.parquet: `id` (int64, see `Managed`), ascending, and `row` (int32)."""
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ManagedRows:
    """Replaces the numbers of managed features by table rows, 0 for a number without a row.

    Args:
        rows_of: feature -> numbers with rows, (N,), int64, ascending, and their rows, (N,), int32.
    """

    rows_of: Mapping[str, tuple[Numbers, Ids]]

    @classmethod
    def load(cls, folder: AnyPath, schema: Schema) -> Self:
        """Reads the files of an export."""
        rows_of = {}
        for feature in schema.managed:
            table = read_parquet(_file(folder, feature.name), ["id", "row"])
            rows_of[feature.name] = (table["id"].to_numpy(), table["row"].to_numpy())
        return cls(rows_of)

    def save(self, folder: AnyPath) -> None:
        """Writes the files of an export."""
        (folder / MANAGED).mkdir()
        for name, (ids, rows) in self.rows_of.items():
            pq.write_table(pa.table({"id": ids, "row": rows}), _file(folder, name))

    def apply(self, columns: Columns, rows: Numbers, epoch: int) -> Columns:
        """Returns the columns with table rows; see `IdTransform`."""
        return columns | {name: self._rows(name, columns[name]) for name in self.rows_of}

    def counts(self, columns: Columns, counts: Counts) -> Counts:
        """Returns the counts of values, with those that have no row counted as unknown."""
        changed: dict[str, ValueCounts] = {}
        for name in self.rows_of:
            has_no_row = (self._rows(name, columns[name]) == UNKNOWN) & (columns[name] != UNKNOWN)
            changed[name] = counts[name]._replace(unknown=int(has_no_row.sum()))
        return {**counts, **changed}

    def _rows(self, name: str, values: Numbers) -> Ids:
        ids, rows = self.rows_of[name]
        if not len(ids):
            return np.full(len(values), UNKNOWN, dtype=np.int32)
        at = np.searchsorted(ids[:-1], values)
        found: Ids = np.where(ids[at] == values, rows[at], np.int32(UNKNOWN))
        return found


def _file(folder: AnyPath, feature: str) -> AnyPath:
    return folder / MANAGED / f"{safe_name(feature)}.parquet"
