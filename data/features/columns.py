"""Columns of some rows by name, and a function over the ids in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.schema import Schema, SparseFeature

Scalars = npt.NDArray[Any]
Columns = dict[str, Any]
"""Name -> `Scalars`, or a `pa.ListArray` for a multi-valued feature, as the schema says."""
Ids = npt.NDArray[np.int32]
IdMap = Callable[[SparseFeature, Ids, Any], Ids]
"""(feature, ids (n,), index of each id's row) -> ids (n,)."""


def map_ids(schema: Schema, columns: Columns, change: IdMap) -> Columns:
    """Applies a function to the ids of every sparse feature.

    Args:
        schema: names the sparse features.
        columns: of some rows. They stay as they are.
        change: called once per feature, with the ids of all rows in one array.

    Returns:
        All columns; those of sparse features hold the new ids.
    """
    mapped = dict(columns)
    for feature in schema.sparse:
        column = columns[feature.name]
        if not feature.multi:
            mapped[feature.name] = change(feature, column, slice(None))
            continue
        offsets = column.offsets.to_numpy()
        ids = column.values.to_numpy()[offsets[0] : offsets[-1]]
        row = np.repeat(np.arange(len(column)), np.diff(offsets))
        mapped[feature.name] = pa.ListArray.from_arrays(
            offsets - offsets[0], change(feature, ids, row)
        )
    return mapped
