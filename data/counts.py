"""What a conversion counted, gathered chunk by chunk: rows, positives, unknown ids, duplicates."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.encode import Encoded
from msrec.data.raw import Feature, RawTables
from msrec.data.schema import SPLITS
from msrec.data.split import TRAIN, Parts, user_shares
from msrec.data.stage import Stage

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Tally:
    """Counts of `Schema.counts` that need each row once."""

    def __init__(self, raw: RawTables, encoded: Encoded) -> None:
        self._names = [scenario.name for scenario in raw.scenarios]
        shape = (len(SPLITS), len(self._names))
        self._rows, self._positives = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._seen = {
            side: np.zeros((*shape, len(raw.frame(side)[1])), dtype=bool)
            for side in ("user", "item")
        }
        self._time: dict[str, list[int]] = {}
        self._features = [feature for feature in raw.features if feature.kind != "dense"]
        # Of each user's or item's value: missing, and the number of ids that training never saw.
        self._of_entity = {
            feature.name: _flaws(feature, encoded.values[feature.name], encoded.missing)
            for feature in self._features
            if feature.side != "interaction"
        }
        self._flaws = {f.name: np.zeros((2, len(SPLITS)), np.int64) for f in self._features}

    def add(
        self,
        stage: Stage,
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
        for side, of in (("user", stage.user[rows]), ("item", stage.item[rows])):
            self._seen[side][parts, scenario, of] = True
        self._add_time(stage, rows, parts)
        for feature in self._features:
            if feature.side == "interaction":
                missing, values = interaction[feature.name]
                flaws = _flaws(feature, values, {feature.name: missing})
            else:
                of = (stage.user if feature.side == "user" else stage.item)[rows]
                flaws = self._of_entity[feature.name][:, of]
            for total, flaw in zip(self._flaws[feature.name], flaws, strict=True):
                total += np.bincount(parts, flaw, minlength=len(SPLITS)).astype(np.int64)

    def counts(self) -> dict[str, Any]:
        """What was counted, as `Schema.counts` holds it."""
        seen = self._seen
        by_split: dict[str, Bools] = {s: np.any(of, axis=1) for s, of in seen.items()}
        return {
            "rows": _named(self._rows, self._names),
            "positives": _named(self._positives, self._names),
            **{f"{side}s": self._distinct(np.any(of, axis=0)) for side, of in seen.items()},
            "time": self._time,
            "unknown": self._flaw_counts(1),
            "missing": self._flaw_counts(0),
            **{
                f"{side}s_without_training": {
                    split: int((of[part] & ~of[TRAIN]).sum()) for part, split in enumerate(SPLITS)
                }
                for side, of in by_split.items()
            },
        }

    def _add_time(self, stage: Stage, rows: slice, parts: Parts) -> None:
        if stage.timestamp is None:
            return
        clock = stage.timestamp[rows]
        for part, split in enumerate(SPLITS):
            own = clock[parts == part]
            if len(own):
                first, last = self._time.get(split, [int(own[0]), int(own[0])])
                self._time[split] = [min(first, int(own.min())), max(last, int(own.max()))]

    def _distinct(self, seen: Bools) -> dict[str, int]:
        found = {"all": int(seen.any(axis=0).sum())}
        return found | {n: int(s.sum()) for n, s in zip(self._names, seen, strict=True)}

    def _flaw_counts(self, which: int) -> dict[str, dict[str, int]]:
        found = {}
        for name, flaws in self._flaws.items():
            splits = {s: int(n) for s, n in zip(SPLITS, flaws[which], strict=True) if n}
            if splits:
                found[name] = splits
        return found


def duplicates(stage: Stage) -> int:
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


def _flaws(feature: Feature, values: pl.Series, missing: dict[str, Bools]) -> Ints:
    """(2, values): 1 where the value is missing, and how many of its ids are the unknown row."""
    absent = missing[feature.name].astype(np.int64)
    if feature.kind == "multi":
        zeros = values.list.eval(pl.element() == 0).list.sum()
        return np.stack([absent, zeros.fill_null(0).cast(pl.Int64).to_numpy()])
    return np.stack([absent, (values == 0).cast(pl.Int64).to_numpy() - absent])


def _named(table: Ints, names: list[str]) -> dict[str, dict[str, int]]:
    return {
        split: {"all": int(row.sum())} | {n: int(x) for n, x in zip(names, row, strict=True)}
        for split, row in zip(SPLITS, table, strict=True)
    }
