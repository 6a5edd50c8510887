"""Shows results: tables of one run, and of several runs side by side."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from msrec.launch.evaluation.results import Results
from msrec.launch.reporting.page import Rows
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics

UNDEFINED = "undefined"
MAIN_METRICS = ("rows", "auc", "log_loss", "ne", "gauc", "calibration")
MORE_METRICS = ("rig", "calibration_error", "average_precision", "gauc_by_user", "ndcg", "recall")
COUNTS = ("positives", "users", "users_left_out", "users_ranked")
ALL_COLUMNS = (*MAIN_METRICS, *MORE_METRICS, *COUNTS)
TITLES = {
    "auc": "AUC",
    "log_loss": "log loss",
    "ne": "NE",
    "rig": "RIG",
    "calibration_error": "calibration error",
    "average_precision": "PR-AUC",
    "gauc": "GAUC",
    "gauc_by_user": "GAUC, users equal",
    "users": "users with both labels",
    "users_left_out": "users with one",
    "ndcg": "NDCG@{k}",
    "recall": "recall@{k}",
    "users_ranked": "users with a positive",
}
OLD_NOTE = "evaluated by an older msrec: evaluate again for intervals, PR-AUC, NDCG and recall"


def format_value(value: float | int | None) -> str:
    """Returns a metric or a count as text.

    Example:
        >>> format_value(1234567), format_value(0.80951), format_value(None)
        ('1,234,567', '0.8095', 'undefined')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def format_metric(metrics: Metrics, name: str, one_line: bool = False) -> str:
    """Returns a metric with its interval, if it has one, on the next line or on the same line.

    Example:
        >>> metrics = Metrics(9, 3, auc=0.75, intervals={"auc": (0.71, 0.788)})
        >>> format_metric(metrics, "auc", one_line=True), format_metric(metrics, "positives")
        ('0.7500 (0.7100–0.7880)', '3')
    """
    value = format_value(getattr(metrics, name))
    if name not in metrics.intervals:
        return value
    low, high = metrics.intervals[name]
    interval = f"{low:.4f}{'–' if low >= 0 else ' to '}{high:.4f}"
    return f"{value} ({interval})" if one_line else f"{value}\n{interval}"


def metric_title(name: str, k: int) -> str:
    """Returns the heading of a metric's column."""
    return TITLES.get(name, name).format(k=k)


def _by_group(metrics: ScenarioMetrics) -> dict[str, Metrics]:
    return {"all": metrics.all} | metrics.scenarios


def results_tables(results: Results) -> list[Table]:
    """Returns two tables, for short lines: one row for all rows and one for each scenario.

    Counts of users are only in `results.json`.
    """
    title = f"{results.data or results.dataset}, {results.split}, checkpoint {results.checkpoint}"
    groups = _by_group(results.metrics)
    best = _by_group(results.best_possible) if results.best_possible else None
    tables = [_metrics_table(title, "scenario", MAIN_METRICS, groups, results.k, best)]
    if not results.is_old:
        tables.append(_metrics_table(None, "scenario", MORE_METRICS, groups, results.k))
    notes = [OLD_NOTE] if results.is_old else []
    if results.left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in results.left_out.items())
        notes.append(f"excluded rows: {reasons}")
    if results.resamples:
        notes.append(
            f"95 % intervals over users: percentile bootstrap, {results.resamples:,} resamples, "
            f"seed {results.seed}"
        )
    tables[-1].caption = "\n".join(notes) or None
    return tables


def slice_table(results: Results, name: str, meaning: str) -> Table:
    """Returns a table of the main metrics with one row for each group of a slice."""
    groups, best = results.slices[name], results.best_slices.get(name)
    return _metrics_table(f"by {name}: {meaning}", name, MAIN_METRICS, groups, results.k, best)


def _metrics_table(
    title: str | None,
    first_column: str,
    columns: Sequence[str],
    groups: Mapping[str, Metrics],
    k: int,
    best: Mapping[str, Metrics] | None = None,
) -> Table:
    rows = [[first_column, *(metric_title(column, k) for column in columns)]]
    rows += [
        [name, *(format_metric(m, column) for column in columns)] for name, m in groups.items()
    ]
    if best is not None:
        rows[0].append("best possible AUC")
        for row in rows[1:]:
            row.append(format_value(best[row[0]].auc))
    return _table(rows, title)


def _table(rows: Rows, title: str | None) -> Table:
    """Returns a table for the terminal; all columns but the first are numbers."""
    table = Table(title=title)
    for number, head in enumerate(rows[0]):
        table.add_column(head, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*row, end_section=row[0] == "all")
    return table


def all_metrics_rows(results: Results) -> Rows:
    """Returns every metric and count, for all rows and for each scenario, with intervals."""
    columns = MAIN_METRICS if results.is_old else ALL_COLUMNS
    rows = [["scenario", *(metric_title(column, results.k) for column in columns)]]
    for name, metrics in _by_group(results.metrics).items():
        rows.append([name, *(format_metric(metrics, column, one_line=True) for column in columns)])
    return rows


def comparison_rows(
    runs: Mapping[str, Results],
    *,
    metric: str = "auc",
    best: bool = False,
    intervals: bool = False,
) -> Rows:
    """Returns one metric of several runs: a column for each run, a row for each scenario.

    Args:
        runs: name -> results. Two runs get a column with their difference.
        metric: field of `Metrics`.
        best: adds the best possible value, if the first run knows it.
        intervals: adds the intervals of the metric.

    Raises:
        ValueError: the runs differ in dataset, split, rows or scenarios, so that their numbers
            cannot be compared.
    """
    _check_comparable(runs)
    results = list(runs.values())
    of_runs = [_by_group(run.metrics) for run in results]
    truth = _by_group(results[0].best_possible) if best and results[0].best_possible else None
    head = ["scenario", *runs]
    head += ["difference"] if len(runs) == 2 else []
    head += ["best possible"] if truth else []
    rows = [[*head, "rows"]]
    for group, first in of_runs[0].items():
        values = [getattr(run[group], metric) for run in of_runs]
        if intervals:
            cells = [format_metric(run[group], metric, one_line=True) for run in of_runs]
        else:
            cells = [format_value(value) for value in values]
        if len(runs) == 2:
            cells.append(UNDEFINED if None in values else f"{values[1] - values[0]:+.4f}")
        if truth:
            cells.append(format_value(getattr(truth[group], metric)))
        rows.append([group, *cells, format_value(first.rows)])
    return rows


def slice_comparison_rows(runs: Mapping[str, Results], slice_name: str) -> Rows:
    """Returns AUC and log loss of several runs for each group of a slice, with intervals."""
    slices = {run: r.slices[slice_name] for run, r in runs.items() if slice_name in r.slices}
    groups = dict.fromkeys(group for by_group in slices.values() for group in by_group)
    heads = [f"{run}, {title}" for run in slices for title in ("AUC", "log loss")]
    rows = [[slice_name, "rows", *heads]]
    for group in groups:
        of_runs = [by_group.get(group) for by_group in slices.values()]
        count = next(metrics.rows for metrics in of_runs if metrics)
        cells = [group, format_value(count)]
        for metrics in of_runs:
            for name in ("auc", "log_loss"):
                cells.append(format_metric(metrics, name, one_line=True) if metrics else "")
        rows.append(cells)
    return rows


def comparison_table(
    runs: Mapping[str, Results], *, metric: str = "auc", best: bool = False
) -> Table:
    """Returns the table of `comparison_rows` for the terminal."""
    first = next(iter(runs.values()))
    title = f"{metric_title(metric, first.k)}: {first.dataset}, {first.split}"
    return _table(comparison_rows(runs, metric=metric, best=best), title)


def _check_comparable(runs: Mapping[str, Results]) -> None:
    if not runs:
        raise ValueError("a comparison must have at least one run; got none.")
    first_name, first = next(iter(runs.items()))
    for name, run in runs.items():
        for fact, expected, value in (
            ("dataset", first.dataset, run.dataset),
            ("split", first.split, run.split),
            ("rows", first.rows, run.rows),
            ("scenarios", list(first.metrics.scenarios), list(run.metrics.scenarios)),
        ):
            if value != expected:
                raise ValueError(
                    f"runs to compare must agree in {fact}; {first_name!r} has {expected}, "
                    f"{name!r} has {value}. Evaluate both on the same split."
                )
