"""Raw values to table rows: vocabularies of what training holds, for every feature."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.ids import Vocabulary
from msrec.data.raw import Feature, RawTables
from msrec.data.split import TRAIN, Parts
from msrec.data.stage import Stage


@dataclass(frozen=True)
class Encoded:
    """Features of users and items as table rows, one value each; vocabularies of the others.

    `values` and `missing` (null in the raw data) are of the features of side user and item;
    `vocabularies` of all sparse and multi features; `table_rows` too.
    """

    values: dict[str, pl.Series]
    missing: dict[str, npt.NDArray[np.bool_]]
    vocabularies: dict[str, Vocabulary]
    table_rows: dict[str, int]

    def add(self, feature: str, vocabulary: Vocabulary) -> None:
        """Keep a feature's vocabulary and the size of its table."""
        self.vocabularies[feature] = vocabulary
        self.table_rows[feature] = vocabulary.rows


def encode_features(
    raw: RawTables, stage: Stage, parts: Parts, known: Mapping[str, pl.Series] | None = None
) -> Encoded:
    """Fit a vocabulary to what the training rows hold of each feature, and encode users and items.

    Args:
        raw: the tables.
        stage: their rows.
        parts: the split of each row.
        known: feature -> values that keep their rows, see `Vocabulary.fit`.

    Raises:
        ValueError: a feature has more values than int32 ids can name, or of another type than the
            known ones.
    """
    known = known or {}
    trained = _trained(raw, stage, parts)
    seen = _seen_in_training(raw, stage, parts)
    encoded = Encoded({}, {}, {}, {})
    for feature in raw.features:
        if feature.side == "interaction":
            if feature.kind != "dense":
                values = seen[feature.name]
                encoded.add(feature.name, Vocabulary.fit(values, known.get(feature.name)))
            continue
        values = raw.frame(feature.side)[1][feature.source]
        encoded.missing[feature.name] = values.is_null().to_numpy()
        if feature.kind == "dense":
            encoded.values[feature.name] = values.cast(pl.Float32)
            continue
        of_training = values.filter(pl.Series(trained[feature.side]))
        vocabulary = Vocabulary.fit(of_training, known.get(feature.name))
        encoded.values[feature.name] = vocabulary.encode(values)
        encoded.add(feature.name, vocabulary)
    return encoded


def _trained(raw: RawTables, stage: Stage, parts: Parts) -> dict[str, npt.NDArray[np.bool_]]:
    """Which users and items have a training row."""
    found = {}
    for side, of, table in (("user", stage.user, raw.users), ("item", stage.item, raw.items)):
        found[side] = np.zeros(len(table), dtype=bool)
        for part in stage.parts:
            rows = slice(part.start, part.start + part.rows)
            found[side][of[rows][parts[rows] == TRAIN]] = True
    return found


def _seen_in_training(raw: RawTables, stage: Stage, parts: Parts) -> dict[str, pl.Series]:
    """Distinct values that training rows hold of the features of side interaction."""
    features = [f for f in raw.interaction_features if f.kind != "dense"]
    found: dict[str, pl.Series] = {}
    if not features:
        return found
    for rows, frame in stage.chunks([f.source for f in features]):
        train = pl.Series(parts[rows] == TRAIN)
        for feature in features:
            new = _distinct(frame[feature.source].filter(train), feature)
            old = found.get(feature.name)
            found[feature.name] = new if old is None else pl.concat([old, new]).unique()
    return found


def _distinct(values: pl.Series, feature: Feature) -> pl.Series:
    flat = values.explode() if feature.kind == "multi" else values
    return flat.drop_nulls().unique()
