"""Positions of raw values among known ones, for conversion, prediction and serving alike."""

from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from msrec.data.features.columns import Ids, nulls
from msrec.data.features.value_types import stored
from msrec.data.io.mapped_tables import read_mapped, write_mapped

MANY = 8
"""Hashing all n known values costs about as much as looking up n / 8 values one by one."""


class ValueIndex:
    """Positions of values in an array of distinct ones.

    Values are compared in the types in which they are stored, see `stored`.

    Args:
        known: distinct values; nulls among them keep their positions but match nothing.

    Example:
        >>> index = ValueIndex(pa.array(["a", "b", None, "c"]))
        >>> index.positions(pa.array(["c", "new", None, "a"])).tolist()
        [3, -1, -1, 0]
    """

    def __init__(self, known: pa.Array) -> None:
        self._known = stored(known)

    @property
    def type(self) -> pa.DataType:
        """Type of the known values, as `stored` returns them."""
        return self._known.type

    def positions(self, values: pa.Array) -> Ids:
        """Returns the position of each value, -1 for a null and for a value that is not known.

        Raises:
            ValueError: the values cannot be compared with the known ones.
        """
        values = stored(values)
        if values.null_count == len(values) or not len(self._known):
            return np.full(len(values), -1, dtype=np.int32)
        if values.type != self.type:
            raise ValueError(f"values must be {self.type}, as the known ones; got {values.type}.")
        # Arrow hashes all known values in each call. That is the fastest way for many values; a
        # request of a few rows looks them up in a structure that is built once.
        if len(values) * MANY >= len(self._known):
            positions = pc.index_in(values, value_set=self._known, skip_nulls=True)
            return np.asarray(positions.fill_null(-1).to_numpy())
        if pa.types.is_integer(self.type):
            known, position_of = self._sorted
            numbers = values.fill_null(0).to_numpy() if values.null_count else values.to_numpy()
            at = np.searchsorted(known, numbers)
            is_known = known[at] == numbers
            if values.null_count:
                is_known &= ~nulls(values)
            return np.where(is_known, position_of[at], np.int32(-1))
        find = self._by_value.get
        return np.array([find(value, -1) for value in values.to_pylist()], dtype=np.int32)

    def prepare(self) -> Self:
        """Builds the structure for few values now instead of in the first call that needs it."""
        _ = self._sorted if pa.types.is_integer(self.type) else self._by_value
        return self

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], Ids]:
        """Known integers in ascending order and their positions.

        The last entry matches no value; a search for one beyond all others ends there.
        """
        numbers = self._known.drop_null().to_numpy()
        order = np.argsort(numbers, kind="stable")
        positions = np.flatnonzero(~nulls(self._known))[order]
        last = np.iinfo(np.int64).max
        return np.append(numbers[order], last), np.append(positions, -1).astype(np.int32)

    @cached_property
    def _by_value(self) -> dict[object, int]:
        by_value = dict(zip(self._known.to_pylist(), range(len(self._known)), strict=True))
        by_value.pop(None, None)
        return by_value


class SortedIndex(ValueIndex):
    """Index in a file that all processes of a host map; a lookup costs about the same for any size.

    The file has the known values in the order of their hashes, so that a search walks through it in
    order with the sorted hashes of all values of a call, and reads no more of it than it needs.

    Args:
        path: file that `write` wrote with the same version of polars.
    """

    def __init__(self, path: Path) -> None:
        known = read_mapped(path)
        self._hashes, self._positions = (known[name].to_numpy() for name in ("hash", "position"))
        self._values = known["value"]
        self._type = stored(self._values[:0].to_arrow()).type

    @classmethod
    def write(cls, path: Path, known: pa.Array) -> Self:
        """Writes the index of distinct values, with nulls that match nothing, and opens it."""
        known = stored(known)
        values = pl.Series("value", pl.from_arrow(known))
        positions = np.flatnonzero(~nulls(known)).astype(np.int32)
        frame = pl.DataFrame({"value": values.gather(positions), "position": positions})
        frame = frame.with_columns(hash=pl.col("value").hash()).sort("hash")
        write_mapped(path, frame)
        return cls(path)

    @property
    def type(self) -> pa.DataType:
        """Type of the known values, as `stored` returns them."""
        return self._type

    def positions(self, values: pa.Array) -> Ids:
        """Returns the position of each value, see `ValueIndex.positions`."""
        values = stored(values)
        positions = np.full(len(values), -1, dtype=np.int32)
        if values.null_count == len(values) or not len(self._hashes):
            return positions
        if values.type != self.type:
            raise ValueError(f"values must be {self.type}, as the known ones; got {values.type}.")
        searched = pl.Series(pl.from_arrow(values))
        wanted = searched.hash().to_numpy()
        order = np.argsort(wanted)
        searched, wanted = searched.gather(order), wanted[order]
        last = len(self._hashes) - 1
        at = np.minimum(np.searchsorted(self._hashes, wanted), last)
        while True:
            is_known = (self._values.gather(at) == searched).fill_null(value=False).to_numpy()
            # Of values that share a hash of 64 bits, the search has found the first.
            after = np.minimum(at + 1, last)
            is_next = ~is_known & (after > at) & (self._hashes[after] == wanted)
            if not is_next.any():
                break
            at = np.where(is_next, after, at)
        positions[order] = np.where(is_known, self._positions[at], np.int32(-1))
        return positions
