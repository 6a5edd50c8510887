"""Rows of embedding tables for raw values: by a vocabulary of training values, or without one.

A dataset folder keeps its vocabularies in `vocabularies/FEATURE.parquet`. Value i of the column
`value` has table row i + 1; the row of a null is not used. A later conversion may grow a
vocabulary. Old values then keep their rows, so that a model that starts from the weights of an
older one (`init_from`) finds them in the right places.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.features.columns import Bags, Ids, Lengths, flattened
from msrec.data.features.shard_balance import spread
from msrec.data.features.value_index import ValueIndex
from msrec.data.features.value_types import stored, stored_series
from msrec.data.io.names import safe_name
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import load_schema

UNKNOWN = 0
"""The table row of missing values and of values that training did not have."""
VOCABULARIES = "vocabularies"
MAX_ROWS = 2**31 - 1
_CODE = re.compile("%[0-9A-F]{2}")


def distinct_values(values: pl.Series) -> pl.Series:
    """Returns each value once, in the type of a vocabulary and in no particular order.

    Nulls are left out, lists are flattened.
    """
    flat, _ = flattened(values.to_arrow())
    return pl.Series(values.name, pl.from_arrow(stored(flat))).drop_nulls().unique()


def value_rows(values: pl.Series, rows: npt.NDArray[np.int64] | None = None) -> pl.DataFrame:
    """Returns each value once, with the number of rows that have it, in no particular order.

    Nulls are left out, lists are flattened. A value counts as often as a list has it.

    Shape:
        values: N values or N lists.
        rows: (N,), rows that have each value or list; one if None.
        returns: columns `value`, in the type of a vocabulary, and `rows`, int64.
    """
    flat, lengths = flattened(values.to_arrow())
    rows = np.ones(len(values), np.int64) if rows is None else rows
    rows = rows if lengths is None else np.repeat(rows, lengths)
    frame = pl.DataFrame({"value": pl.Series(pl.from_arrow(stored(flat))), "rows": rows})
    return merged_rows(frame.drop_nulls())


def merged_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns each `value` once, with the sum of its `rows` if it has them."""
    if "rows" not in frame.columns:
        return frame.unique()
    return frame.group_by("value").agg(pl.col("rows").sum())


class TableEncoder(ABC):
    """Maps the raw values of a feature to rows of its table.

    Conversion encodes polars series, prediction and serving encode Arrow arrays. Both go through
    `bags`, so that a value has the same table row everywhere.
    """

    @abstractmethod
    def bags(self, values: pa.Array, lengths: Lengths | None) -> Bags:
        """Returns the table rows of values.

        Args:
            values: values of all rows, or of the lists of all rows, see `flattened`.
            lengths: values per row; None if there are no lists.
        """

    def encode(self, values: pl.Series) -> pl.Series:
        """Returns the table rows of values, or of the values in each list.

        Shape:
            values: N values or N lists of values.
            returns: N int32 or N lists of int32. A null list becomes an empty one.
        """
        ids, lengths = self.bags(*flattened(values.to_arrow()))
        if lengths is None:
            return pl.Series(values.name, ids)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        lists = pa.LargeListArray.from_arrays(offsets, ids)
        return pl.Series(values.name, pl.from_arrow(lists), dtype=pl.List(pl.Int32))


@dataclass(frozen=True)
class Frequent:
    """A vocabulary without the values that have fewer than `min_rows` training rows.

    Raises:
        ValueError: the number is below 2, which leaves nothing out.
    """

    min_rows: int

    def __post_init__(self) -> None:
        if self.min_rows < 2:
            raise ValueError(f"the least number of rows must be at least 2; got {self.min_rows}.")

    def kept(self, counts: pl.DataFrame) -> tuple[pl.Series, dict[str, int]]:
        """Returns the frequent values, and numbers of values and of rows of those left out.

        Example:
            >>> counts = pl.DataFrame({"value": ["a", "b", "c"], "rows": [5, 1, 2]})
            >>> values, cut = Frequent(2).kept(counts)
            >>> values.to_list(), cut
            (['a', 'c'], {'values': 1, 'of_values': 3, 'rows': 1, 'min_rows': 2})
        """
        is_kept = counts["rows"] >= self.min_rows
        cut = {
            "values": int((~is_kept).sum()),
            "of_values": counts.height,
            "rows": int(counts["rows"].filter(~is_kept).sum()),
            "min_rows": self.min_rows,
        }
        return counts["value"].filter(is_kept), cut


@dataclass(frozen=True)
class Vocabulary(TableEncoder):
    """The distinct values of one feature; value i has table row i + 1, row 0 is unknown.

    Values are sorted, so that rows do not depend on the order of the data, and then permuted by
    `spread`, so that no shard of a row-wise sharded table gets most of the lookups. Values of an
    older vocabulary come first, in their old order.

    Example:
        >>> vocabulary = Vocabulary.fit(pl.Series(["b", "a", None, "b"]))
        >>> vocabulary.rows
        3
        >>> vocabulary.encode(pl.Series(["a", "b", "new", None])).to_list()
        [1, 2, 0, 0]
    """

    values: pl.Series
    is_spread: bool = field(default=False, kw_only=True)
    """Whether the values are known to be sorted ones, permuted by `spread`."""

    @classmethod
    def fit(cls, values: pl.Series, known: pl.Series | None = None) -> Self:
        """Collects the distinct values.

        Args:
            values: of the training split; nulls are left out, lists are flattened.
            known: values of an older vocabulary, which come first.

        Raises:
            ValueError: there are more values than int32 rows, or their type differs from `known`.

        Example:
            >>> old = Vocabulary.fit(pl.Series(["m", "c"]))
            >>> Vocabulary.fit(pl.Series(["a", "m", "z"]), known=old.values).values.to_list()
            ['c', 'm', 'a', 'z']
            >>> Vocabulary.fit(pl.Series(["d", "b", "c", "a"])).values.to_list()
            ['a', 'c', 'b', 'd']
        """
        distinct = distinct_values(values)
        known = None if known is None else stored_series(known)
        if known is None or not len(known):
            distinct = _permuted(distinct)
        elif not len(distinct):
            distinct = known
        elif known.dtype != distinct.dtype:
            raise ValueError(
                f"a vocabulary must grow by values of its own type; column {values.name!r} was "
                f"{known.dtype} and is {distinct.dtype} now. Cast it, or start a new vocabulary."
            )
        else:
            added = distinct.filter(~distinct.is_in(known.implode()))
            distinct = pl.concat([known.alias(distinct.name), _permuted(added)])
        _require_rows(distinct)
        return cls(distinct, is_spread=known is None or not len(known))

    @classmethod
    def fit_keys(cls, keys: pl.Series, is_known: pl.Series) -> tuple[Self, pl.Series]:
        """Fits the vocabulary of some of the keys, and encodes all of them.

        That is `fit` and `encode`, by one sort in place of lookups.

        Args:
            keys: distinct, none is null, in the type in which they are stored.
            is_known: whether the vocabulary has each of them.

        Example:
            >>> keys, is_known = pl.Series(["b", "new", "a"]), pl.Series([True, False, True])
            >>> vocabulary, ids = Vocabulary.fit_keys(keys, is_known)
            >>> vocabulary.values.to_list(), ids.to_list()
            (['a', 'b'], [2, 0, 1])
        """
        order = keys.arg_sort()
        order = order.filter(is_known.gather(order))
        order = order.gather(spread(len(order)))
        values = keys.gather(order)
        _require_rows(values)
        ids = np.full(len(keys), UNKNOWN, np.int32)
        ids[order.to_numpy()] = np.arange(1, len(order) + 1, dtype=np.int32)
        return cls(values, is_spread=True), pl.Series(keys.name, ids)

    @property
    def rows(self) -> int:
        """Rows of the table, row 0 included."""
        return len(self.values) + 1

    @cached_property
    def index(self) -> ValueIndex:
        """Positions of the values."""
        return ValueIndex(self.values.to_arrow())

    def bags(self, values: pa.Array, lengths: Lengths | None) -> Bags:
        """Returns the table rows of values, 0 for a null or unknown one; see `TableEncoder`."""
        return Bags(self.index.positions(values) + np.int32(1), lengths)

    def by_value(self, lookups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns lookups (rows,) in the order of the sorted values, those of row 0 first."""
        if not self.is_spread:
            return np.concatenate([lookups[:1], lookups[1:][self.values.arg_sort().to_numpy()]])
        ordered = lookups.copy()
        ordered[1:][spread(len(self.values))] = lookups[1:]
        return ordered


def _require_rows(values: pl.Series) -> None:
    if len(values) >= MAX_ROWS:
        raise ValueError(
            f"a table must have fewer than {MAX_ROWS} rows for int32 ids; column {values.name!r} "
            f"has {len(values)} distinct values. Hash it before converting."
        )


def _permuted(values: pl.Series) -> pl.Series:
    return values.sort().gather(spread(len(values)))


def save_vocabularies(tables: Mapping[str, TableEncoder], dataset: Path) -> None:
    """Writes each vocabulary to a file named after its feature; a hash needs no file."""
    folder = dataset / VOCABULARIES
    folder.mkdir()
    for name, table in tables.items():
        if isinstance(table, Vocabulary):
            table.values.alias("value").to_frame().write_parquet(
                folder / f"{safe_name(name)}.parquet"
            )


def vocabulary_file(dataset: AnyPath, feature: str) -> AnyPath:
    """Returns the file with the vocabulary of a feature, which may not exist."""
    folder = dataset / VOCABULARIES
    file, older = folder / f"{safe_name(feature)}.parquet", f"{feature}.parquet"
    # Version 0.1 did not encode names.
    is_possible = "/" not in feature and not _CODE.search(feature) and len(older.encode()) < 256
    if is_possible and not is_file(file) and is_file(folder / older):
        return folder / older
    return file


def load_vocabularies(dataset: AnyPath) -> dict[str, pl.Series]:
    """Returns feature -> values of its vocabulary, in the order of their rows.

    Raises:
        FileNotFoundError: the dataset folder has no vocabularies.
    """
    folder = dataset / VOCABULARIES
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} must exist for vocabularies to grow from; convert that data set again with "
            "this version."
        )
    vocabularies = {}
    for feature in load_schema(dataset).sparse:
        path = vocabulary_file(dataset, feature.name)
        if is_file(path):
            values = read_parquet(path, ["value"])["value"]
            vocabularies[feature.name] = pl.Series(pl.from_arrow(values))
    return vocabularies


def item_table_rows(dataset: AnyPath) -> Ids:
    """Returns the table row of `item_id` for each item of a dataset.

    Shape:
        returns: (num_items,), int32, in the order of items.parquet; 0 for an item that has no row.

    Raises:
        ValueError: `item_id` has no vocabulary: it is hashed, simulated, or not a feature.
    """
    vocabulary = vocabulary_file(dataset, "item_id")
    if not is_file(vocabulary):
        raise ValueError(
            f"{dataset} must have a vocabulary of the feature 'item_id', which gives each item a "
            f"row of its own; it has no {VOCABULARIES}/{vocabulary.name}."
        )
    values = read_parquet(vocabulary, ["value"])["value"].combine_chunks()
    keys = read_parquet(dataset / "items.parquet", ["item_key"])["item_key"].combine_chunks()
    return ValueIndex(values).positions(keys) + np.int32(1)
