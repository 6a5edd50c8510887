"""Encodes raw rows, as an app has them before any conversion, to the columns of a batch.

A raw row has these columns (`RowEncoder.names`; others are ignored)::

    user_key, item_key   as in users.parquet and items.parquet; new keys are fine
    scenario             its name or its number
    FEATURE              one per sparse feature: the raw value, or a list of values if it is multi
    DENSE                one per dense feature: a finite number as in the dataset folder

The features `user_id` and `item_id` may be left out; they are then the keys. Labels are not needed.
The timestamp is needed only if an encoder is asked for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.features.columns import Bags, Columns, Ids, nulls
from msrec.data.features.raw_values import AllowedTypes, RawColumn, first_bad_row, types_like
from msrec.data.features.value_index import ValueIndex, is_text
from msrec.data.features.vocabulary import Hashed, Vocabulary, vocabulary_file
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import ID_KEYS, Schema, SparseFeature, load_schema

SIDES = ("user", "item")
KEYS = ("user_key", "item_key")
EVENT_KEYS = ("item_id", "scenario", "label")
"""Keys of an event of a history in JSON; `item_id` is the raw key of the item."""


class EncodedEvents(NamedTuple):
    """Events of a history, in the order in which they were given.

    Shape:
        item: (N,), int32, index into items.parquet; -1 for an item that is not there.
        scenario: (N,), int32.
        label: (N,), float32, 0 or 1.
    """

    item: Ids
    scenario: Ids
    label: npt.NDArray[np.float32]


class RowEncoder:
    """Encodes raw rows by the vocabularies of a dataset folder, and refuses bad values.

    A value gets the table row that it has in training: by the vocabulary of its feature or by its
    hash, see `TableEncoder`. A feature without vocabulary (in simulated tables) holds table rows
    already, which must be in the table.

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
        self._scenarios = ValueIndex(pa.array([s.name for s in self.schema.scenarios]))
        self._tables = {f.name: _table_of(self.schema, f, folder) for f in self.schema.sparse}
        self._allowed = {
            "scenario": AllowedTypes(text=True, integers=True),
            **{key: types_like(index.type) for key, index in self._indices.items()},
            **{f.name: _allowed_types(self._tables[f.name], f) for f in self.schema.sparse},
            **dict.fromkeys(self.schema.dense, AllowedTypes(integers=True, floats=True)),
        }
        if timestamp is not None:
            self._allowed[timestamp] = AllowedTypes(integers=True)

    @property
    def names(self) -> list[str]:
        """The columns of a raw row; those of `ID_KEYS` may be left out."""
        timestamp = [] if self._timestamp is None else [self._timestamp]
        return [*KEYS, "scenario", *self._tables, *self.schema.dense, *timestamp]

    def table(
        self, rows: Sequence[Mapping[str, Any]], where: str = "rows", first_row: int = 0
    ) -> pa.Table:
        """Returns rows from JSON as a table for `encode`; arguments as there.

        Raises:
            ValueError: a column is missing or a value has another type; names row and column.
        """
        columns = {}
        for name in self.names:
            if name in ID_KEYS and rows and name not in rows[0]:
                continue
            allowed = self._allowed[name]
            try:
                # Without a type: with one, Arrow would cut 3.7 down to 3 for an integer column.
                columns[name] = pa.array([row[name] for row in rows])
                is_allowed = allowed.accept(columns[name].type)
            except (KeyError, TypeError, ValueError, OverflowError):
                is_allowed = False
            if not is_allowed:
                raise ValueError(first_bad_row(rows, name, allowed, where, first_row))
        return pa.table(columns)

    def require(self, names: Sequence[str], where: str) -> None:
        """Refuses rows that lack a column.

        Args:
            names: the columns of the rows.
            where: file or request.

        Raises:
            ValueError: a column is missing.
        """
        missing = [n for n in self.names if n not in names and n not in ID_KEYS]
        if missing:
            raise ValueError(
                f"{where} must have the column {', '.join(map(repr, missing))}; found "
                f"{', '.join(names)}. A raw row has {', '.join(self.names)}."
            )

    def encode(self, table: pa.Table, where: str, first_row: int = 0) -> Columns:
        """Returns the columns of raw rows, in order, like `SplitReader.take` for encoded rows.

        Args:
            table: has the columns `names`.
            where: file or request, for error messages.
            first_row: number of the table's first row, for error messages.

        Returns:
            `user` and `item`: int64, indices into users.parquet and items.parquet, -1 for new ones,
            which have no vector and no history. `scenario`: int32. Sparse features: int32, or a
            list array of int32. Dense features: float32. Labels: float32, all 0. The timestamp, if
            asked for: int64.

        Raises:
            ValueError: a column is missing or has another type, or a value is not allowed; names
                the column, the row and the value.
        """
        self.require(table.column_names, where)
        present = set(table.column_names)
        raw: dict[str, RawColumn] = {}
        for name in self.names:
            values = table[name if name in present else ID_KEYS[name]].combine_chunks()
            raw[name] = RawColumn(name, values, where, first_row)
            if not self._allowed[name].accept(values.type):
                must = f"must be {self._allowed[name]}; it is {values.type}"
                raise ValueError(f"{where}: column {name!r} {must}.")
        columns: Columns = {"scenario": self._scenario(raw["scenario"])}
        for side, key in zip(SIDES, KEYS, strict=True):
            raw[key].refuse(nulls(raw[key].values), "a key may not be null")
            raw[key].refuse_large_integers()
            columns[side] = self._indices[key].positions(raw[key].values).astype(np.int64)
        for name in self._tables:
            columns[name] = self._feature(raw[name])
        for name in self.schema.dense:
            columns[name] = raw[name].finite_floats()
        if self._timestamp is not None:
            columns[self._timestamp] = raw[self._timestamp].integers()
        zeros = np.zeros(table.num_rows, dtype=np.float32)
        return columns | dict.fromkeys(self.schema.labels, zeros)

    def events(self, events: Sequence[Any], where: str) -> EncodedEvents:
        """Encodes the events of a history that was parsed from JSON.

        Args:
            events: each has the keys `EVENT_KEYS`; other keys are ignored.
            where: request, for error messages.

        Raises:
            ValueError: an event is no object, lacks a key or has an invalid value; names its
                position, from 0.
        """
        index = self._indices["item_key"]
        has_text_keys = is_text(index.type)
        names = [scenario.name for scenario in self.schema.scenarios]
        number_of: dict[Any, int] = {name: number for number, name in enumerate(names)}
        for position, event in enumerate(events):
            at = f"{where}: event {position} of the history"
            if not isinstance(event, Mapping):
                raise ValueError(f"{at} must be an object; found {event!r}.")
            if missing := [key for key in EVENT_KEYS if key not in event]:
                raise ValueError(f"{at} must have {', '.join(map(repr, missing))}; found {event}.")
            key, scenario, label = (event[name] for name in EVENT_KEYS)
            if not (isinstance(key, str) if has_text_keys else _is_int64(key)):
                must = "a string" if has_text_keys else "an integer of 64 bits"
                raise ValueError(f"{at}: item_id must be {must}; found {key!r}.")
            is_number = _is_int64(scenario) and 0 <= scenario < len(names)
            if not is_number and (not isinstance(scenario, str) or scenario not in number_of):
                allowed = ", ".join(f"{name} ({number})" for number, name in enumerate(names))
                raise ValueError(f"{at}: scenario must be one of {allowed}; found {scenario!r}.")
            if not isinstance(label, int | float) or label not in (0, 1):
                raise ValueError(f"{at}: label must be 0 or 1; found {label!r}.")
        scenarios = [number_of.get(event["scenario"], event["scenario"]) for event in events]
        return EncodedEvents(
            item=index.positions(pa.array([event["item_id"] for event in events])),
            scenario=np.array(scenarios, dtype=np.int32),
            label=np.array([event["label"] for event in events], dtype=np.float32),
        )

    def _scenario(self, column: RawColumn) -> Ids:
        names = [scenario.name for scenario in self.schema.scenarios]
        must = "the scenario must be one of "
        if is_text(column.values.type):
            numbers = self._scenarios.positions(column.values)
            column.refuse(numbers < 0, must + ", ".join(names))
            return numbers
        must += ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        return column.integers_below(len(names), must)

    def _feature(self, column: RawColumn) -> Ids | pa.ListArray:
        table = self._tables[column.name]
        if pa.types.is_null(column.values.type) and self._allowed[column.name].lists == (True,):
            empty = pa.nulls(len(column.values), pa.list_(pa.null()))
            column = column._replace(values=empty)
        column = column.flattened()
        if isinstance(table, int):
            must = f"a table row must be in [0, {table})"
            return Bags(column.integers_below(table, must), column.lengths).column()
        if isinstance(table, Vocabulary):
            column.refuse_large_integers()
        return table.bags(column.values, column.lengths).column()


def _table_of(schema: Schema, feature: SparseFeature, folder: AnyPath) -> Vocabulary | Hashed | int:
    """Returns the encoder of a feature, or the size of its table if values are rows already."""
    rows = schema.tables[feature.table]
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


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _column(path: AnyPath, name: str) -> pa.Array:
    return read_parquet(path, [name])[name].combine_chunks()


def _allowed_types(table: Vocabulary | Hashed | int, feature: SparseFeature) -> AllowedTypes:
    if isinstance(table, Hashed):
        # With several hashes a single value is a list of rows, too: raw values may be either.
        lists = (False, True) if table.hashes > 1 else (feature.multi,)
        return AllowedTypes(text=True, integers=True, lists=lists)
    kind = table.index.type if isinstance(table, Vocabulary) else pa.int64()
    return types_like(kind)._replace(lists=(feature.multi,))
