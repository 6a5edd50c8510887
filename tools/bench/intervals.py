"""How often an interval holds the true value, on simulated clicks of users who differ."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from msrec.model.metrics.definitions import Metrics
from msrec.model.metrics.exact import MetricOptions, SortedRows, sort_rows

POPULATION = 200_000
"""Users whose metrics stand for the truth."""
MEAN_ROWS = 15


def bench_intervals(users: Sequence[int], samples: int, resamples: int) -> None:
    """Print the share of samples whose 95 % interval holds the metric of a large population.

    Args:
        users: sizes of a sample.
        samples: how many of each size.
        resamples: of each sample's users.
    """
    console = Console(width=120)
    truth = simulated(np.random.default_rng(0), POPULATION).metrics()
    table = Table(title=f"95 % intervals that hold the true value, of {samples:,} samples")
    table.add_column("metric")
    table.add_column("true value", justify="right")
    found = []
    for number in users:
        table.add_column(f"{number:,} users", justify="right")
        found.append(coverage(truth, number, samples, resamples, console))
    for name in found[0]:
        cells = [f"{share[name]:.3f}" for share in found]
        table.add_row(name, f"{getattr(truth, name):.4f}", *cells)
    console.print(table)


def coverage(
    truth: Metrics, users: int, samples: int, resamples: int, console: Console | None = None
) -> dict[str, float]:
    """Metric -> share of samples whose interval is there and holds the true value."""
    rng = np.random.default_rng([1, users])
    hits: dict[str, int] = {}
    shown = track(range(samples), f"{users:,} users", console=console, disable=console is None)
    for seed in shown:
        found = simulated(rng, users, MetricOptions(resamples=resamples, seed=seed)).metrics()
        for name in (field.name for field in fields(Metrics)):
            value = getattr(truth, name)
            if isinstance(value, float):
                low, high = found.intervals.get(name, (np.inf, -np.inf))
                hits[name] = hits.get(name, 0) + (low <= value <= high)
    return {name: count / samples for name, count in hits.items()}


def simulated(
    rng: np.random.Generator, users: int, judging: MetricOptions | None = None
) -> SortedRows:
    """Rows of users who differ in how much they do, in clicks, and in how wrong the model is."""
    user, label, logit = clicks(rng, users)
    wrong = rng.normal(0, 0.7, users)[user] + rng.normal(0, 0.5, len(user))
    score = (1 / (1 + np.exp(-logit - wrong))).astype(np.float32)
    return sort_rows(score, label, user, options=judging or MetricOptions(resamples=0))


def clicks(
    rng: np.random.Generator, users: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Users (N,), their labels and the true logits; rows of a user are alike."""
    rows = 1 + rng.poisson(rng.gamma(1.5, MEAN_ROWS / 1.5, users))
    user = np.repeat(np.arange(users), rows)
    logit = -1.5 + rng.normal(0, 1, users)[user] + rng.normal(0, 1, len(user))
    return user, rng.random(len(user)) < 1 / (1 + np.exp(-logit)), logit
