"""Counts of a simulated app, collected chunk by chunk, with the best that a model can reach."""

from math import exp, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.data.convert.chunk_counts import label_counts
from msrec.data.convert.statistics import LabelCounts, counts_by_split
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.labels import LabelOptions, make_scale
from msrec.data.schema import SPLITS
from msrec.data.synthetic import catalogue
from msrec.data.synthetic.integer_vocabulary import IntegerVocabulary
from msrec.data.synthetic.simulator import WATCH_NOISE, WATCH_STEPS, App, Rows

CHUNK_ROWS = 512 * 1024
LABELS = ("click", "like", "watch")
BINS = 2**16
"""Bins of a probability, from which the AUC is computed."""
MEDIAN_SHARE = exp(-(WATCH_NOISE**2) / 2)
"""Median of a watch time, as a share of its expectation."""


def binned_auc(negatives: npt.NDArray[np.int64], positives: npt.NDArray[np.int64]) -> float | None:
    """Returns the AUC of counts per bin of rising score; None if a class is empty.

    A negative and a positive in the same bin count as half a pair in order.

    Example:
        >>> binned_auc(np.array([2, 1]), np.array([0, 3]))
        0.8333333333333334
    """
    pairs = float(negatives.sum()) * float(positives.sum())
    if pairs == 0:
        return None
    below = negatives.cumsum() - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)


class StreamedCounts:
    """Vocabularies and counts, which are complete when all rows have passed."""

    def __init__(self, app: App) -> None:
        self.app, self.label_options = app, _label_options(app)
        # Side, value of each user or item, and number of values.
        self._features = {
            "user_id": ("user", np.arange(app.users), app.users),
            "item_id": ("item", np.arange(app.items), app.items),
            "category": ("item", app.category, app.num_categories),
            "creator": ("item", app.creator, int(app.creator.max()) + 1),
            "age_band": ("user", app.age, len(catalogue.AGE_BANDS)),
            "city_tier": ("user", app.city, len(catalogue.CITY_TIERS)),
        }
        self.seen = {name: IntegerVocabulary(size) for name, (_, _, size) in self._features.items()}
        num_scenarios = len(catalogue.SCENARIOS)
        self._rows = np.zeros((len(SPLITS), num_scenarios), dtype=np.int64)
        self._positives = np.zeros_like(self._rows)
        self._unknown: dict[str, dict[str, int]] = {}
        self._lookups = {n: np.zeros(seen.rows, dtype=np.int64) for n, seen in self.seen.items()}
        self._label_counts = {
            name: LabelCounts(self.label_options.get(name, LabelOptions())) for name in LABELS[1:]
        }
        # Test rows by scenario, cold or not, label, and bin of its probability.
        shape = (num_scenarios, 2, 2, BINS)
        self._truth = {name: np.zeros(shape, dtype=np.int64) for name in LABELS[:2]}
        # Test rows with a watch time, and the sums of its squared and absolute errors.
        self._errors = np.zeros((num_scenarios, 2, 3))

    def encode(self, chunk: Rows, split: str) -> dict[str, npt.NDArray[np.int32]]:
        """Counts rows and returns the table rows of their features.

        The vocabularies grow by the values of training rows first.
        """
        code, num_scenarios = SPLITS.index(split), self._rows.shape[1]
        self._rows[code] += np.bincount(chunk.scenario, minlength=num_scenarios)
        clicked = chunk.scenario[chunk.click == 1]
        self._positives[code] += np.bincount(clicked, minlength=num_scenarios)
        for name, counter in self._label_counts.items():
            values, codes = getattr(chunk, name), np.full(len(chunk.user), code, np.int8)
            options = self.label_options.get(name, LabelOptions())
            counter.add(label_counts(values, codes, options))
        if split == "test":
            self._count_truth(chunk)
            self._count_errors(chunk)
        encoded = {}
        for name, (side, value_of, _) in self._features.items():
            values = value_of[chunk.user if side == "user" else chunk.item]
            if split == "train":
                self.seen[name].update(values)
            encoded[name] = self.seen[name].encode(values)
            if split == "train":
                self._lookups[name] += np.bincount(encoded[name], minlength=self.seen[name].rows)
            num_unknown = int((encoded[name] == UNKNOWN).sum())
            if num_unknown:
                splits = self._unknown.setdefault(name, {})
                splits[split] = splits.get(split, 0) + num_unknown
        return encoded

    def _count_truth(self, chunk: Rows) -> None:
        is_cold = self.app.is_cold[chunk.user].astype(np.int64)
        for name, truth in self._truth.items():
            p, label = getattr(chunk, f"p_{name}"), getattr(chunk, name)
            bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
            index = (chunk.scenario, is_cold, label.astype(np.int64), bins)
            flat = np.ravel_multi_index(index, truth.shape)
            truth += np.bincount(flat, minlength=truth.size).reshape(truth.shape)

    def _count_errors(self, chunk: Rows) -> None:
        """Adds the errors of watch times, rounded like these, so that the order is no matter."""
        rows = np.flatnonzero(chunk.click)
        watch, mean = chunk.watch[rows], chunk.e_watch[rows].astype(np.float64)
        of_mean = np.rint((watch - mean) * WATCH_STEPS) / WATCH_STEPS
        of_median = np.rint((watch - mean * MEDIAN_SHARE) * WATCH_STEPS) / WATCH_STEPS
        is_cold = self.app.is_cold[chunk.user[rows]].astype(np.int64)
        cell = chunk.scenario[rows] * 2 + is_cold
        for number, weights in enumerate((None, of_mean**2, np.abs(of_median))):
            sums = np.bincount(cell, weights, minlength=self._errors[..., 0].size)
            self._errors[..., number] += sums.reshape(-1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts under their names in `Schema.counts`."""
        return {
            "rows": counts_by_split(self._rows, catalogue.SCENARIO_NAMES),
            "positives": counts_by_split(self._positives, catalogue.SCENARIO_NAMES),
            "unknown": self._unknown,
            "hottest_rank": {
                name: imbalance_by_ranks(self._lookups[name], seen.by_value(self._lookups[name]))
                for name, seen in self.seen.items()
            },
            "cold_users": int(self.app.is_cold.sum()),
            "labels": {name: counter.to_dict() for name, counter in self._label_counts.items()},
            "best_auc": self._best_auc("click"),
            "best": {"like": {"auc": self._best_auc("like")}, "watch": self._best_errors()},
        }

    def _best_auc(self, label: str) -> dict[str, float | None]:
        groups = _by_group(self._truth[label])
        return {name: binned_auc(*counts) for name, counts in groups.items()}

    def _best_errors(self) -> dict[str, dict[str, float | None]]:
        groups = {name: sums.tolist() for name, sums in _by_group(self._errors).items()}
        return {
            "rmse": {name: sqrt(s / n) if n else None for name, (n, s, _) in groups.items()},
            "mae": {name: s / n if n else None for name, (n, _, s) in groups.items()},
        }


def _by_group(table: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Returns the sums of a table (scenarios, cold or not, ...) by the name of each group."""
    groups = {"all": table.sum(axis=(0, 1))}
    groups |= dict(zip(catalogue.SCENARIO_NAMES, table.sum(axis=1), strict=True))
    groups["warm users"], groups["cold users"] = table.sum(axis=0)
    return groups


def _label_options(app: App) -> dict[str, LabelOptions]:
    """Returns the options of the labels that are not plain ones."""
    options = LabelOptions(kind="regression", exists_where="click")
    watch = app.generate(0, min(app.bounds[0], CHUNK_ROWS)).watch
    scale = make_scale(watch[~np.isnan(watch)], options)
    return {"watch": options.model_copy(update={"scale": scale})}
