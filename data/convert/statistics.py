"""Counts of a conversion, collected chunk by chunk: rows, positives, unknown ids, duplicates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import SIDES, Feature, RawTables
from msrec.data.convert.split import TRAIN, SplitCodes, user_shares
from msrec.data.convert.staging import StagedRows
from msrec.data.convert.vocabulary_encoding import EncodedFeatures
from msrec.data.features.hashed_values import Managed
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import UNKNOWN, Vocabulary
from msrec.data.labels import LabelOptions
from msrec.data.schema import SPLITS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
        self._time: dict[str, list[int]] = {}
        self._labels = {name: LabelCounts(raw.label(name)) for name in raw.labels[1:]}
        sizes = {side: raw.table(side).height for side in SIDES}
        # Rows of each user (item) by split, and whether the user (item) is in a scenario.
        self._rows_of = {side: np.zeros((shape[0], n), np.int32) for side, n in sizes.items()}
        self._seen = {side: np.zeros((shape[1], n), dtype=bool) for side, n in sizes.items()}
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

    def add(
        self, codes: SplitCodes, columns: Mapping[str, pl.Series], is_missing: Mapping[str, Bools]
    ) -> None:
        """Counts some rows.

        Args:
            codes: their splits.
            columns: their users, items, scenarios, labels, timestamps and encoded features.
            is_missing: for each feature of side interaction, whether the raw value is null.
        """
        scenario = columns["scenario"].cast(pl.Int64).to_numpy()
        label = columns[self._raw.labels[0]].to_numpy()
        cell = codes.astype(np.int64) * len(self._scenarios) + scenario
        for total, weights in ((self._rows, None), (self._positives, label)):
            counts = np.bincount(cell, weights, minlength=total.size)
            total += counts.astype(np.int64).reshape(total.shape)
        for name, counter in self._labels.items():
            counter.add(columns[name].to_numpy(), codes)
        for side in SIDES:
            positions = columns[side].to_numpy()
            self._seen[side][scenario, positions] = True
            for split in range(len(SPLITS)):
                present, counts = np.unique(positions[codes == split], return_counts=True)
                self._rows_of[side][split, present] += counts.astype(np.int32)
        if self._raw.timestamp:
            self._add_time(columns[self._raw.timestamp].to_numpy(), codes)
        for name, total in self._flaws.items():
            for number, flaws in enumerate(_flaws(is_missing[name], columns[name])):
                total[number] += np.bincount(codes, flaws, minlength=len(SPLITS)).astype(np.int64)
        times = (codes == TRAIN).astype(np.int64)
        for name, lookups in self._lookups.items():
            lookups += _lookups(columns[name], times, len(lookups))

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
            "time": self._time,
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

    def _add_time(self, clock: Ints, codes: SplitCodes) -> None:
        for code, split in enumerate(SPLITS):
            times = clock[codes == code]
            if len(times):
                first, last = int(times.min()), int(times.max())
                earlier = self._time.get(split, [first, last])
                self._time[split] = [min(first, earlier[0]), max(last, earlier[1])]

    def _flaws_by_split(self, feature: Feature) -> list[dict[str, int]]:
        """Returns the rows whose value is missing, and the unknown ids, for splits with any."""
        if feature.side == "interaction":
            totals = self._flaws[feature.name]
        else:
            is_missing = self._encoded.missing[feature.name]
            flaws = _flaws(is_missing, self._encoded.values[feature.name])
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
            lookups = _lookups(self._encoded.values[feature.name], times, vocabulary.rows)
        by_value = vocabulary.by_value(lookups) if isinstance(vocabulary, Vocabulary) else None
        return imbalance_by_ranks(lookups, by_value)


class LabelCounts:
    """Counts of a label in each split: rows that have it, lack it, and the sum of its values.

    For regression labels with `clip` also the rows whose value is clipped.
    """

    def __init__(self, options: LabelOptions) -> None:
        self._options = options
        self._totals = {
            name: np.zeros(len(SPLITS)) for name in ("rows", "missing", "clipped", "sum")
        }

    def add(self, values: npt.NDArray[np.float32], codes: SplitCodes) -> None:
        """Counts some rows, (N,), with their splits; NaN is a missing value."""
        is_missing = np.isnan(values)
        low, high = self._options.clip or (-np.inf, np.inf)
        weights = {
            "rows": ~is_missing,
            "missing": is_missing,
            "clipped": (values < low) | (values > high),
            "sum": np.where(is_missing, 0, values),
        }
        for name, total in self._totals.items():
            total += np.bincount(codes, weights[name], minlength=len(SPLITS))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns split -> counts: positives of a binary label, the mean of a regression label."""
        is_binary = self._options.kind == "binary"
        by_split: dict[str, dict[str, Any]] = {}
        for code, split in enumerate(SPLITS):
            rows, missing, clipped, total = (float(t[code]) for t in self._totals.values())
            counts: dict[str, Any] = {"rows": int(rows), "missing": int(missing)}
            if is_binary:
                counts["positives"] = int(total)
            else:
                counts |= {"clipped": int(clipped), "mean": total / rows if rows else None}
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
        columns: dict[str, npt.NDArray[Any]] = {"user": stage.user[rows], "item": stage.item[rows]}
        if stage.timestamp is not None:
            columns["timestamp"] = stage.timestamp[rows]
        duplicates += len(rows) - pl.DataFrame(columns).n_unique()
    return duplicates


def _flaws(is_missing: Bools, values: pl.Series) -> Ints:
    """(2, values): 1 if a value is missing, and the number of its ids that are unknown."""
    missing = is_missing.astype(np.int64)
    if values.dtype.base_type() is pl.List:
        unknown = values.list.eval(pl.element() == UNKNOWN).list.sum().fill_null(0)
        return np.stack([missing, unknown.cast(pl.Int64).to_numpy()])
    return np.stack([missing, (values == UNKNOWN).cast(pl.Int64).to_numpy() - missing])


def _lookups(values: pl.Series, times: Ints, num_rows: int) -> Ints:
    """(num_rows,): lookups of each table row, if value i is looked up `times[i]` times."""
    if values.dtype.base_type() is pl.List:
        times = np.repeat(times, values.list.len().fill_null(0).to_numpy())
        values = values.explode(keep_nulls=False, empty_as_null=False)
    return np.bincount(values.to_numpy(), times, minlength=num_rows).astype(np.int64)
