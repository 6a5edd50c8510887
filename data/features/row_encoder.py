"""Encodes raw rows, as an app has them before any conversion, to the columns of a batch.

A raw row has these columns (`RowEncoder.names`; others are ignored)::

    user_key, item_key   as in users.parquet and items.parquet; new keys are fine
    scenario             its name or its number, see `ScenarioValues`
    FEATURE              one per sparse feature: the raw value, or a list of values if it is multi
    DENSE                one per dense feature: a finite number as in the dataset folder

The features `user_id` and `item_id` may be left out; they are then the keys. The keys may be called
`user_id` and `item_id`, as in the tables that were converted. Labels are not needed.
The timestamp is needed only if an encoder is asked for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from msrec.data.features.columns import Bags, Columns, Ids, Scalars, nulls
from msrec.data.features.event_rows import EncodedEvents, encode_events
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.raw_values import RawColumn, json_column
from msrec.data.features.scenario_values import SCENARIO_TYPES, ScenarioValues
from msrec.data.features.value_counts import Counts, ValueCounts
from msrec.data.features.value_index import ValueIndex
from msrec.data.features.value_types import (
    DATE,
    INTEGER,
    NUMBER,
    VALUES,
    AllowedTypes,
    is_text,
    split_texts,
    types_like,
)
from msrec.data.features.vocabulary import UNKNOWN, Vocabulary, vocabulary_file
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import ID_KEYS, KEYS, Schema, SparseFeature, load_schema

SIDES = ("user", "item")
OTHER_NAMES = ID_KEYS | {key: feature for feature, key in ID_KEYS.items()}
"""Column that may be left out -> the column that is taken instead."""


class RowEncoder:
    """Encodes raw rows by the vocabularies of a dataset folder, and refuses bad values.

    A value gets the table row that it has in training: by the vocabulary of its feature or by its
    hash, see `TableEncoder`. A value of a managed feature gets its number, see `Managed`. A feature
    without vocabulary (in simulated tables) holds table rows already, which must be in the table.

    Reads `dataset.yaml`, `vocabularies/`, and the keys in `users.parquet` and `items.parquet`.

    Args:
        folder: a dataset folder, or any folder with those files.
        timestamp: a column of timestamps, integers, that is encoded too.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a feature was hashed by a version that did not record the number of hashes.

    Example:
        >>> encoder = RowEncoder("data/app")                               # doctest: +SKIP
        >>> table = encoder.table([{"user_key": 7, "item_key": 3, ...}])   # doctest: +SKIP
        >>> columns = encoder.encode(table, "request")                     # doctest: +SKIP
    """

    def __init__(self, folder: AnyPath, timestamp: str | None = None) -> None:
        self.schema = load_schema(folder)
        self._timestamp = timestamp
        self._indices = {
            key: ValueIndex(_column(folder / f"{side}s.parquet", key)).prepare()
            for side, key in zip(SIDES, KEYS, strict=True)
        }
        self._scenarios = ScenarioValues([s.name for s in self.schema.scenarios])
        self._tables = {f.name: _table_of(self.schema, f, folder) for f in self.schema.sparse}
        self._allowed = {
            "scenario": SCENARIO_TYPES,
            **{key: AllowedTypes(types_like(index.type)) for key, index in self._indices.items()},
            **{f.name: _allowed_types(self._tables[f.name], f) for f in self.schema.sparse},
            **dict.fromkeys(self.schema.dense, AllowedTypes((NUMBER,))),
        }
        if timestamp is not None:
            self._allowed[timestamp] = AllowedTypes((INTEGER,))

    @property
    def names(self) -> list[str]:
        """The columns of a raw row; those of `OTHER_NAMES` may be left out."""
        timestamp = [] if self._timestamp is None else [self._timestamp]
        return [*KEYS, "scenario", *self._tables, *self.schema.dense, *timestamp]

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """Returns the columns of a file that `encode` reads, of all its columns."""
        wanted = {*self.names, *OTHER_NAMES}
        return [name for name in names if name in wanted]

    def table(
        self, rows: Sequence[Mapping[str, Any]], where: str = "rows", first_row: int = 0
    ) -> pa.Table:
        """Returns rows from JSON as a table for `encode`; arguments as there.

        Each row is judged by itself. Scenarios become names.

        Raises:
            ValueError: a column is missing or a value has another type; names row and column.
        """
        columns = {}
        for name in self.names:
            allowed, other = self._allowed[name], OTHER_NAMES.get(name)
            some = self._scenarios.with_names(rows) if name == "scenario" else rows
            columns[name] = json_column(some, name, other, allowed, where, first_row)
        return pa.table(columns)

    def require(self, names: Sequence[str], where: str) -> None:
        """Refuses rows that lack a column.

        Args:
            names: the columns of the rows.
            where: file or request.

        Raises:
            ValueError: a column is missing, or is there twice.
        """
        missing = [n for n in self.names if n not in names and OTHER_NAMES.get(n) not in names]
        if missing:
            raise ValueError(
                f"{where} must have the column {', '.join(map(repr, missing))}; found "
                f"{', '.join(names)}. A raw row has {', '.join(self.names)}; user_id and item_id "
                "may stand for the keys."
            )
        if repeated := sorted({name for name in self.names if names.count(name) > 1}):
            raise ValueError(f"{where} must have each column once; {', '.join(repeated)} is twice.")

    def encode(self, table: pa.Table, where: str, first_row: int = 0) -> Columns:
        """Returns the columns of raw rows; see `encode_counted`."""
        return self.encode_counted(table, where, first_row)[0]

    def encode_counted(
        self, table: pa.Table, where: str, first_row: int = 0
    ) -> tuple[Columns, Counts]:
        """Returns the columns of raw rows, in order, like `SplitReader.take` for encoded rows.

        Args:
            table: has the columns `names`.
            where: file or request, for error messages.
            first_row: number of the table's first row, for error messages.

        Returns:
            `user` and `item`: int64, indices into users.parquet and items.parquet, -1 for new ones,
            which have no vector and no history. `scenario`: int32. Sparse features: int32, a list
            array of int32, or int64 if managed. Dense features: float32. Labels: float32, all 0.
            Weights: float32, all 1. The timestamp, if asked for: int64. And the counts of values of
            keys and sparse features.

        Raises:
            ValueError: a column is missing or has another type, or a value is not allowed; names
                the column, the row and the value.
        """
        self.require(table.column_names, where)
        present = set(table.column_names)
        raw: dict[str, RawColumn] = {}
        for name in self.names:
            values = table[name if name in present else OTHER_NAMES[name]].combine_chunks()
            raw[name] = RawColumn(name, values, where, first_row)
            if not self._allowed[name].accept(values.type):
                must = f"must be {self._allowed[name]}; it is {values.type}"
                raise ValueError(f"{where}: column {name!r} {must}.")
        columns: Columns = {"scenario": self._scenario(raw["scenario"])}
        counts: dict[str, ValueCounts] = {}
        for side, key in zip(SIDES, KEYS, strict=True):
            raw[key].refuse(nulls(raw[key].values), "a key may not be null")
            raw[key].refuse_large_integers()
            columns[side] = self._indices[key].positions(raw[key].values).astype(np.int64)
            counts[key] = ValueCounts(table.num_rows, int((columns[side] < 0).sum()))
        for name in self._tables:
            columns[name], counts[name] = self._feature(raw[name])
        for name in self.schema.dense:
            columns[name] = raw[name].finite_floats()
        if self._timestamp is not None:
            columns[self._timestamp] = raw[self._timestamp].integers()
        zeros = np.zeros(table.num_rows, dtype=np.float32)
        columns |= dict.fromkeys(self.schema.weights, zeros + 1)
        return columns | dict.fromkeys(self.schema.labels, zeros), counts

    def events(self, events: Sequence[Any], where: str) -> EncodedEvents:
        """Encodes the events of a history that was parsed from JSON; see `encode_events`."""
        return encode_events(events, self._indices["item_key"], self._scenarios, where)

    def _scenario(self, column: RawColumn) -> Ids:
        numbers = self._scenarios.numbers(column.values)
        column.refuse(numbers < 0, f"the scenario must be one of {self._scenarios}")
        return numbers

    def _feature(self, column: RawColumn) -> tuple[Scalars | pa.ListArray, ValueCounts]:
        """Returns the table rows of a feature, and the counts of its values."""
        table, allowed = self._tables[column.name], self._allowed[column.name]
        missing = int(column.values.null_count)
        if allowed.separator is not None and is_text(column.values.type):
            column = column._replace(values=split_texts(column.values, allowed.separator))
        if pa.types.is_null(column.values.type) and allowed.lists == (True,):
            empty = pa.nulls(len(column.values), pa.list_(pa.null()))
            column = column._replace(values=empty)
        column = column.flattened()
        if isinstance(table, int):
            must = f"a table row must be in [0, {table})"
            bags = Bags(column.integers_below(table, must), column.lengths)
            return bags.column(), ValueCounts(len(column.values), 0)
        column.refuse_large_integers()
        if isinstance(table, Hashed | Managed):
            bags = table.bags(column.values, column.lengths)
            return bags.column(), ValueCounts(
                len(column.values) - column.values.null_count, 0, missing
            )
        if allowed.values == (DATE,):
            column = column.dates()
        bags = table.bags(column.values, column.lengths)
        counts = ValueCounts.of(bags.ids != UNKNOWN, nulls(column.values), missing)
        return bags.column(), counts


def _table_of(
    schema: Schema, feature: SparseFeature, folder: AnyPath
) -> Vocabulary | Hashed | Managed | int:
    """Returns the encoder of a feature, or the size of its table if values are rows already."""
    rows = schema.tables[feature.table]
    if feature.managed:
        return Managed(rows)
    path = vocabulary_file(folder, feature.name)
    if is_file(path):
        vocabulary = Vocabulary(pl.Series(pl.from_arrow(_column(path, "value"))))
        vocabulary.index.prepare()
        return vocabulary
    if feature.hashes is not None:
        return Hashed(rows, feature.hashes)
    if feature.name in schema.counts.get("collisions", {}):
        raise ValueError(
            f"dataset.yaml must say how many hashes a value of {feature.name!r} has, for raw rows "
            "to be encoded; an older version left it out. Convert the data set again."
        )
    return rows


def _column(path: AnyPath, name: str) -> pa.Array:
    return read_parquet(path, [name])[name].combine_chunks()


def _allowed_types(
    table: Vocabulary | Hashed | Managed | int, feature: SparseFeature
) -> AllowedTypes:
    if isinstance(table, Hashed | Managed):
        # With several hashes a single value is a list of rows, too: raw values may be either.
        is_either = isinstance(table, Hashed) and table.hashes > 1
        lists = (False, True) if is_either else (feature.multi,)
        return AllowedTypes(VALUES, lists, feature.separator)
    types = types_like(table.index.type) if isinstance(table, Vocabulary) else (INTEGER,)
    return AllowedTypes(types, (feature.multi,), feature.separator)
