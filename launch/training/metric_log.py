"""Reads the metrics that a run has logged, `metrics.jsonl` and `watched.jsonl`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG_FILE = "metrics.jsonl"
WATCHED_FILE = "watched.jsonl"
"""Results of `msrec evaluate --watch`, one line per checkpoint in the same form."""
WATCHED = "watched "
"""Prefix of the split names in `WATCHED_FILE`."""
Points = tuple[list[float], list[float]]
"""x and y values of a curve."""


@dataclass(frozen=True)
class MetricLog:
    """Logged metrics of a run: split -> step -> metrics.

    A resumed run logs some steps again. Then the last line of a step counts, and `again` is the
    number of replaced lines. `unreadable` is the number of lines that a kill cut short.
    """

    steps: dict[str, dict[int, dict[str, float]]]
    again: int = 0
    unreadable: int = 0

    def curve(self, split: str, metric: str) -> Points:
        """Returns steps and values of a metric, by step; empty if none was logged."""
        points = sorted(
            (step, metrics[metric])
            for step, metrics in self.steps.get(split, {}).items()
            if metric in metrics
        )
        return [float(step) for step, _ in points], [value for _, value in points]

    def metrics(self, split: str) -> list[str]:
        """Returns every metric logged for a split, in the order of its first appearance."""
        return list(dict.fromkeys(m for line in self.steps.get(split, {}).values() for m in line))


def load_metric_log(run: Path) -> MetricLog:
    """Reads `metrics.jsonl` and `watched.jsonl`; a run without them has an empty log."""
    steps: dict[str, dict[int, dict[str, float]]] = {}
    again = unreadable = 0
    paths = [path for name in (LOG_FILE, WATCHED_FILE) if (path := run / name).is_file()]
    for line in (line for path in paths for line in path.read_text().splitlines()):
        try:
            record: dict[str, Any] = json.loads(line)
            split = steps.setdefault(record["split"], {})
            again += record["step"] in split
            split[record["step"]] = record["metrics"]
        except (json.JSONDecodeError, KeyError, TypeError):
            unreadable += 1
    return MetricLog(steps, again, unreadable)
