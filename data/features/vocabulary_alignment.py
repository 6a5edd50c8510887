"""Maps the ids of another dataset to those of the dataset a model was trained on, by raw value."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.features.columns import Columns, Ids, map_ids
from msrec.data.features.value_index import ValueIndex
from msrec.data.features.value_types import is_text
from msrec.data.features.vocabulary import UNKNOWN, VOCABULARIES, vocabulary_file
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.labels import LabelOptions
from msrec.data.schema import Schema, load_schema

ADVICE = "Convert the new data with the features and scenarios of the old."


class VocabularyAlignment:
    """Replaces the ids in rows of `data` by the ids that the same values have in `trained`.

    A value that `trained` does not know, such as the id of a new user, becomes row 0 of its table.
    Scenarios are matched by name. The order of the values in `data` does not matter, nor whether
    `data` was grown from `trained`.

    Args:
        trained: the dataset folder that a model was trained on.
        data: a dataset folder with the same features, or more.

    Attributes:
        schema: features, tables, scenarios and labels of `trained`; name, users, items, timestamp
            and split of `data`.
        files: the columns of `data` to read.
        scenarios: (scenarios of `data`,), int32, the id in `trained` of each scenario.
        new_values: feature -> number of values of `data` that `trained` does not know, if any.
        lost_values: feature -> number of values of `trained` that the vocabulary of `data` lacks,
            if any. Rows of `data` with such a value were written with row 0. There are none if
            `data` was grown from `trained`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: `data` lacks a feature or label, has an unknown scenario, or its ids cannot be
            matched.
    """

    def __init__(self, trained: AnyPath, data: AnyPath) -> None:
        old, new = load_schema(trained), load_schema(data)
        self._trained, self._data = trained, data
        features = {feature.name: feature for feature in new.sparse}
        self._require("sparse features", [f.name for f in old.sparse], list(features))
        self._require("dense features", old.dense, new.dense)
        self._require("labels", old.labels, new.labels)
        self.scenarios = self._scenario_ids(old, new)
        self.new_values: dict[str, int] = {}
        self.lost_values: dict[str, int] = {}
        self._ids: dict[str, Ids] = {}
        for feature in old.sparse:
            same = features[feature.name]
            if same.multi != feature.multi:
                raise ValueError(
                    f"{data}: feature {feature.name!r} must hold {_kind(feature.multi)} in a row, "
                    f"as in {trained}; it holds {_kind(same.multi)}. {ADVICE}"
                )
            if same.managed != feature.managed:
                raise ValueError(
                    f"{data}: feature {feature.name!r} must {'' if feature.managed else 'not '}be "
                    f"managed, as in {trained}. {ADVICE}"
                )
            if feature.managed:  # a value has the same number in every data set
                continue
            sizes = old.tables[feature.table], new.tables[same.table]
            self._ids[feature.name] = self._matched_ids(feature.name, *sizes)
        of_data = ["name", "description", "num_users", "num_items", "split", "counts"]
        of_data += ["timestamp", "timestamp_unit", "histories", "weight", "impression"]
        changes = {name: getattr(new, name) for name in of_data}
        changes["label_options"] = {name: _label(old, new, name, data) for name in old.labels}
        self.schema = old.model_copy(update=changes)
        sparse = [features[feature.name] for feature in old.sparse]
        self.files = new.model_copy(
            update={"sparse": sparse, "dense": old.dense, "labels": old.labels}
        )

    def apply(self, columns: Columns, rows: npt.NDArray[np.int64], epoch: int) -> Columns:
        """Returns columns of `data` with the ids and scenarios of `trained`; see `IdTransform`."""
        changed = dict(columns)
        if "scenario" in changed:
            changed["scenario"] = self.scenarios[changed["scenario"]]
        return map_ids(self.schema, changed, lambda feature, ids, _: self._ids[feature.name][ids])

    def entities(self, side: Literal["user", "item"]) -> npt.NDArray[np.int64]:
        """Returns the index in `trained` of each user or item of `data`, -1 for new ones."""
        key = f"{side}_key"
        new, old = (_column(path / f"{side}s.parquet", key) for path in (self._data, self._trained))
        return self._positions(key, new, old).astype(np.int64)

    def _scenario_ids(self, old: Schema, new: Schema) -> Ids:
        """Returns the id in `trained` of each scenario of `data`."""
        names = [scenario.name for scenario in old.scenarios]
        unknown = [s.name for s in new.scenarios if s.name not in names]
        if unknown:
            raise ValueError(
                f"{self._data}: every scenario must be one that the model was trained on "
                f"({', '.join(names)}); got {unknown[0]!r}, which has no weights in it. {ADVICE}"
            )
        return np.array([names.index(scenario.name) for scenario in new.scenarios], np.int32)

    def _matched_ids(self, name: str, old_rows: int, new_rows: int) -> Ids:
        """Returns (new_rows,): the row in `trained` of each table row of `data`."""
        new, old = (self._values(path, name) for path in (self._data, self._trained))
        if new is None and old is None:  # a hash gives a value the same row in tables of one size
            if old_rows == new_rows:
                return np.arange(new_rows, dtype=np.int32)
            raise ValueError(
                f"{self._data}: the hashed feature {name!r} must have a table of {old_rows} rows, "
                f"as in {self._trained}; it has {new_rows}. {ADVICE}"
            )
        if new is None or old is None:
            kept = self._data if old is None else self._trained
            raise ValueError(
                f"{self._data}: ids of {name!r} must be numbered as in {self._trained}, both by a "
                f"vocabulary or both by a hash; only {kept} has {VOCABULARIES}/{name}.parquet. "
                f"{ADVICE}"
            )
        for path, values, rows in ((self._data, new, new_rows), (self._trained, old, old_rows)):
            if len(values) + 1 != rows:
                raise ValueError(
                    f"{vocabulary_file(path, name)} must have {rows - 1} values, as in "
                    f"dataset.yaml; it has {len(values)}. Convert that data again."
                )
        positions = self._positions(name, new, old)
        known = int((positions >= 0).sum())
        if count := len(new) - new.null_count - known:
            self.new_values[name] = count
        if count := len(old) - old.null_count - known:
            self.lost_values[name] = count
        return np.concatenate([[UNKNOWN], positions + 1]).astype(np.int32)

    def _values(self, dataset: AnyPath, name: str) -> pa.Array | None:
        """Returns the vocabulary of a feature, None if it is hashed."""
        path = vocabulary_file(dataset, name)
        if is_file(path):
            return _column(path, "value")
        if not (dataset / VOCABULARIES).is_dir():
            raise ValueError(
                f"{dataset} must have vocabularies, which map its ids to values; it has no folder "
                f"{VOCABULARIES}. Convert it with this version of msrec."
            )
        return None

    def _positions(self, name: str, values: pa.Array, known: pa.Array) -> Ids:
        """Returns the position of each value among those of `trained`, -1 for unknown ones."""
        try:
            return ValueIndex(known).positions(values)
        except ValueError:
            raise ValueError(
                f"{self._data}: the values of {name!r} must be {_type(known)}, as in the data that "
                f"the model was trained on; they are {_type(values)}. Cast them before converting."
            ) from None

    def _require(self, what: str, names: Sequence[str], present: Sequence[str]) -> None:
        missing = [name for name in names if name not in present]
        if missing:
            raise ValueError(
                f"{self._data} must have the {what} of {self._trained}; it lacks "
                f"{', '.join(missing)}. {ADVICE}"
            )


def _label(old: Schema, new: Schema, name: str, data: AnyPath) -> LabelOptions:
    """Returns the options of a label: as the model knows it, with the weights of `data`."""
    known, found = old.label(name), new.label(name)
    if (known.kind, known.exists_where) != (found.kind, found.exists_where):
        raise ValueError(
            f"{data}: label {name!r} must be of kind {known.kind} and exist where "
            f"{known.exists_where or 'any row is'}, as in training; it is {found.kind} and exists "
            f"where {found.exists_where or 'any row is'}. {ADVICE}"
        )
    return known.model_copy(update={"weight": found.weight})


def _kind(multi: bool) -> str:
    return "a list of ids" if multi else "one id"


def _type(values: pa.Array) -> str:
    if pa.types.is_integer(values.type):
        return "integers"
    return "text" if is_text(values.type) else f"of type {values.type}"


def _column(path: AnyPath, name: str) -> pa.Array:
    return read_parquet(path, [name])[name].combine_chunks()
