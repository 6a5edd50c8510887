"""Raw rows, as an app has them before any conversion, to the columns that a batch is made of.

A raw row has these columns (`RowEncoder.names`; others are not looked at)::

    user_key, item_key   as in users.parquet and items.parquet; new ones are fine
    scenario             its name, or its number
    FEATURE              one a sparse feature, the raw value, or a list of them where it is multi
    DENSE                one a dense feature, a finite number as in the dataset folder

The features `user_id` and `item_id` may be left out: they are then the keys. Labels are not needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from msrec.data.features.columns import Columns
from msrec.data.features.raw_values import (
    AllowedKinds,
    Ids,
    RowLocation,
    ValueIndex,
    dense_values,
    first_bad,
    integer_values,
    is_list,
    is_text,
    nulls,
)
from msrec.data.features.vocabulary import UNKNOWN, VOCABULARIES, Hashed
from msrec.data.io.parquet_files import parquet_files, read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.schema import ID_KEYS, Schema, SparseFeature, load_schema

SIDES = ("user", "item")
NOBODY = -1
"""The index of a user or item that the dataset folder does not know."""


class RowEncoder:
    """Encodes raw rows by what a dataset folder knows, and refuses what it cannot.

    A value becomes a table row by the rule of training: by its feature's vocabulary, where an
    unknown or null one is row 0 and a null list is empty; by its hash; and where the folder keeps
    no vocabulary (simulated tables) it is a table row already, which must be in the table.

    Reads `dataset.yaml`, `vocabularies/`, and the keys in `users.parquet` and `items.parquet`.

    Args:
        folder: a dataset folder, or any folder with those files.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: a feature was hashed by a version that did not say how.

    Example:
        >>> rows = RowEncoder("data/app")                                  # doctest: +SKIP
        >>> table = rows.table([{"user_key": 7, "item_key": 3, ...}])   # doctest: +SKIP
        >>> columns = rows.encode(table, "request")                     # doctest: +SKIP
    """

    def __init__(self, folder: AnyPath) -> None:
        self.schema = load_schema(folder)
        vocabularies = {path.stem: path for path in parquet_files(folder / VOCABULARIES)}
        self._keys = {
            side: ValueIndex(_column(folder / f"{side}s.parquet", side)) for side in SIDES
        }
        self._scenarios = {s.name: number for number, s in enumerate(self.schema.scenarios)}
        self._ids: dict[str, ValueIndex | Hashed | int] = {}
        for feature in self.schema.sparse:
            rows = self.schema.tables[feature.table]
            if feature.name in vocabularies:
                column = read_parquet(vocabularies[feature.name], ["value"])["value"]
                self._ids[feature.name] = ValueIndex(column.combine_chunks(), first=1)
            else:
                self._ids[feature.name] = _hashed(self.schema, feature, rows) or rows

    @property
    def names(self) -> list[str]:
        """The columns of a raw row; those of `ID_KEYS` may be left out."""
        features = [feature.name for feature in self.schema.sparse]
        return ["user_key", "item_key", "scenario", *features, *self.schema.dense]

    def table(
        self, rows: Sequence[Mapping[str, Any]], where: str = "rows", first_row: int = 0
    ) -> pa.Table:
        """Rows as they come out of JSON, as a table that `encode` takes; see there.

        Raises:
            ValueError: a column is missing or a value is of another type; names row and column.
        """
        found = {}
        for name in self.names:
            if name in ID_KEYS and rows and name not in rows[0]:
                continue
            fits = self._fits(name)
            try:
                # Without a type: with one, Arrow would cut 3.7 down to 3 for an integer column.
                found[name] = pa.array([row[name] for row in rows])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ValueError(first_bad(rows, name, fits, where, first_row)) from None
            if not fits.takes(found[name].type):
                raise ValueError(first_bad(rows, name, fits, where, first_row))
        return pa.table(found)

    def require(self, found: Sequence[str], where: str) -> None:
        """Refuse rows that lack a column.

        Args:
            found: the columns that there are.
            where: file or request.

        Raises:
            ValueError: one is missing.
        """
        missing = [n for n in self.names if n not in found and n not in ID_KEYS]
        if missing:
            raise ValueError(
                f"{where} must have the column {', '.join(map(repr, missing))}; found "
                f"{', '.join(found)}. A raw row has {', '.join(self.names)}."
            )

    def encode(self, table: pa.Table, where: str, first_row: int = 0) -> Columns:
        """Columns of raw rows, in their order, as `SplitReader.take` gives them of encoded ones.

        Args:
            table: with the columns `names`.
            where: file or request, for a sentence about a bad row.
            first_row: the number of the table's first row, for such a sentence.

        Returns:
            `user` and `item`, int64, indices into users.parquet and items.parquet, -1 for a new
            one: it has no vector and no history. `scenario`, int32. Each sparse feature, int32 or
            a list array of int32. Each dense feature, float32. Each label, float32, 0: nobody
            knows it.

        Raises:
            ValueError: a column is missing or of another type, or a value is not what it must be;
                names the column, the row and what was found.
        """
        place = RowLocation(where, first_row)
        named = set(table.column_names)
        self.require(table.column_names, where)

        def column(name: str) -> pa.Array:
            return table[name if name in named else ID_KEYS[name]].combine_chunks()

        columns: Columns = {"scenario": self._scenario(column("scenario"), place)}
        for side in SIDES:
            name = f"{side}_key"
            keys = column(name)
            place.refuse(nulls(keys), keys, name, "a key may not be null")
            found = self._keys[side].rows(keys, name, place, NOBODY)
            columns[side] = found.astype(np.int64)
        for feature in self.schema.sparse:
            columns[feature.name] = self._feature(feature, column(feature.name), place)
        for name in self.schema.dense:
            columns[name] = dense_values(column(name), name, place)
        zeros = np.zeros(table.num_rows, dtype=np.float32)
        return columns | dict.fromkeys(self.schema.labels, zeros)

    def _fits(self, name: str) -> AllowedKinds:
        """What values a column may have in rows from JSON."""
        if name == "scenario":
            return AllowedKinds(text=True, integers=True)
        if name in self.schema.dense:
            return AllowedKinds(integers=True, floats=True)
        way: ValueIndex | Hashed | int
        if name.removesuffix("_key") in SIDES and name not in self._ids:
            way, feature = self._keys[name.removesuffix("_key")], None
        else:
            way, feature = self._ids[name], next(f for f in self.schema.sparse if f.name == name)
        lists = _may_be_lists(feature) if feature is not None else [False]
        if isinstance(way, Hashed):
            return AllowedKinds(text=True, integers=True, lists=lists)
        integers = pa.types.is_integer(way.kind) if isinstance(way, ValueIndex) else True
        return AllowedKinds(text=not integers, integers=integers, lists=lists)

    def _scenario(self, values: pa.Array, place: RowLocation) -> Ids:
        names, must = list(self._scenarios), "the scenario must be one of "
        if is_text(values.type):
            of = self._scenarios
            found = np.array([of.get(v, NOBODY) for v in values.to_pylist()], dtype=np.int32)
            place.refuse(found < 0, values, "scenario", must + ", ".join(names))
            return found
        numbers, null = integer_values(values, "scenario", place)
        must += ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        bad = null | (numbers < 0) | (numbers >= len(names))
        place.refuse(bad, values, "scenario", must)
        return numbers.astype(np.int32)

    def _feature(
        self, feature: SparseFeature, values: pa.Array, place: RowLocation
    ) -> Ids | pa.ListArray:
        name, way = feature.name, self._ids[feature.name]
        has_lists = is_list(values.type)
        if has_lists not in _may_be_lists(feature):
            wanted = "lists" if feature.multi else "single values"
            raise ValueError(
                f"{place.where}: column {name!r} must hold {wanted}; it is {values.type}."
            )
        if isinstance(way, Hashed):
            return _hash(way, values, name, place)
        if not has_lists:
            return self._rows(way, values, name, place)
        lengths = np.asarray(values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
        row = np.repeat(np.arange(len(values)), lengths)
        ids = self._rows(way, values.flatten(), name, place._replace(row_of=row))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids, pa.int32()))

    def _rows(self, way: ValueIndex | int, values: pa.Array, name: str, place: RowLocation) -> Ids:
        if isinstance(way, ValueIndex):
            return way.rows(values, name, place, UNKNOWN)
        numbers, null = integer_values(values, name, place)
        bad = null | (numbers < 0) | (numbers >= way)
        place.refuse(bad, values, name, f"a table row must be in [0, {way})")
        return numbers.astype(np.int32)


def _column(path: AnyPath, side: str) -> pa.Array:
    return read_parquet(path, [f"{side}_key"])[f"{side}_key"].combine_chunks()


def _hashed(schema: Schema, feature: SparseFeature, rows: int) -> Hashed | None:
    if feature.hashes is None and feature.name in schema.counts.get("collisions", {}):
        raise ValueError(
            f"dataset.yaml must say how many hashes a value of {feature.name!r} has, for raw rows "
            "to be encoded; an older version left it out. Convert the data set again."
        )
    return Hashed(rows, feature.hashes) if feature.hashes is not None else None


def _may_be_lists(feature: SparseFeature) -> list[bool]:
    """Whether raw values are lists: of several hashes, nobody knows."""
    return [False, True] if (feature.hashes or 1) > 1 else [feature.multi]


def _hash(way: Hashed, values: pa.Array, name: str, place: RowLocation) -> Ids | pa.ListArray:
    kind = values.type.value_type if is_list(values.type) else values.type
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"{place.where}: column {name!r} must hold strings or integers to be hashed; it is "
            f"{values.type}."
        )
    if pa.types.is_null(kind):
        values = values.cast(pa.list_(pa.string()) if is_list(values.type) else pa.string())
    found = way.encode(pl.Series(name, values))
    if found.dtype != pl.List(pl.Int32):
        ids: Ids = found.to_numpy()
        return ids
    array = found.rechunk().to_arrow()
    offsets = array.offsets.cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, array.values)
