"""Counts of a conversion, collected chunk by chunk: rows, positives, unknown ids, duplicates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.chunk_counts import ChunkCounts, Ints, time_span
from msrec.data.convert.position_counts import Imbalance, SideCounts
from msrec.data.convert.raw_tables import RawTables, Side
from msrec.data.convert.split import user_shares
from msrec.data.convert.staging import StagedRows
from msrec.data.labels import LabelOptions
from msrec.data.schema import SPLITS


class ConversionCounts:
    """Counts for `Schema.counts` that need each row once, and only a few numbers for all rows."""

    def __init__(self, raw: RawTables) -> None:
        self._raw = raw
        self._scenarios = [scenario.name for scenario in raw.scenarios]
        shape = (len(SPLITS), len(self._scenarios))
        self._rows, self._positives = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._time = time_span(None, np.zeros(0, np.int8))
        self._labels = {name: LabelCounts(raw.label(name)) for name in raw.labels[1:]}
        features = [f for f in raw.interaction_features if f.kind != "dense"]
        self._flaws = {f.name: np.zeros((2, len(SPLITS)), np.int64) for f in features}

    def add(self, chunk: ChunkCounts) -> None:
        """Adds the counts of some rows."""
        self._rows += chunk.rows
        self._positives += chunk.positives
        self._time[0] = np.minimum(self._time[0], chunk.time[0])
        self._time[1] = np.maximum(self._time[1], chunk.time[1])
        for name, counts in chunk.labels.items():
            self._labels[name].add(counts)
        for name, flaws in chunk.flaws.items():
            self._flaws[name] += flaws

    def to_dict(
        self, sides: Mapping[Side, SideCounts], hottest_rank: Mapping[str, Imbalance]
    ) -> dict[str, Any]:
        """Returns the counts under their names in `Schema.counts`; see `hottest_ranks`."""
        flaws = {
            feature.name: self._flaws[feature.name]
            if feature.side == "interaction"
            else sides[feature.side].flaws[feature.name]
            for feature in self._raw.features
            if feature.kind != "dense"
        }
        missing, unknown = (
            {name: by_split for name, both in flaws.items() if (by_split := _by_split(both[kind]))}
            for kind in range(2)
        )
        return {
            "rows": counts_by_split(self._rows, self._scenarios),
            "positives": counts_by_split(self._positives, self._scenarios),
            **{
                f"{side}s": dict(zip(["all", *self._scenarios], counts.seen.tolist(), strict=True))
                for side, counts in sides.items()
            },
            "labels": {name: counter.to_dict() for name, counter in self._labels.items()},
            "time": {
                split: [int(first), int(last)]
                for split, first, last in zip(SPLITS, *self._time, strict=True)
                if first <= last
            },
            "unknown": unknown,
            "missing": missing,
            "hottest_rank": dict(hottest_rank),
            **{
                f"{side}s_without_training": dict(
                    zip(SPLITS, counts.without_training.tolist(), strict=True)
                )
                for side, counts in sides.items()
            },
        }


def _by_split(counts: Ints) -> dict[str, int]:
    """Returns split -> count of (splits,), without zeros."""
    return {split: n for split, n in zip(SPLITS, counts.tolist(), strict=True) if n}


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
