"""Values of features without a vocabulary: table rows by a hash, or numbers for managed tables."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.features.columns import Bags, Ids, Lengths, nulls
from msrec.data.features.value_types import stored
from msrec.data.features.vocabulary import MAX_ROWS, UNKNOWN, TableEncoder, distinct_values

MAX_MANAGED_ID = 2**63 - 2
"""Largest number of a value of a managed feature; TorchRec marks empty rows by the next one."""


@dataclass(frozen=True)
class Hashed(TableEncoder):
    """A table of fixed size for any number of values; row 0 is for missing ones.

    A value has `hashes` rows in [1, rows), drawn by BLAKE2b of its text. With several hashes the
    model averages their vectors, so that two values are alike only if all of their rows are.

    Raises:
        ValueError: `rows` is below 2 or exceeds int32, or `hashes` is below 1.

    Source:
        Weinberger et al., ICML 2009; several hashes: Svenstrup et al., NIPS 2017, without weights.

    Example:
        >>> Hashed(rows=100).encode(pl.Series(["a", "b", "a", None])).to_list()
        [6, 27, 6, 0]
        >>> Hashed(rows=100, hashes=2).encode(pl.Series(["a", None])).to_list()
        [[15, 33], []]
    """

    rows: int
    hashes: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.rows <= MAX_ROWS or self.hashes < 1:
            raise ValueError(
                f"a hashed table must have 2 to {MAX_ROWS} rows and at least 1 hash; got "
                f"{self.rows} rows and {self.hashes} hashes."
            )

    def bags(self, values: pa.Array, lengths: Lengths | None) -> Bags:
        """Returns the table rows of values; see `TableEncoder`.

        A null in a list is left out. A null row has row 0, or none if there are several hashes.
        """
        is_valid = ~nulls(values)
        rows = self._rows(values.drop_null())
        if lengths is not None:
            row_of = np.repeat(np.arange(len(lengths)), lengths)
            counts = np.bincount(row_of[is_valid], minlength=len(lengths))
        elif self.hashes == 1:
            ids = np.full(len(values), UNKNOWN, dtype=np.int32)
            ids[is_valid] = rows[:, 0]
            return Bags(ids)
        else:
            counts = is_valid.astype(np.int64)
        return Bags(rows.reshape(-1), counts * self.hashes)

    def collisions(self, values: pl.Series) -> dict[str, int]:
        """Returns the number of distinct values, and of those that share all rows with another."""
        distinct = distinct_values(values)
        rows = self._rows(distinct.to_arrow())
        rows.sort(axis=1)
        _, counts = np.unique(rows, axis=0, return_counts=True)
        return {"values": len(distinct), "shared": int(counts[counts > 1].sum())}

    def _rows(self, values: pa.Array) -> Ids:
        """Returns (N, hashes) rows."""
        numbers = text_hashes(values, self.hashes)
        return (numbers % np.uint64(self.rows - 1)).astype(np.int32) + np.int32(1)


@dataclass(frozen=True)
class Managed(TableEncoder):
    """A table of fixed size whose rows a model gives to values while it trains.

    A value becomes a number of 63 bits, by BLAKE2b of its text; a missing value becomes 0. Among
    100 million values the chance that any two share a number is about 1 in 1,800.

    Raises:
        ValueError: `rows` is below 2 or exceeds int32.

    Example:
        >>> Managed(rows=100).encode(pl.Series(["a", None])).to_list()
        [3405396810240292929, 0]
    """

    rows: int

    def __post_init__(self) -> None:
        if not 2 <= self.rows <= MAX_ROWS:
            raise ValueError(
                f"a managed table must have 2 to {MAX_ROWS} rows; got {self.rows} rows."
            )

    def bags(self, values: pa.Array, lengths: Lengths | None) -> Bags:
        """Returns the numbers of values; see `TableEncoder`.

        Shape:
            returns: ids (N,), int64, in [1, 2**63 - 2]; 0 for a null.
        """
        assert lengths is None, "a managed feature has one value in a row"
        ids = np.full(len(values), UNKNOWN, dtype=np.int64)
        numbers = text_hashes(values.drop_null(), 1)[:, 0] % np.uint64(MAX_MANAGED_ID)
        ids[~nulls(values)] = numbers.astype(np.int64) + 1
        return Bags(ids)


def text_hashes(values: pa.Array, count: int) -> npt.NDArray[np.uint64]:
    """Returns `count` hashes of the text of each value, (N, count); no value may be null.

    Each distinct value is hashed once.
    """
    distinct = stored(values).dictionary_encode()
    texts = distinct.dictionary.cast(pa.string()).to_pylist()
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8 * count).digest() for t in texts)
    numbers = np.frombuffer(digests, dtype="<u8").reshape(len(texts), count)
    hashes: npt.NDArray[np.uint64] = numbers[distinct.indices.to_numpy()]
    return hashes
