"""Reads the metrics that a run has logged, `metrics.jsonl` and `watched.jsonl`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG_FILE = "metrics.jsonl"
WATCHED_FILE = "watched.jsonl"
"""What `msrec evaluate --watch` found, a line a checkpoint, in the same form."""
WATCHED = "watched "
"""How its splits begin."""
Points = tuple[list[float], list[float]]
"""x and y."""


@dataclass(frozen=True)
class MetricLog:
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


def load_metric_log(run: Path) -> MetricLog:
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
    return MetricLog(steps, again, unreadable)
