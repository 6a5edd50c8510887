"""Counts by user, by item and by table row, and what a dataset keeps of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.chunk_counts import Bools, ChunkCounts, Ints, flat_ids, flaws_of
from msrec.data.convert.raw_tables import SIDES, Feature, RawTables, Side
from msrec.data.convert.split import TRAIN
from msrec.data.convert.vocabulary_encoding import EncodedFeatures
from msrec.data.features.hashed_values import Managed
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import Vocabulary
from msrec.data.schema import SPLITS

Column = tuple[pl.Series, pl.Series]
"""Whether each raw value is missing, and the encoded values."""
Imbalance = dict[str, list[float]]
"""Result of `imbalance_by_ranks`."""


class SideCounts(NamedTuple):
    """Counts of some users (items), which may be added up.

    A flaw is a missing value or an id that training has not seen; it counts once for each row of
    the user (item).

    Shape:
        seen: (1 + scenarios,), users with rows: in any scenario, and in each.
        without_training: (splits,), users with rows in a split and none in training.
        flaws: feature -> (2, splits), missing values and unknown ids.
    """

    seen: Ints
    without_training: Ints
    flaws: dict[str, Ints]

    @classmethod
    def of(cls, rows: npt.NDArray[np.integer], is_in: Bools, columns: Mapping[str, Column]) -> Self:
        """Counts n users.

        Args:
            rows: (splits, n), rows of each user.
            is_in: (scenarios, n), whether the user has rows in the scenario.
            columns: those of the sparse and multi features of the users.
        """
        return cls(
            np.array([is_in.any(axis=0).sum(), *is_in.sum(axis=1)]),
            ((rows > 0) & (rows[TRAIN] == 0)).sum(axis=1),
            {
                name: flaws_of(is_missing.to_numpy(), values) @ rows.T.astype(np.int64)
                for name, (is_missing, values) in columns.items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as JSON, for `merged`."""
        flaws = {name: counts.tolist() for name, counts in self.flaws.items()}
        few = {"seen": self.seen.tolist(), "without_training": self.without_training.tolist()}
        return {**few, "flaws": flaws}

    @classmethod
    def merged(cls, results: Sequence[Mapping[str, Any]]) -> Self:
        """Returns the sums of the counts of several ranges, each as JSON."""
        return cls(
            np.sum([result["seen"] for result in results], axis=0),
            np.sum([result["without_training"] for result in results], axis=0),
            {
                name: np.sum([result["flaws"][name] for result in results], axis=0)
                for name in results[0]["flaws"]
            },
        )


class PositionCounts:
    """Rows of each user and item, and lookups of each table row, added up chunk by chunk."""

    def __init__(self, raw: RawTables, encoded: EncodedFeatures) -> None:
        self._raw, self._encoded = raw, encoded
        scenarios = len(raw.scenarios)
        self._rows = {n: np.zeros((len(SPLITS), h), np.int32) for n, h in encoded.heights.items()}
        self._is_in = {n: np.zeros((scenarios, h), dtype=bool) for n, h in encoded.heights.items()}
        sizes = lookup_sizes(raw, encoded)
        self._lookups = {name: np.zeros(size, np.int64) for name, size in sizes.items()}

    def add(self, chunk: ChunkCounts) -> None:
        """Adds the counts of some rows."""
        for side, (index, times) in chunk.sides.items():
            position, cell = np.divmod(index, len(self._raw.scenarios) * len(SPLITS))
            scenario, split = np.divmod(cell, len(SPLITS))
            self._is_in[side][scenario, position] = True
            # A user may occur once for each scenario.
            at = split * self._encoded.heights[side] + position
            np.add.at(self._rows[side].reshape(-1), at, times.astype(np.int32))
        for name, (index, times) in chunk.lookups.items():
            self._lookups[name][index] += times

    @property
    def sides(self) -> dict[Side, SideCounts]:
        """Counts of all users and of all items."""
        return {
            side: SideCounts.of(
                self._rows[side], self._is_in[side], side_columns(self._raw, self._encoded, side)
            )
            for side in SIDES
        }

    @property
    def hottest_ranks(self) -> dict[str, Imbalance]:
        """Imbalance of each table, see `hottest_ranks`."""
        return hottest_ranks(self._raw, self._encoded, self._lookups)


def side_columns(raw: RawTables, encoded: EncodedFeatures, side: Side) -> dict[str, Column]:
    """Returns feature of users or items -> its column, of sparse and multi ones."""
    return {
        feature.name: (encoded.missing[feature.name], encoded.values[feature.name])
        for feature in raw.features
        if feature.side == side and feature.kind != "dense"
    }


def lookup_sizes(raw: RawTables, encoded: EncodedFeatures) -> dict[str, int]:
    """Returns feature of the interactions -> rows of its table, of those with counted lookups."""
    features = _counted(raw, encoded)
    return {f.name: encoded.table_rows[f.name] for f in features if f.side == "interaction"}


def hottest_ranks(
    raw: RawTables, encoded: EncodedFeatures, lookups: Mapping[str, Ints]
) -> dict[str, Imbalance]:
    """Returns feature -> imbalance of the lookups of its table in training.

    Args:
        raw: names the features.
        encoded: has the vocabularies, and the features of users and items.
        lookups: feature of the interactions -> lookups of each table row in training.
    """
    ranks = {}
    for feature in _counted(raw, encoded):
        vocabulary = encoded.vocabularies[feature.name]
        if feature.side == "interaction":
            counts = lookups[feature.name]
        else:
            times, values = encoded.trained[feature.side], encoded.values[feature.name]
            if values.dtype.base_type() is pl.List:
                times = np.repeat(times, values.list.len().fill_null(0).to_numpy())
            counts = np.bincount(flat_ids(values), times, minlength=vocabulary.rows)
            counts = counts.astype(np.int64)
        by_value = vocabulary.by_value(counts) if isinstance(vocabulary, Vocabulary) else None
        ranks[feature.name] = imbalance_by_ranks(counts, by_value)
    return ranks


def _counted(raw: RawTables, encoded: EncodedFeatures) -> list[Feature]:
    """Returns the features with a table whose rows are known: in a managed one, by a model."""
    return [
        feature
        for feature in raw.features
        if feature.kind != "dense" and not isinstance(encoded.vocabularies[feature.name], Managed)
    ]
