"""Counts of a conversion, collected chunk by chunk: rows, positives, unknown ids, duplicates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.chunk_counts import (
    ChunkCounts,
    Ints,
    flat_ids,
    flaws_of,
    time_span,
)
from msrec.data.convert.raw_tables import Feature, RawTables
from msrec.data.convert.split import TRAIN, user_shares
from msrec.data.convert.staging import StagedRows
from msrec.data.convert.vocabulary_encoding import EncodedFeatures
from msrec.data.features.hashed_values import Managed
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import Vocabulary
from msrec.data.labels import LabelOptions
from msrec.data.schema import SPLITS


class ConversionCounts:
    """Counts for `Schema.counts` that need each row once.

    A flaw is a missing value or an id that training has not seen. Flaws of users and items count
    once for each row of the user or item.
    """

    def __init__(self, raw: RawTables, encoded: EncodedFeatures) -> None:
        self._raw, self._encoded = raw, encoded
        self._scenarios = [scenario.name for scenario in raw.scenarios]
        self._features = [feature for feature in raw.features if feature.kind != "dense"]
        shape = (len(SPLITS), len(self._scenarios))
        self._rows, self._positives = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._time = time_span(None, np.zeros(0, np.int8))
        self._labels = {name: LabelCounts(raw.label(name)) for name in raw.labels[1:]}
        # Rows of each user (item) by split, and whether the user (item) is in a scenario.
        self._rows_of = {n: np.zeros((shape[0], h), np.int32) for n, h in encoded.heights.items()}
        self._seen = {n: np.zeros((shape[1], h), dtype=bool) for n, h in encoded.heights.items()}
        names = [feature.name for feature in self._features if feature.side == "interaction"]
        self._flaws = {name: np.zeros((2, len(SPLITS)), np.int64) for name in names}
        # Which row of a managed table a value has is for the model to decide.
        self._counted = [
            f for f in self._features if not isinstance(encoded.vocabularies[f.name], Managed)
        ]
        self._lookups = {
            f.name: np.zeros(encoded.table_rows[f.name], np.int64)
            for f in self._counted
            if f.side == "interaction"
        }

    def add(self, chunk: ChunkCounts) -> None:
        """Adds the counts of some rows."""
        self._rows += chunk.rows
        self._positives += chunk.positives
        self._time[0] = np.minimum(self._time[0], chunk.time[0])
        self._time[1] = np.maximum(self._time[1], chunk.time[1])
        for name, counts in chunk.labels.items():
            self._labels[name].add(counts)
        for side, (index, times) in chunk.sides.items():
            cell, position = np.divmod(index, self._encoded.heights[side])
            scenario, split = np.divmod(cell, len(SPLITS))
            self._seen[side][scenario, position] = True
            for code in range(len(SPLITS)):  # a position may occur once for each scenario
                here = split == code
                np.add.at(self._rows_of[side][code], position[here], times[here].astype(np.int32))
        for name, flaws in chunk.flaws.items():
            self._flaws[name] += flaws
        for name, (index, times) in chunk.lookups.items():
            self._lookups[name][index] += times

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts under their names in `Schema.counts`."""
        flaws = {feature.name: self._flaws_by_split(feature) for feature in self._features}
        return {
            "rows": counts_by_split(self._rows, self._scenarios),
            "positives": counts_by_split(self._positives, self._scenarios),
            **{
                f"{side}s": {"all": int(np.any(seen, axis=0).sum())}
                | dict(zip(self._scenarios, seen.sum(axis=1).tolist(), strict=True))
                for side, seen in self._seen.items()
            },
            "labels": {name: counter.to_dict() for name, counter in self._labels.items()},
            "time": {
                split: [int(first), int(last)]
                for split, first, last in zip(SPLITS, *self._time, strict=True)
                if first <= last
            },
            "unknown": {name: unknown for name, (_, unknown) in flaws.items() if unknown},
            "missing": {name: missing for name, (missing, _) in flaws.items() if missing},
            "hottest_rank": {f.name: self._hottest_rank(f) for f in self._counted},
            **{
                f"{side}s_without_training": {
                    split: int(((rows[code] > 0) & (rows[TRAIN] == 0)).sum())
                    for code, split in enumerate(SPLITS)
                }
                for side, rows in self._rows_of.items()
            },
        }

    def _flaws_by_split(self, feature: Feature) -> list[dict[str, int]]:
        """Returns the rows whose value is missing, and the unknown ids, for splits with any."""
        if feature.side == "interaction":
            totals = self._flaws[feature.name]
        else:
            is_missing = self._encoded.missing[feature.name]
            flaws = flaws_of(is_missing, self._encoded.values[feature.name])
            totals = flaws @ self._rows_of[feature.side].T.astype(np.int64)
        return [
            {split: n for split, n in zip(SPLITS, total, strict=True) if n}
            for total in totals.tolist()
        ]

    def _hottest_rank(self, feature: Feature) -> dict[str, list[float]]:
        vocabulary = self._encoded.vocabularies[feature.name]
        if feature.side == "interaction":
            lookups = self._lookups[feature.name]
        else:
            times = self._rows_of[feature.side][TRAIN].astype(np.int64)
            values = self._encoded.values[feature.name]
            if values.dtype.base_type() is pl.List:
                times = np.repeat(times, values.list.len().fill_null(0).to_numpy())
            lookups = np.bincount(flat_ids(values), times, minlength=vocabulary.rows).astype(
                np.int64
            )
        by_value = vocabulary.by_value(lookups) if isinstance(vocabulary, Vocabulary) else None
        return imbalance_by_ranks(lookups, by_value)


class LabelCounts:
    """Counts of a label in each split: rows that have it, lack it, and the sum of its values.

    For regression labels with `clip` also the rows whose value is clipped.
    """

    def __init__(self, options: LabelOptions) -> None:
        self._options = options
        self._totals = [[0] * len(SPLITS) for _ in range(4)]

    def add(self, counts: list[list[int]]) -> None:
        """Adds what `label_counts` returned."""
        for total, part in zip(self._totals, counts, strict=True):
            total[:] = map(int.__add__, total, part)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns split -> counts: positives of a binary label, the mean of a regression label."""
        is_binary = self._options.kind == "binary"
        by_split: dict[str, dict[str, Any]] = {}
        for code, split in enumerate(SPLITS):
            rows, missing, clipped, units = (total[code] for total in self._totals)
            counts: dict[str, Any] = {"rows": rows, "missing": missing}
            if is_binary:
                counts["positives"] = units >> 172
            else:
                mean = units / (rows << 172) if rows else None
                counts |= {"clipped": clipped, "mean": mean}
            by_split[split] = counts
        return by_split


def counts_by_split(table: Ints, scenarios: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns counts (splits, scenarios) by name, with the sum of each split as "all"."""
    return {
        split: {"all": sum(row)} | dict(zip(scenarios, row, strict=True))
        for split, row in zip(SPLITS, table.tolist(), strict=True)
    }


def num_duplicates(stage: StagedRows) -> int:
    """Counts the rows that repeat the user, item and time of another."""
    duplicates = 0
    for rows in user_shares(stage):
        time = None if stage.timestamp is None else stage.timestamp[rows]
        duplicates += duplicates_among(stage.user[rows], stage.item[rows], time)
    return duplicates


def duplicates_among(
    user: npt.NDArray[np.int32], item: npt.NDArray[np.int32], time: Ints | None
) -> int:
    """Counts the rows that repeat the user, item and time of another; (N,) each."""
    columns: dict[str, npt.NDArray[Any]] = {"user": user, "item": item}
    if time is not None:
        columns["timestamp"] = time
    return len(user) - pl.DataFrame(columns).n_unique()
