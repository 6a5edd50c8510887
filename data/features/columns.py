"""Columns of rows by name, and the ids in them: one per row, or a list per row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.schema import Schema, SparseFeature

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]
Scalars = npt.NDArray[Any]
Columns = dict[str, Any]
"""Name -> `Scalars`, or a `pa.ListArray` for a multi-valued feature, as the schema says."""
IdMap = Callable[[SparseFeature, Ids, Any], Ids]
"""(feature, ids (n,), index of each id's row) -> ids (n,)."""


class Bags(NamedTuple):
    """Ids of n rows, those of one row after those of another.

    Shape:
        ids: (sum of lengths,), int32, or int64 of a managed feature.
        lengths: (n,), int, number of ids per row; None if every row has exactly one::

            rows [7, 3], [], [5]   ->   ids [7, 3, 5], lengths [2, 0, 1]
    """

    ids: Ids | npt.NDArray[np.int64]
    lengths: Lengths | None = None

    def column(self) -> Scalars | pa.ListArray:
        """Returns the ids as a column of `Columns`."""
        if self.lengths is None:
            return self.ids
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int32)
        np.cumsum(self.lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(offsets, self.ids)


def slice_positions(first: Lengths, lengths: Lengths) -> Lengths:
    """Returns the positions of slices, one slice after the other: (sum of lengths,), int64.

    Args:
        first: (n,), int64, first position of each slice.
        lengths: (n,), int64, at least 0.

    Example:
        >>> slice_positions(np.array([7, 2, 4]), np.array([2, 0, 3])).tolist()
        [7, 8, 4, 5, 6]
    """
    positions = np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    positions += np.arange(len(positions))
    return positions


def is_list(kind: pa.DataType) -> bool:
    """Returns whether values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def nulls(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Returns which values are null."""
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def flattened(values: pa.Array) -> tuple[pa.Array, Lengths | None]:
    """Returns the values of all lists, and the length of each list; None if there are no lists.

    A null list has length 0.
    """
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    if not is_list(values.type):
        return values, None
    lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return values.flatten(), lengths.astype(np.int64)


def map_ids(schema: Schema, columns: Columns, change: IdMap) -> Columns:
    """Applies a function to the ids of every sparse feature that is not managed.

    Args:
        schema: names the sparse features.
        columns: of some rows. They stay as they are.
        change: called once per feature, with the ids of all rows in one array.

    Returns:
        All columns; those of sparse features hold the new ids.
    """
    mapped = dict(columns)
    for feature in schema.sparse:
        if feature.managed:
            continue
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
