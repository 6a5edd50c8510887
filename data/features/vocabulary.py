"""Raw ids to table rows: vocabularies of training values, row 0 for all else; or hashes.

A dataset folder keeps its vocabularies, `vocabularies/FEATURE.parquet`: in the column `value`,
value i has table row i + 1 (a null has none: that row is not used). A later conversion may grow
them: old values keep their rows, so that a model which begins with an older one's weights
(`init_from`) has them in the right places.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.features.hot_rows import spread
from msrec.data.io.parquet_files import parquet_files, readable
from msrec.data.io.paths import AnyPath

UNKNOWN = 0
VOCABULARIES = "vocabularies"
MAX_ROWS = 2**31 - 1


def distinct_values(values: pl.Series) -> pl.Series:
    """Each value once, in no order; nulls are left out, lists are taken apart."""
    flat = values.explode() if values.dtype.base_type() is pl.List else values
    return flat.drop_nulls().unique()


@dataclass(frozen=True)
class Vocabulary:
    """The distinct values of one feature; value i has table row i + 1, row 0 is unknown.

    Values are sorted, so that the rows do not depend on the order of the data, and then dealt out
    by `spread`, so that no rank of a table that is sharded by rows is hot. Those that an older
    vocabulary knew stand before them, as they did there.

    Example:
        >>> vocabulary = Vocabulary.fit(pl.Series(["b", "a", None, "b"]))
        >>> vocabulary.rows
        3
        >>> vocabulary.encode(pl.Series(["a", "b", "new", None])).to_list()
        [1, 2, 0, 0]
    """

    values: pl.Series

    @classmethod
    def fit(cls, values: pl.Series, known: pl.Series | None = None) -> Self:
        """Collect the distinct values; nulls are left out, lists are taken apart.

        Args:
            values: of the training split.
            known: values of an older vocabulary, which come first.

        Raises:
            ValueError: more values than int32 rows can name, or of another type than the known.

        Example:
            >>> old = Vocabulary.fit(pl.Series(["m", "c"]))
            >>> Vocabulary.fit(pl.Series(["a", "m", "z"]), known=old.values).values.to_list()
            ['c', 'm', 'a', 'z']
            >>> Vocabulary.fit(pl.Series(["d", "b", "c", "a"])).values.to_list()
            ['a', 'c', 'b', 'd']
        """
        distinct = distinct_values(values)
        if known is not None and len(known):
            if not len(distinct):
                return cls(known)
            if known.dtype != distinct.dtype:
                raise ValueError(
                    f"a vocabulary must grow by values of its own type; column {values.name!r} was "
                    f"{known.dtype} and is {distinct.dtype} now. Cast it, or begin anew."
                )
            fresh = distinct.filter(~distinct.is_in(known.implode()))
            distinct = pl.concat([known.alias(distinct.name), _dealt(fresh)])
        else:
            distinct = _dealt(distinct)
        if len(distinct) >= MAX_ROWS:
            raise ValueError(
                f"a table must have fewer than {MAX_ROWS} rows for int32 ids; column "
                f"{values.name!r} has {len(distinct)} distinct values. Hash it before converting."
            )
        return cls(distinct)

    @property
    def rows(self) -> int:
        """Rows of the table, row 0 included."""
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> pl.Series:
        """Table rows of values, or of the values in each list.

        Shape:
            values: N values, or N lists of values.
            returns: N int32, or N lists of int32, in [0, rows). A null or unseen value is 0 and a
                null list is empty.
        """
        inner = values.dtype.base_type() is pl.List
        mapped = self._mapped(pl.element() if inner else pl.col("x"))
        column = pl.col("x").list.eval(mapped).fill_null([]) if inner else mapped
        wanted = pl.List(pl.Int32) if inner else pl.Int32
        encoded = values.to_frame("x").select(column.cast(wanted)).to_series()
        return encoded.alias(values.name)

    def by_value(self, lookups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Lookups (rows,) in the order of the sorted values, those of row 0 first."""
        return np.concatenate([lookups[:1], lookups[1:][self.values.arg_sort().to_numpy()]])

    def _mapped(self, element: pl.Expr) -> pl.Expr:
        if self.values.is_empty():
            return element.is_null().cast(pl.Int32) * UNKNOWN
        rows = pl.Series(np.arange(1, self.rows, dtype=np.int32))
        return element.replace_strict(
            self.values, rows, default=UNKNOWN, return_dtype=pl.Int32
        ).fill_null(UNKNOWN)


def _dealt(values: pl.Series) -> pl.Series:
    """The values in an order of their own, whatever theirs was; see `spread`."""
    return values.sort().gather(spread(len(values)))


@dataclass(frozen=True)
class Hashed:
    """A table of fixed size for any number of values, known before or not; row 0 is a missing one.

    A value has `hashes` rows in [1, rows), drawn by BLAKE2b of its text; of two or more the model
    takes the mean vector, so that two values are alike only where all of their rows are.

    Raises:
        ValueError: `rows` is below 2 or not int32, or `hashes` below 1.

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

    def encode(self, values: pl.Series) -> pl.Series:
        """Table rows of values, or of the values in each list.

        Shape:
            values: N integers or strings, or N lists of them.
            returns: N int32; or N lists, if `values` are lists or there are several hashes.
        """
        if values.dtype.base_type() is pl.List:
            flat = values.explode(keep_nulls=False, empty_as_null=False)
            lengths = values.list.drop_nulls().list.len().fill_null(0).to_numpy()
            rows = self._rows(flat.drop_nulls()).reshape(-1)
            return _lists(rows, lengths * self.hashes, values.name)
        known = values.drop_nulls()
        if self.hashes == 1:
            found = np.zeros(len(values), dtype=np.int32)
            found[values.is_not_null().to_numpy()] = self._rows(known)[:, 0]
            return pl.Series(values.name, found)
        lengths = values.is_not_null().to_numpy() * self.hashes
        return _lists(self._rows(known).reshape(-1), lengths, values.name)

    def collisions(self, values: pl.Series) -> dict[str, int]:
        """How many of the distinct values there are, and how many share all rows with another."""
        distinct = distinct_values(values)
        rows = self._rows(distinct)
        rows.sort(axis=1)
        _, counts = np.unique(rows, axis=0, return_counts=True)
        return {"values": len(distinct), "shared": int(counts[counts > 1].sum())}

    def _rows(self, values: pl.Series) -> npt.NDArray[np.int32]:
        """(N, hashes); each distinct value is hashed once."""
        distinct = values.unique()
        texts = distinct.cast(pl.String).to_list()
        size = 8 * self.hashes
        digests = b"".join(hashlib.blake2b(t.encode(), digest_size=size).digest() for t in texts)
        drawn = np.frombuffer(digests, dtype="<u8").reshape(len(texts), self.hashes)
        rows = (drawn % np.uint64(self.rows - 1)).astype(np.int32) + np.int32(1)
        place = pl.Series(np.arange(len(texts), dtype=np.int64))
        at = values.replace_strict(distinct, place, return_dtype=pl.Int64) if len(texts) else place
        found: npt.NDArray[np.int32] = rows[at.to_numpy()]
        return found


def _lists(flat: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer], name: str) -> pl.Series:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    array = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return pl.Series(name, pl.from_arrow(array), dtype=pl.List(pl.Int32))


def save_vocabularies(tables: Mapping[str, Vocabulary | Hashed], dataset: Path) -> None:
    """Write each vocabulary under the name of its feature; a hash needs none."""
    folder = dataset / VOCABULARIES
    folder.mkdir()
    for name, vocabulary in tables.items():
        if isinstance(vocabulary, Hashed):
            continue
        vocabulary.values.alias("value").to_frame().write_parquet(folder / f"{name}.parquet")


def load_vocabularies(dataset: AnyPath) -> dict[str, pl.Series]:
    """Feature -> the values of a dataset folder's vocabulary, in the order of their rows.

    Raises:
        FileNotFoundError: the dataset keeps none.
    """
    folder = dataset / VOCABULARIES
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} must exist for vocabularies to grow from; convert that data set again with "
            "this version."
        )
    found = {}
    for path in parquet_files(folder):
        with readable(path) as file:
            found[path.stem] = pl.read_parquet(file)["value"]
    return found


class SeenIntegers:
    """Table rows of the integers [0, size), of which training shows some as its rows stream by.

    Example:
        >>> seen = SeenIntegers(size=4)
        >>> seen.update(np.array([2, 0, 2]))
        >>> seen.encode(np.array([2, 0, 3])).tolist(), seen.rows
        ([2, 1, 0], 5)
    """

    def __init__(self, size: int) -> None:
        self.rows = size + 1
        self._row_of = np.empty(size, dtype=np.int32)
        self._row_of[spread(size)] = np.arange(1, self.rows, dtype=np.int32)
        self._seen = np.zeros(size, dtype=np.bool_)

    def update(self, values: npt.NDArray[np.integer]) -> None:
        """Remember that training has these values."""
        self._seen[values] = True

    def encode(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Table rows of values, 0 where training has not shown the value."""
        return np.where(self._seen[values], self._row_of[values], np.int32(UNKNOWN))

    def values(self) -> list[int | None]:
        """The integer of each row but 0, None where training has not shown it."""
        found = np.full(self.rows - 1, -1)
        found[self._row_of[self._seen] - 1] = np.flatnonzero(self._seen)
        return [None if value < 0 else value for value in found.tolist()]

    def by_value(self, lookups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Lookups (rows,) in the order of the values, those of row 0 first."""
        return np.concatenate([lookups[:1], lookups[self._row_of]])
