"""Vocabularies of the training rows, and the features of users and items as table rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import SIDES, Feature, RawTables, Side
from msrec.data.convert.split import TRAIN, SplitCodes
from msrec.data.convert.staging import StagedRows
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.vocabulary import (
    Frequent,
    Vocabulary,
    distinct_values,
    merged_rows,
    value_rows,
)

TableKind = Hashed | Managed | Frequent
"""What a table has in place of a row for each value in training."""
Keep = Callable[[str, pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class EncodedFeatures:
    """Encoded features of users and items, and the vocabularies of all features.

    `values` and `missing` (true for a raw null) have an entry for each user or item, by feature.
    `trained` has the number of training rows of each. `vocabularies` has the encoder of each sparse
    or multi feature; `collisions` has the counts of those that are hashed, `cut` those of values
    that are not frequent.
    """

    heights: dict[Side, int]
    """Number of users and items."""
    trained: Mapping[Side, npt.NDArray[np.int64]] = field(default_factory=dict)
    values: dict[str, pl.Series] = field(default_factory=dict)
    missing: dict[str, pl.Series] = field(default_factory=dict)
    vocabularies: dict[str, Vocabulary | Hashed | Managed] = field(default_factory=dict)
    collisions: dict[str, dict[str, int]] = field(default_factory=dict)
    cut: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def table_rows(self) -> dict[str, int]:
        """Number of rows of each embedding table."""
        return {name: vocabulary.rows for name, vocabulary in self.vocabularies.items()}

    def encode(self, feature: str, values: pl.Series) -> pl.Series:
        """Returns the table rows of raw values, or float32 numbers if the feature is dense."""
        vocabulary = self.vocabularies.get(feature)
        return values.cast(pl.Float32) if vocabulary is None else vocabulary.encode(values)


def encode_features(
    raw: RawTables,
    trained: Mapping[Side, npt.NDArray[np.int64]],
    in_training: Mapping[str, pl.DataFrame],
    known: Mapping[str, pl.Series] | None = None,
    table_kinds: Mapping[str, TableKind] | None = None,
    keep: Keep = lambda feature, column: column,
) -> EncodedFeatures:
    """Fits the vocabularies to the training rows, and encodes users and items.

    Args:
        raw: the tables.
        trained: side -> training rows of each user or item.
        in_training: feature of the interactions -> its values in training, see `values_of`.
        known: feature -> values that keep their rows, see `Vocabulary.fit`.
        table_kinds: features that get another table than a row for each value.
        keep: takes each encoded feature of users or items, with the columns `value` and
            `is_missing`, and returns the same, such as one in a file.

    Raises:
        ValueError: a feature has more values than int32 ids can name, or of another type than the
            known ones; or a feature with a table of its own kind is not sparse.
    """
    known, table_kinds = known or {}, table_kinds or {}
    features = [feature for feature in raw.features if feature.kind != "dense"]
    kinds = {feature.name: feature.kind for feature in features}
    for name, table in table_kinds.items():
        is_managed = isinstance(table, Managed)
        if kinds.get(name) not in (("sparse",) if is_managed else ("sparse", "multi")):
            what = _WHAT[type(table)]
            raise ValueError(f"only a {what} ({', '.join(kinds)}); got {name!r}.")
    encoded = EncodedFeatures({side: raw.table(side).height for side in SIDES}, trained)
    for feature in raw.features:
        kind, older = table_kinds.get(feature.name), known.get(feature.name)
        if feature.side == "interaction":
            if feature.kind != "dense":
                _fit(encoded, feature, in_training[feature.name], kind, older)
            continue
        column, rows = raw.table(feature.side)[feature.raw_column], trained[feature.side]
        if feature.raw_column == f"{feature.side}_key" and kind is None and older is None:
            fitted = Vocabulary.fit_keys(column, pl.Series(rows > 0))
            encoded.vocabularies[feature.name], ids = fitted
        else:
            if feature.kind != "dense":
                values = column.filter(pl.Series(rows > 0))
                is_counted = isinstance(kind, Frequent)
                counts = (
                    value_rows(values, rows[rows > 0]) if is_counted else values.to_frame("value")
                )
                _fit(encoded, feature, counts, kind, older)
            ids = encoded.encode(feature.name, column)
        kept = keep(feature.name, pl.DataFrame({"value": ids, "is_missing": column.is_null()}))
        encoded.values[feature.name] = kept["value"]
        encoded.missing[feature.name] = kept["is_missing"]
    return encoded


def _fit(
    encoded: EncodedFeatures,
    feature: Feature,
    counts: pl.DataFrame,
    kind: TableKind | None,
    known: pl.Series | None,
) -> None:
    """Adds the vocabulary of a feature, or what its table has in place of one.

    `counts` has a column `value`, and `rows` if the kind is `Frequent`.
    """
    values = counts["value"].alias(feature.raw_column)
    if isinstance(kind, Hashed):
        encoded.collisions[feature.name] = kind.collisions(values)
    elif isinstance(kind, Frequent):
        values, encoded.cut[feature.name] = kind.kept(counts)
        values = values.alias(feature.raw_column)
    if isinstance(kind, Hashed | Managed):
        encoded.vocabularies[feature.name] = kind
    else:
        encoded.vocabularies[feature.name] = Vocabulary.fit(values, known)


_WHAT = {
    Managed: "single-valued sparse feature can be managed",
    Hashed: "sparse feature can be hashed",
    Frequent: "sparse feature can have a least number of rows",
}


def trained_sides(
    raw: RawTables, stage: StagedRows, codes: SplitCodes
) -> dict[Side, npt.NDArray[np.int64]]:
    """Returns the number of training rows of each user and item."""
    trained: dict[Side, npt.NDArray[np.int64]] = {}
    for side in SIDES:
        trained[side] = np.zeros(raw.table(side).height, np.int64)
        for file in stage.files:
            rows = slice(file.start, file.stop)
            np.add.at(trained[side], stage.positions(side)[rows][codes[rows] == TRAIN], 1)
    return trained


class TrainingColumn(NamedTuple):
    """A column of the interactions of which a conversion needs the values in training."""

    name: str
    """Of a feature or label."""
    column: str
    is_counted: bool
    """Whether the rows with each value are needed too."""


def training_columns(
    raw: RawTables, table_kinds: Mapping[str, TableKind] | None = None
) -> list[TrainingColumn]:
    """Returns the sparse and multi features of the interactions, then the regression labels."""
    kinds = table_kinds or {}
    features = [feature for feature in raw.interaction_features if feature.kind != "dense"]
    labels = [name for name in raw.labels if raw.label(name).kind == "regression"]
    return [
        *(TrainingColumn(f.name, f.raw_column, _is_counted(kinds.get(f.name))) for f in features),
        *(TrainingColumn(name, name, is_counted=True) for name in labels),
    ]


def _is_counted(kind: TableKind | None) -> bool:
    return isinstance(kind, Frequent)


def values_of(values: pl.Series, is_counted: bool) -> pl.DataFrame:
    """Returns each value once as `value`; with its `rows`, as `value_rows`, if they are counted.

    Counting costs up to six times as much as finding the distinct values. A label that a row does
    not have, NaN, is left out.
    """
    if values.dtype.is_float():
        values = values.drop_nans() + 0.0  # -0.0 is 0.0
    if is_counted:
        return value_rows(values)
    return distinct_values(values).alias("value").to_frame()


def training_values(
    raw: RawTables,
    stage: StagedRows,
    codes: SplitCodes,
    table_kinds: Mapping[str, TableKind] | None = None,
) -> dict[str, pl.DataFrame]:
    """Returns name -> values in training of each of `training_columns`, as `values_of` does."""
    columns = training_columns(raw, table_kinds)
    seen: dict[str, pl.DataFrame] = {}
    if not columns:
        return seen
    for rows, frame in stage.chunks([column.column for column in columns]):
        is_training = pl.Series(codes[rows] == TRAIN)
        for name, column, is_counted in columns:
            counts = values_of(frame[column].filter(is_training), is_counted)
            if name in seen:
                counts = merged_rows(pl.concat([seen[name], counts]))
            seen[name] = counts
    return seen
