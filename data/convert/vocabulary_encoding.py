"""Raw values to table rows: vocabularies of what training holds, for every feature."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import Feature, RawTables
from msrec.data.convert.split import TRAIN, Parts
from msrec.data.convert.staging import StagedRows
from msrec.data.features.vocabulary import Hashed, Vocabulary, distinct_values


@dataclass(frozen=True)
class Encoded:
    """Features of users and items as table rows, one value each; how others get theirs.

    `values` and `missing` (null in the raw data) are of the features of side user and item;
    `vocabularies` (or hashes) are of all sparse and multi features, `collisions` of those that are
    hashed.
    """

    values: dict[str, pl.Series]
    missing: dict[str, npt.NDArray[np.bool_]]
    vocabularies: dict[str, Vocabulary | Hashed]
    collisions: dict[str, dict[str, int]]

    @property
    def table_rows(self) -> dict[str, int]:
        """The size of each feature's table."""
        return {name: vocabulary.rows for name, vocabulary in self.vocabularies.items()}


def encode_features(
    raw: RawTables,
    stage: StagedRows,
    parts: Parts,
    known: Mapping[str, pl.Series] | None = None,
    hashed: Mapping[str, Hashed] | None = None,
) -> Encoded:
    """Fit a vocabulary to what the training rows hold of each feature, and encode users and items.

    Args:
        raw: the tables.
        stage: their rows.
        parts: the split of each row.
        known: feature -> values that keep their rows, see `Vocabulary.fit`.
        hashed: features that get a hashed table instead of a vocabulary.

    Raises:
        ValueError: a feature has more values than int32 ids can name, or of another type than the
            known ones.
    """
    known, hashed = known or {}, hashed or {}
    _check_hashed(raw, hashed)
    trained = _trained(raw, stage, parts)
    seen = _seen_in_training(raw, stage, parts)
    encoded = Encoded({}, {}, {}, {})
    for feature in raw.features:
        if feature.side == "interaction":
            if feature.kind != "dense":
                _add(encoded, feature, seen[feature.name], known, hashed)
            continue
        values = raw.frame(feature.side)[1][feature.source]
        encoded.missing[feature.name] = values.is_null().to_numpy()
        if feature.kind == "dense":
            encoded.values[feature.name] = values.cast(pl.Float32)
            continue
        of_training = values.filter(pl.Series(trained[feature.side]))
        vocabulary = _add(encoded, feature, of_training, known, hashed)
        encoded.values[feature.name] = vocabulary.encode(values)
    return encoded


def _check_hashed(raw: RawTables, hashed: Mapping[str, Hashed]) -> None:
    names = [feature.name for feature in raw.features if feature.kind != "dense"]
    for name in hashed:
        if name not in names:
            raise ValueError(
                f"only a sparse feature can be hashed ({', '.join(names)}); got {name!r}."
            )


def _add(
    encoded: Encoded,
    feature: Feature,
    values: pl.Series,
    known: Mapping[str, pl.Series],
    hashed: Mapping[str, Hashed],
) -> Vocabulary | Hashed:
    """Decide how a feature gets its rows, by what training holds of it."""
    table: Vocabulary | Hashed
    if feature.name in hashed:
        table = hashed[feature.name]
        encoded.collisions[feature.name] = table.collisions(values)
    else:
        table = Vocabulary.fit(values, known.get(feature.name))
    encoded.vocabularies[feature.name] = table
    return table


def _trained(raw: RawTables, stage: StagedRows, parts: Parts) -> dict[str, npt.NDArray[np.bool_]]:
    """Which users and items have a training row."""
    found = {}
    for side, of, table in (("user", stage.user, raw.users), ("item", stage.item, raw.items)):
        found[side] = np.zeros(len(table), dtype=bool)
        for part in stage.parts:
            rows = slice(part.start, part.start + part.rows)
            found[side][of[rows][parts[rows] == TRAIN]] = True
    return found


def _seen_in_training(raw: RawTables, stage: StagedRows, parts: Parts) -> dict[str, pl.Series]:
    """Distinct values that training rows hold of the features of side interaction."""
    features = [f for f in raw.interaction_features if f.kind != "dense"]
    found: dict[str, pl.Series] = {}
    if not features:
        return found
    for rows, frame in stage.chunks([f.source for f in features]):
        train = pl.Series(parts[rows] == TRAIN)
        for feature in features:
            new = distinct_values(frame[feature.source].filter(train))
            old = found.get(feature.name)
            found[feature.name] = new if old is None else pl.concat([old, new]).unique()
    return found
