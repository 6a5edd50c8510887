"""Positions of raw values among known ones, for conversion, prediction and serving alike."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

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
SLICE_ROWS = 1 << 20
"""Values that are hashed at a time."""


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
    """Index in files that all processes of a host map; a lookup costs about the same for any size.

    A file has the values whose hashes are in one share of all hashes, in the order of the hashes.
    A search walks through it in order with the sorted hashes of all values of a call, and reads no
    more of it than it needs.

    Args:
        paths: files of all shares, which `write` wrote with the same version of polars.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shares = [_Share.read(path) for path in paths]
        self._type = stored(self._shares[0].values[:0].to_arrow()).type

    @staticmethod
    def write(path: Path, known: pl.Series, share: int = 0, shares: int = 1) -> None:
        """Writes a share of the index of distinct values, with nulls that match nothing."""
        width = _width(shares)
        last = min((share + 1) * width, 1 << 64) - 1
        is_in = pl.col("hash").is_between(pl.lit(share * width, pl.UInt64), pl.lit(last, pl.UInt64))
        found = []
        # Hashing costs so little that each share hashes all values, a few at a time.
        for start in range(0, max(len(known), 1), SLICE_ROWS):
            some = stored(known[start : start + SLICE_ROWS].to_arrow())
            positions = np.arange(start, start + len(some), dtype=np.int32)
            frame = pl.DataFrame({"value": pl.from_arrow(some), "position": positions})
            frame = frame.drop_nulls("value").with_columns(hash=pl.col("value").hash())
            found.append(frame.filter(is_in))
        write_mapped(path, pl.concat(found).sort("hash"))

    @property
    def type(self) -> pa.DataType:
        """Type of the known values, as `stored` returns them."""
        return self._type

    def positions(self, values: pa.Array) -> Ids:
        """Returns the position of each value, see `ValueIndex.positions`."""
        values = stored(values)
        positions = np.full(len(values), -1, dtype=np.int32)
        if values.null_count == len(values):
            return positions
        if values.type != self.type and any(len(share.hashes) for share in self._shares):
            raise ValueError(f"values must be {self.type}, as the known ones; got {values.type}.")
        searched = pl.Series(pl.from_arrow(values))
        wanted = searched.hash().to_numpy()
        order = np.argsort(wanted)
        searched, wanted = searched.gather(order), wanted[order]
        width = _width(len(self._shares))
        starts = np.array([width * n for n in range(1, len(self._shares))], np.uint64)
        ends = [0, *np.searchsorted(wanted, starts).tolist(), len(wanted)]
        for share, start, end in zip(self._shares, ends, ends[1:], strict=False):
            positions[order[start:end]] = share.find(searched[start:end], wanted[start:end])
        return positions


class _Share(NamedTuple):
    """Entries of an index in the order of their hashes, (N,) each."""

    hashes: npt.NDArray[np.uint64]
    positions: Ids
    values: pl.Series

    @classmethod
    def read(cls, path: Path) -> Self:
        """Maps a file."""
        known = read_mapped(path)
        hashes, positions = (known[name].to_numpy() for name in ("hash", "position"))
        return cls(hashes, positions, known["value"])

    def find(self, searched: pl.Series, wanted: npt.NDArray[np.uint64]) -> Ids:
        """Returns the positions of values in the order of their hashes, -1 if not known."""
        if not len(self.hashes):
            return np.full(len(wanted), -1, dtype=np.int32)
        last = len(self.hashes) - 1
        at = np.minimum(np.searchsorted(self.hashes, wanted), last)
        while True:
            is_known = (self.values.gather(at) == searched).fill_null(value=False).to_numpy()
            # Of values that share a hash of 64 bits, the search has found the first.
            after = np.minimum(at + 1, last)
            is_next = ~is_known & (after > at) & (self.hashes[after] == wanted)
            if not is_next.any():
                return np.where(is_known, self.positions[at], np.int32(-1))
            at = np.where(is_next, after, at)


def _width(shares: int) -> int:
    """Returns the number of hashes of a share."""
    return -(-(1 << 64) // shares)
