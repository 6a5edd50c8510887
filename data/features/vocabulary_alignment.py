"""Another dataset in the terms of the one that a model was trained on: ids matched by raw value."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from msrec.data.features.columns import Columns, map_ids
from msrec.data.features.vocabulary import UNKNOWN, VOCABULARIES
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import load_schema

ADVICE = "Convert the new data with the features and scenarios of the old."


class VocabularyAlignment:
    """Changes the ids of rows of `data` to those of `trained`, each by the value it stands for.

    A value that `trained` did not know, as a new user's id, becomes row 0 of its table, as such
    values are in `trained` itself. Scenarios are matched by name. It does not matter in which order
    `data` numbers its values, nor whether it was grown from `trained`.

    Args:
        trained: the dataset folder that a model was trained on.
        data: a dataset folder with the same features, or more.

    Attributes:
        schema: features, tables, scenarios and labels of `trained`; name, users, items, clock and
            split of `data`.
        files: what to read of `data`.
        new_values: feature -> values of `data` that `trained` did not know, where there are any.
        lost_values: feature -> values of `trained` that the vocabulary of `data` lacks, where there
            are any: rows of `data` that hold them were written with row 0. Not so where `data` was
            grown from `trained`.

    Raises:
        FileNotFoundError: a folder is not there.
        ValueError: `data` lacks a feature or label, has a scenario that is not known, or its ids
            cannot be matched.
    """

    def __init__(self, trained: AnyPath, data: AnyPath) -> None:
        old, new = load_schema(trained), load_schema(data)
        self._trained, self._data = trained, data
        known = {feature.name: feature for feature in new.sparse}
        self._need("sparse features", [f.name for f in old.sparse], list(known))
        self._need("dense features", old.dense, new.dense)
        self._need("labels", old.labels, new.labels)
        names = [scenario.name for scenario in old.scenarios]
        unknown = [s.name for s in new.scenarios if s.name not in names]
        if unknown:
            raise ValueError(
                f"{data}: every scenario must be one that the model was trained on "
                f"({', '.join(names)}); got {unknown[0]!r}, which has no weights in it. {ADVICE}"
            )
        self._scenario = np.array([names.index(s.name) for s in new.scenarios], np.int32)
        self._ids: dict[str, npt.NDArray[np.int32]] = {}
        self.new_values: dict[str, int] = {}
        self.lost_values: dict[str, int] = {}
        for feature in old.sparse:
            if known[feature.name].multi != feature.multi:
                raise ValueError(
                    f"{data}: feature {feature.name!r} must hold {_kind(feature.multi)} in a row, "
                    f"as in {trained}; it holds {_kind(not feature.multi)}. {ADVICE}"
                )
            sizes = old.tables[feature.table], new.tables[known[feature.name].table]
            self._ids[feature.name] = self._matched(feature.name, *sizes)
        taken = ("name", "description", "num_users", "num_items", "split", "counts")
        clock = ("timestamp", "timestamp_unit")
        self.schema = old.model_copy(update={n: getattr(new, n) for n in (*taken, *clock)})
        self.files = new.model_copy(
            update={
                "sparse": [known[feature.name] for feature in old.sparse],
                "dense": old.dense,
                "labels": old.labels,
            }
        )

    def columns(self, columns: Columns) -> Columns:
        """Columns of some rows of `data`, their sparse features and scenarios changed."""
        found = dict(columns)
        if "scenario" in found:
            found["scenario"] = self._scenario[found["scenario"]]
        return map_ids(self.schema, found, lambda feature, ids, _: self._ids[feature.name][ids])

    def entities(self, side: Literal["user", "item"]) -> npt.NDArray[np.int64]:
        """The index in `trained` of each user or item of `data`, -1 where it is new."""
        key = f"{side}_key"
        keys = [_column(path / f"{side}s.parquet", key) for path in (self._data, self._trained)]
        return _places(self._data, key, *keys)

    def _matched(self, name: str, old_rows: int, new_rows: int) -> npt.NDArray[np.int32]:
        """(new_rows,): the row in `trained` of each table row of `data`."""
        values = [self._values(path, name) for path in (self._data, self._trained)]
        new, old = values
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
        for path, found, rows in ((self._data, new, new_rows), (self._trained, old, old_rows)):
            if len(found) + 1 != rows:
                raise ValueError(
                    f"{path / VOCABULARIES / name}.parquet must have {rows - 1} values, as "
                    f"dataset.yaml says; it has {len(found)}. Convert that data again."
                )
        places = _places(self._data, name, new, old)
        known = int((places >= 0).sum())
        if count := len(new) - new.null_count - known:
            self.new_values[name] = count
        if count := len(old) - old.null_count - known:
            self.lost_values[name] = count
        return np.concatenate([[UNKNOWN], places + 1]).astype(np.int32)

    def _values(self, dataset: AnyPath, name: str) -> pa.Array | None:
        """The vocabulary of a feature, None where it is hashed."""
        path = dataset / VOCABULARIES / f"{name}.parquet"
        if is_file(path):
            return _column(path, "value")
        if not (dataset / VOCABULARIES).is_dir():
            raise ValueError(
                f"{dataset} must keep its vocabularies, or nobody can say which value an id stands "
                f"for; it has no folder {VOCABULARIES}. Convert it with this version of msrec."
            )
        return None

    def _need(self, what: str, wanted: Sequence[str], there: Sequence[str]) -> None:
        missing = [name for name in wanted if name not in there]
        if missing:
            raise ValueError(
                f"{self._data} must have the {what} of {self._trained}; it lacks "
                f"{', '.join(missing)}. {ADVICE}"
            )


def _kind(multi: bool) -> str:
    return "a list of ids" if multi else "one id"


def _column(path: AnyPath, name: str) -> pa.Array:
    """A column, its type one of two: int64 or string."""
    column = read_parquet(path, [name])[name].combine_chunks()
    is_number = pa.types.is_integer(column.type)
    return column.cast(pa.int64() if is_number else pa.large_string())


def _places(data: AnyPath, name: str, values: pa.Array, among: pa.Array) -> npt.NDArray[np.int64]:
    """Where each value stands among others, -1 where it does not.

    Raises:
        ValueError: one is of numbers and the other of text.
    """
    if values.type != among.type and len(values) and len(among):
        raise ValueError(
            f"{data}: the values of {name!r} must be {_type(among)}, as in the data that the model "
            f"was trained on; they are {_type(values)}. Cast them before converting."
        )
    if values.type != among.type:
        return np.full(len(values), -1, np.int64)
    found = pc.fill_null(pc.index_in(values, value_set=among, skip_nulls=True), -1)
    places: npt.NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return places


def _type(values: pa.Array) -> str:
    return "integers" if pa.types.is_integer(values.type) else "text"
