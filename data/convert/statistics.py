"""What a conversion counted, gathered chunk by chunk: rows, positives, unknown ids, duplicates."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import Feature, RawTables
from msrec.data.convert.split import TRAIN, Parts, user_shares
from msrec.data.convert.staging import StagedRows
from msrec.data.convert.vocabulary_encoding import Encoded
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import UNKNOWN, Vocabulary
from msrec.data.schema import SPLITS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Flaws = dict[str, dict[str, int]]
"""Feature -> split -> how many; without zeros."""
SIDES: tuple[Literal["user", "item"], ...] = ("user", "item")


class Tally:
    """Counts of `Schema.counts` that need each row once.

    What is wrong with a value of a user or an item is counted by how many rows each has.
    """

    def __init__(self, raw: RawTables, encoded: Encoded) -> None:
        self._names = [scenario.name for scenario in raw.scenarios]
        self._features = [feature for feature in raw.features if feature.kind != "dense"]
        self._encoded = encoded
        splits, scenarios = len(SPLITS), len(self._names)
        self._rows = np.zeros((splits, scenarios), np.int64)
        self._positives = np.zeros((splits, scenarios), np.int64)
        sizes = {side: len(raw.frame(side)[1]) for side in SIDES}
        self._of = {side: np.zeros((splits, n), np.int32) for side, n in sizes.items()}
        self._seen = {side: np.zeros((scenarios, n), dtype=bool) for side, n in sizes.items()}
        self._time: dict[str, list[int]] = {}
        own = [f.name for f in self._features if f.side == "interaction"]
        self._flaws = {name: np.zeros((2, splits), np.int64) for name in own}
        self._lookups = {name: np.zeros(encoded.table_rows[name], np.int64) for name in own}

    def add(
        self,
        stage: StagedRows,
        rows: slice,
        parts: Parts,
        label: pl.Series,
        interaction: dict[str, tuple[Bools, pl.Series]],
    ) -> None:
        """Count some rows.

        Args:
            stage: where the rows are.
            rows: which.
            parts: their splits.
            label: their first label.
            interaction: for each feature of side interaction where it is missing, and its table
                rows.
        """
        scenario = stage.scenario[rows].astype(np.int64)
        cell = parts.astype(np.int64) * len(self._names) + scenario
        self._rows += np.bincount(cell, minlength=self._rows.size).reshape(self._rows.shape)
        positive = np.bincount(cell, label.to_numpy(), minlength=self._rows.size)
        self._positives += positive.astype(np.int64).reshape(self._rows.shape)
        for side in SIDES:
            of = (stage.user if side == "user" else stage.item)[rows]
            self._seen[side][scenario, of] = True
            for part in range(len(SPLITS)):
                found, counts = np.unique(of[parts == part], return_counts=True)
                self._of[side][part, found] += counts.astype(np.int32)
        self._add_time(stage, rows, parts)
        for feature in self._features:
            if feature.side == "interaction":
                for total, flaw in zip(
                    self._flaws[feature.name],
                    _flaws(feature, *interaction[feature.name]),
                    strict=True,
                ):
                    total += np.bincount(parts, flaw, minlength=len(SPLITS)).astype(np.int64)
                values = interaction[feature.name][1]
                lookups = self._lookups[feature.name]
                lookups += _lookups(values, (parts == TRAIN).astype(np.int64), len(lookups))

    def counts(self) -> dict[str, Any]:
        """What was counted, as `Schema.counts` holds it."""
        missing, unknown = self._flaw_counts()
        return {
            "rows": _named(self._rows, self._names),
            "positives": _named(self._positives, self._names),
            **{f"{side}s": self._distinct(seen) for side, seen in self._seen.items()},
            "time": self._time,
            "unknown": unknown,
            "missing": missing,
            "hottest_rank": {f.name: self._heat(f) for f in self._features},
            **{
                f"{side}s_without_training": {
                    split: int(((of[part] > 0) & (of[TRAIN] == 0)).sum())
                    for part, split in enumerate(SPLITS)
                }
                for side, of in self._of.items()
            },
        }

    def _add_time(self, stage: StagedRows, rows: slice, parts: Parts) -> None:
        if stage.timestamp is None:
            return
        clock = stage.timestamp[rows]
        for part, split in enumerate(SPLITS):
            own = clock[parts == part]
            if len(own):
                first, last = self._time.get(split, [int(own[0]), int(own[0])])
                self._time[split] = [min(first, int(own.min())), max(last, int(own.max()))]

    def _heat(self, feature: Feature) -> dict[str, list[float]]:
        table = self._encoded.vocabularies[feature.name]
        if feature.side == "interaction":
            lookups = self._lookups[feature.name]
        else:
            times = self._of[feature.side][TRAIN].astype(np.int64)
            lookups = _lookups(self._encoded.values[feature.name], times, table.rows)
        return imbalance_by_ranks(
            lookups, table.by_value(lookups) if isinstance(table, Vocabulary) else None
        )

    def _distinct(self, seen: Bools) -> dict[str, int]:
        found = {"all": int(np.any(seen, axis=0).sum())}
        return found | {n: int(s.sum()) for n, s in zip(self._names, seen, strict=True)}

    def _flaw_counts(self) -> tuple[Flaws, Flaws]:
        """Rows per feature and split that miss it, and ids that training never saw."""
        found: tuple[Flaws, Flaws] = ({}, {})
        for feature in self._features:
            if feature.side == "interaction":
                totals = self._flaws[feature.name]
            else:
                absent = self._encoded.missing[feature.name]
                values = self._encoded.values[feature.name]
                totals = _flaws(feature, absent, values) @ self._of[feature.side].T.astype(np.int64)
            for which, total in zip(found, totals, strict=True):
                splits = {s: int(n) for s, n in zip(SPLITS, total, strict=True) if n}
                if splits:
                    which[feature.name] = splits
        return found


def duplicates(stage: StagedRows) -> int:
    """Rows that repeat the user, item and time of another."""
    found = 0
    for rows in user_shares(stage):
        columns = {"user": stage.user[rows], "item": stage.item[rows]}
        if stage.timestamp is not None:
            columns["timestamp"] = stage.timestamp[rows]  # type: ignore[assignment]
        found += len(rows) - pl.DataFrame(columns).n_unique()
    return found


def empty_texts(readable: Iterable[tuple[str, pl.DataFrame]]) -> dict[str, int]:
    """Empty cells of the text columns of users and items, where there are any."""
    found = {
        f"{side}s.{column}": int((frame[column] == "").sum())
        for side, frame in readable
        for column in frame.columns[1:]
    }
    return {name: number for name, number in found.items() if number}


def _flaws(feature: Feature, absent: Bools, values: pl.Series) -> Ints:
    """(2, values): 1 where the value is missing, and how many of its ids are the unknown row."""
    missing = absent.astype(np.int64)
    if values.dtype.base_type() is pl.List:
        zeros = values.list.eval(pl.element() == UNKNOWN).list.sum()
        return np.stack([missing, zeros.fill_null(0).cast(pl.Int64).to_numpy()])
    return np.stack([missing, (values == UNKNOWN).cast(pl.Int64).to_numpy() - missing])


def _lookups(values: pl.Series, times: Ints, size: int) -> Ints:
    """(size,): lookups of each table row, where value i is looked up `times[i]` times."""
    if values.dtype.base_type() is pl.List:
        times = np.repeat(times, values.list.len().fill_null(0).to_numpy())
        values = values.explode(keep_nulls=False, empty_as_null=False)
    return np.bincount(values.to_numpy(), times, minlength=size).astype(np.int64)


def _named(table: Ints, names: list[str]) -> dict[str, dict[str, int]]:
    return {
        split: {"all": int(row.sum())} | {n: int(x) for n, x in zip(names, row, strict=True)}
        for split, row in zip(SPLITS, table, strict=True)
    }
