"""Ids of the files -> rows of the tables that a model has, where these are not the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.loading.split_reader import Columns
from msrec.data.schema import Schema, SparseFeature

Ids = npt.NDArray[np.int32]
Change = Callable[[SparseFeature, Ids, Any], Ids]
"""(feature, n ids, the index of each id's row) -> n ids."""


def own_ids(schema: Schema, columns: Columns) -> Columns:
    """The ids of a scenario's own copy of each table: id + scenario * rows of the table.

    Args:
        schema: whose tables have the size of one copy.
        columns: of some rows, as `SplitFiles.take` gives them.

    Returns:
        All columns, those of sparse features shifted; int32.
    """
    scenario = columns["scenario"].astype(np.int32)

    def shifted(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
        shift: Ids = scenario * np.int32(schema.tables[feature.table])
        of_ids: Ids = shift[row]
        return ids + of_ids

    return changed_ids(schema, columns, shifted)


def scaled_ids(schema: Schema, scaled: Schema, columns: Columns) -> Columns:
    """The ids of smaller tables: many ids share a row, row 0 (unknown) stays.

    Args:
        schema: of the files.
        scaled: the same with smaller tables, see `Schema.scaled`.
        columns: of some rows, as `SplitFiles.take` gives them.
    """

    def folded(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
        rows = np.int32(scaled.tables[feature.table])
        if rows == schema.tables[feature.table]:
            return ids
        known: Ids = 1 + (ids - 1) % (rows - 1)
        return np.where(ids == UNKNOWN, np.int32(UNKNOWN), known)

    return changed_ids(schema, columns, folded)


def changed_ids(schema: Schema, columns: Columns, change: Change) -> Columns:
    """All columns, the ids of the schema's sparse features as `change` gives them."""
    found = dict(columns)
    for feature in schema.sparse:
        column = columns[feature.name]
        if not feature.multi:
            found[feature.name] = change(feature, column, slice(None))
            continue
        offsets = column.offsets.to_numpy()
        ids = column.values.to_numpy()[offsets[0] : offsets[-1]]
        row = np.repeat(np.arange(len(column)), np.diff(offsets))
        changed = change(feature, ids, row)
        found[feature.name] = pa.ListArray.from_arrays(offsets - offsets[0], changed)
    return found
