"""Vocabularies of the training rows, and the features of users and items as table rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import SIDES, RawTables, Side
from msrec.data.convert.split import TRAIN, SplitCodes
from msrec.data.convert.staging import StagedRows
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.vocabulary import Vocabulary, distinct_values


@dataclass(frozen=True)
class EncodedFeatures:
    """Encoded features of users and items, and the vocabularies of all features.

    `values` and `missing` (true for a raw null) have an entry for each user or item, by feature.
    `vocabularies` has the encoder of each sparse or multi feature; `collisions` has the counts of
    those that are hashed.
    """

    heights: dict[Side, int]
    """Number of users and items."""
    values: dict[str, pl.Series] = field(default_factory=dict)
    missing: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    vocabularies: dict[str, Vocabulary | Hashed | Managed] = field(default_factory=dict)
    collisions: dict[str, dict[str, int]] = field(default_factory=dict)

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
    trained: Mapping[Side, pl.Series],
    in_training: Mapping[str, pl.Series],
    known: Mapping[str, pl.Series] | None = None,
    hashed: Mapping[str, Hashed | Managed] | None = None,
) -> EncodedFeatures:
    """Fits the vocabularies to the training rows, and encodes users and items.

    Args:
        raw: the tables.
        trained: side -> whether each user or item has a training row.
        in_training: feature of the interactions -> its distinct values in training.
        known: feature -> values that keep their rows, see `Vocabulary.fit`.
        hashed: features that get a hashed or managed table instead of a vocabulary.

    Raises:
        ValueError: a feature has more values than int32 ids can name, or of another type than the
            known ones; or a hashed or managed feature is not sparse.
    """
    known, hashed = known or {}, hashed or {}
    features = [feature for feature in raw.features if feature.kind != "dense"]
    kinds = {feature.name: feature.kind for feature in features}
    for name, table in hashed.items():
        is_managed = isinstance(table, Managed)
        if kinds.get(name) not in (("sparse",) if is_managed else ("sparse", "multi")):
            what = (
                "single-valued sparse feature can be managed"
                if is_managed
                else ("sparse feature can be hashed")
            )
            raise ValueError(f"only a {what} ({', '.join(kinds)}); got {name!r}.")
    encoded = EncodedFeatures({side: raw.table(side).height for side in SIDES})
    for feature in features:
        if feature.side == "interaction":
            values = in_training[feature.name]
        else:
            values = raw.table(feature.side)[feature.raw_column].filter(trained[feature.side])
        vocabulary = hashed.get(feature.name) or Vocabulary.fit(values, known.get(feature.name))
        if isinstance(vocabulary, Hashed):
            encoded.collisions[feature.name] = vocabulary.collisions(values)
        encoded.vocabularies[feature.name] = vocabulary
    for feature in raw.features:
        if feature.side != "interaction":
            values = raw.table(feature.side)[feature.raw_column]
            encoded.missing[feature.name] = values.is_null().to_numpy()
            encoded.values[feature.name] = encoded.encode(feature.name, values)
    return encoded


def trained_sides(raw: RawTables, stage: StagedRows, codes: SplitCodes) -> dict[Side, pl.Series]:
    """Returns for each user and item whether it has a training row."""
    trained: dict[Side, pl.Series] = {}
    for side in SIDES:
        is_trained = np.zeros(raw.table(side).height, dtype=bool)
        for file in stage.files:
            rows = slice(file.start, file.stop)
            is_trained[stage.positions(side)[rows][codes[rows] == TRAIN]] = True
        trained[side] = pl.Series(is_trained)
    return trained


def training_values(raw: RawTables, stage: StagedRows, codes: SplitCodes) -> dict[str, pl.Series]:
    """Returns the distinct values of sparse and multi features of the interactions in training."""
    features = [feature for feature in raw.interaction_features if feature.kind != "dense"]
    seen: dict[str, pl.Series] = {}
    if not features:
        return seen
    for rows, frame in stage.chunks([feature.raw_column for feature in features]):
        is_training = pl.Series(codes[rows] == TRAIN)
        for feature in features:
            values = distinct_values(frame[feature.raw_column].filter(is_training))
            if feature.name in seen:
                values = pl.concat([seen[feature.name], values]).unique()
            seen[feature.name] = values
    return seen
