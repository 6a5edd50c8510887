"""Results of a sweep as a table, and the parts that its two reports share."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import mean, stdev
from typing import Any

import polars as pl

from msrec.model.metrics.definitions import METRIC_NAMES, Metrics, ScenarioMetrics
from msrec.tools.experiment.trainings import SettingCells

Group = tuple[str, str]
"""Kind and name of a group of rows, such as ("scenario", "feed")."""
ALL: Group = ("all", "all")


def results_frame(loaded: Iterable[SettingCells]) -> pl.DataFrame:
    """Returns a row for each evaluated training and group of rows: names, seed and metrics.

    The intervals over users are left out, since a sweep compares trainings.

    Raises:
        ValueError: no training is evaluated.
    """
    rows = [row for cells in loaded for row in _rows(cells)]
    if not rows:
        raise ValueError("a report must have at least one evaluated training; there is none.")
    return pl.DataFrame(rows, infer_schema_length=None)


def _rows(cells: SettingCells) -> Iterator[dict[str, Any]]:
    setting = cells.setting
    for seed, cell in enumerate(cells.seeds):
        if cell is None or cell.results is None:
            continue
        results = cell.results
        best = _groups(results.best_possible, results.best_slices)
        for (kind, name), metrics in _groups(results.metrics, results.slices).items():
            yield {
                "dataset": setting.dataset,
                "backbone": setting.model,
                "arm": setting.arm,
                "seed": seed,
                "split": results.split,
                "kind": kind,
                "group": name,
                **{metric: getattr(metrics, metric) for metric in METRIC_NAMES},
                "parameters": cell.parameters,
                "seconds": cell.seconds,
                "best_auc": best[kind, name].auc if (kind, name) in best else None,
            }


def _groups(
    metrics: ScenarioMetrics | None, slices: dict[str, dict[str, Metrics]]
) -> dict[Group, Metrics]:
    if metrics is None:
        return {}
    kinds = {"scenario": metrics.scenarios, **slices}
    groups = {(kind, name): of for kind, names in kinds.items() for name, of in names.items()}
    return {ALL: metrics.all, **groups}


def select(frame: pl.DataFrame, model: str, arm: str, group: Group = ALL) -> pl.DataFrame:
    """Returns the rows of a model, an arm and a group: one per seed."""
    values = {"backbone": model, "arm": arm, "kind": group[0], "group": group[1]}
    return frame.filter(*(pl.col(name) == value for name, value in values.items()))


def spread(values: Iterable[float | None]) -> str:
    """Returns mean and, of several values, standard deviation; None is left out.

    Example:
        >>> spread([0.80, 0.82])
        '0.8100 ± 0.0141'
    """
    every = list(values)
    known = [value for value in every if value is not None]
    if len(known) > 1:
        return f"{mean(known):.4f} ± {stdev(known):.4f}"
    if known:
        return f"{known[0]:.4f}"
    return "undefined" if every else ""


def with_seeds(name: str, evaluated: int, seeds: int) -> str:
    """Returns a name, with the number of evaluated seeds if some are missing.

    Example:
        >>> with_seeds("mmoe", 5, 5), with_seeds("mmoe", 3, 5)
        ('mmoe', 'mmoe (3 of 5 seeds)')
    """
    return name if evaluated == seeds else f"{name} ({evaluated} of {seeds} seeds)"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields an empty line and a table; short rows end with empty cells."""
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join([*row, *[''] * (len(head) - len(row))])} |"
