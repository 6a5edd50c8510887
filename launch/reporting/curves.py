"""Points to draw: training curves from a log, calibration and ROC from predictions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msrec.launch.evaluation.predictions import Predictions
from msrec.model.metrics.ranking import Array, Floats, score_order

LOG_FILE = "metrics.jsonl"
WATCHED_FILE = "watched.jsonl"
"""What `msrec evaluate --watch` found, a line a checkpoint, in the same form."""
WATCHED = "watched "
"""How its splits begin."""
Points = tuple[list[float], list[float]]
"""x and y."""


@dataclass(frozen=True)
class Log:
    """A run's `metrics.jsonl`: split -> step -> metrics.

    A resumed run logs some steps again: the last line of a step stands, `again` counts the others.
    `unreadable` counts lines cut short by a kill.
    """

    steps: dict[str, dict[int, dict[str, float]]]
    again: int = 0
    unreadable: int = 0

    def curve(self, split: str, metric: str) -> Points:
        """Steps and values of a metric, in the order of the steps; empty where none was logged."""
        found = sorted(
            (step, metrics[metric])
            for step, metrics in self.steps.get(split, {}).items()
            if metric in metrics
        )
        return [float(step) for step, _ in found], [value for _, value in found]

    def metrics(self, split: str) -> list[str]:
        """Every metric logged for a split, in the order of its first appearance."""
        return list(dict.fromkeys(m for line in self.steps.get(split, {}).values() for m in line))


def load_log(run: Path) -> Log:
    """Read `metrics.jsonl` and `watched.jsonl`; a run without them has an empty log."""
    paths = [path for name in (LOG_FILE, WATCHED_FILE) if (path := run / name).is_file()]
    steps: dict[str, dict[int, dict[str, float]]] = {}
    again = unreadable = 0
    for line in (line for path in paths for line in path.read_text().splitlines()):
        try:
            record: dict[str, Any] = json.loads(line)
            split = steps.setdefault(record["split"], {})
            again += record["step"] in split
            split[record["step"]] = record["metrics"]
        except (json.JSONDecodeError, KeyError, TypeError):
            unreadable += 1
    return Log(steps, again, unreadable)


def score_shares(score: Array, label: Array, bins: int = 40) -> tuple[Floats, dict[str, Floats]]:
    """Edges of equal bins up to the largest score, and the share of each label's rows in them."""
    edges = np.linspace(0.0, max(float(score.max(initial=0.0)), 1e-9), bins + 1)
    shares = {}
    for name, chosen in (("positive", label > 0.5), ("negative", label <= 0.5)):
        counts = np.histogram(score[chosen], edges)[0]
        shares[name] = counts / max(int(chosen.sum()), 1)
    return edges, shares


def reliability(score: Array, label: Array, weight: Array, bins: int = 10) -> Points:
    """Mean score and share of clicks of rows in `bins` groups of equal size, sorted by score.

    Example:
        >>> ones = np.ones(4)
        >>> reliability(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1]), ones, bins=2)
        ([0.2, 0.8], [0.0, 1.0])
    """
    score, label, weight = _sorted(score, label, weight)
    groups = [group for group in np.array_split(np.arange(len(score)), bins) if len(group)]
    said = [float(np.average(score[g], weights=weight[g])) for g in groups]
    seen = [float(np.average(label[g], weights=weight[g])) for g in groups]
    return said, seen


def roc(score: Array, label: Array, weight: Array, points: int = 200) -> Points:
    """False and true positive rates from the highest score down, thinned to about `points`.

    Empty where there is one class only.
    """
    score, label, weight = (column[::-1] for column in _sorted(score, label, weight))
    if not len(score):
        return [], []
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    true, false = np.cumsum(weight * label)[ends], np.cumsum(weight * (1 - label))[ends]
    if true[-1] <= 0 or false[-1] <= 0:
        return [], []
    true, false = true / true[-1], false / false[-1]
    wanted = np.linspace(0, 2, points)
    kept = np.unique(np.searchsorted(true + false, wanted).clip(0, len(true) - 1))
    return [0.0, *false[kept].tolist()], [0.0, *true[kept].tolist()]


def best_roc(predictions: Predictions) -> Points | None:
    """ROC of the true click probability, where the data knows it."""
    truth = predictions.p_click
    return None if truth is None else roc(truth, predictions.label, predictions.weight)


def _sorted(score: Array, label: Array, weight: Array) -> tuple[Floats, Floats, Floats]:
    """Rows that count, by rising score, in float64."""
    used = weight > 0
    score, label, weight = score[used], label[used], weight[used]
    order = score_order(score)
    return score[order].astype(float), label[order].astype(float), weight[order].astype(float)
