"""Shows the results of one run as tables: all labels, scenarios and slices."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from msrec.data.labels import LabelKind
from msrec.launch.calibration.calibration_file import ALL, Calibration
from msrec.launch.evaluation.results import Results
from msrec.launch.reporting.page import Rows
from msrec.model.metrics.definitions import OF_IMPRESSIONS, Metrics, ScenarioMetrics

UNDEFINED = "undefined"
SHORT_FROM = 10
"""Values from here on, such as errors in seconds, are shown with two decimals in place of four."""
MAIN_METRICS: dict[LabelKind, tuple[str, ...]] = {
    "binary": ("rows", "auc", "log_loss", "ne", "gauc", "calibration"),
    "regression": ("rows", "rmse", "mae", "spearman", "calibration", "quantile_calibration_error"),
}
MORE_METRICS = ("rig", "calibration_error", "average_precision", "gauc_by_user", "ndcg", "recall")
RANKINGS = ("auc", "gauc", "ndcg", "recall")
COUNTS = ("positives", "users", "users_left_out", "users_ranked")
OTHER_COUNTS = ("impressions", "impressions_left_out", "missing")
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
    "gauc_by_impression": "GAUC by impression",
    "ndcg_by_impression": "NDCG@{k} by impression",
    "impressions": "impressions with both labels",
    "impressions_left_out": "impressions with one",
    "missing": "rows without the label",
    "rmse": "RMSE",
    "mae": "MAE",
    "spearman": "Spearman",
    "quantile_calibration_error": "calibration error",
}
CALIBRATED = "probabilities calibrated on validation by {method} regression"
OLD_NOTE = "evaluated by an older msrec: evaluate again for intervals, PR-AUC, NDCG and recall"


def format_value(value: float | int | None) -> str:
    """Returns a metric or a count as text.

    Example:
        >>> format_value(1234567), format_value(0.80951), format_value(24.4259), format_value(None)
        ('1,234,567', '0.8095', '24.43', 'undefined')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < SHORT_FROM else f"{value:,.2f}"


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
    interval = f"{format_value(low)}{'–' if low >= 0 else ' to '}{format_value(high)}"
    return f"{value} ({interval})" if one_line else f"{value}\n{interval}"


def metric_title(name: str, k: int) -> str:
    """Returns the heading of a metric's column."""
    return TITLES.get(name, name).format(k=k)


def by_group(metrics: ScenarioMetrics) -> dict[str, Metrics]:
    """Returns the metrics of all rows, called `all`, and of each scenario."""
    return {"all": metrics.all} | metrics.scenarios


def results_tables(results: Results) -> list[Table]:
    """Returns the tables of every label, and of the combined score: a row for each scenario.

    A binary label has two tables, for short lines. Counts of users are only in `results.json`.
    """
    title = f"{results.data or results.dataset}, {results.split}, checkpoint {results.checkpoint}"
    tables = []
    for name, of_label in results.by_label.items():
        heading = f"{name}: {title}" if results.labels else title
        groups = by_group(of_label.metrics)
        best = of_label.best_possible
        tables.append(
            _metrics_table(
                heading,
                "scenario",
                (*MAIN_METRICS[of_label.kind], *_defined(of_label.metrics, ("missing",))),
                groups,
                results.k,
                by_group(best) if best else None,
            )
        )
        if of_label.kind == "binary" and not results.is_old:
            second = (*MORE_METRICS, *_defined(of_label.metrics, OF_IMPRESSIONS))
            tables.append(_metrics_table(None, "scenario", second, groups, results.k))
    for heading, ranked in results.rankings.items():
        columns = ("rows", *RANKINGS, *_defined(ranked.metrics, OF_IMPRESSIONS))
        groups = by_group(ranked.metrics)
        tables.append(_metrics_table(heading, "scenario", columns, groups, results.k))
    tables[-1].caption = "\n".join(_notes(results)) or None
    return tables


def _notes(results: Results) -> list[str]:
    notes = [OLD_NOTE] if results.is_old else []
    if results.calibration is not None:
        notes.append(CALIBRATED.format(method=results.calibration))
    if results.left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in results.left_out.items())
        notes.append(f"excluded rows: {reasons}")
    if results.resamples:
        notes.append(
            f"95 % intervals over users: percentile bootstrap, {results.resamples:,} resamples, "
            f"seed {results.seed}"
        )
    return notes


def _defined(metrics: ScenarioMetrics, names: Sequence[str]) -> list[str]:
    """Returns the metrics that are defined for all rows."""
    return [name for name in names if getattr(metrics.all, name) is not None]


def slice_tables(results: Results, name: str, meaning: str) -> list[Table]:
    """Returns a table of each label and ranking, with one row for each group of a slice."""
    title = f"by {name}: {meaning}"
    tables = []
    for label, of_label in results.by_label.items():
        best = of_label.best_slices.get(name)
        tables.append(
            _metrics_table(
                f"{label} {title}" if results.labels else title,
                name,
                MAIN_METRICS[of_label.kind],
                of_label.slices[name],
                results.k,
                best,
            )
        )
    for heading, ranked in results.rankings.items():
        columns, groups = ("rows", *RANKINGS), ranked.slices[name]
        tables.append(_metrics_table(f"{heading}, {title}", name, columns, groups, results.k))
    return tables


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
        main = columns[1]
        rows[0].append(f"best possible {metric_title(main, k)}")
        for row in rows[1:]:
            row.append(format_value(getattr(best[row[0]], main)))
    return terminal_table(rows, title)


def terminal_table(rows: Rows, title: str | None) -> Table:
    """Returns a table for the terminal; all columns but the first are numbers."""
    table = Table(title=title)
    for number, head in enumerate(rows[0]):
        table.add_column(head, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*row, end_section=row[0] == "all")
    return table


def all_metrics_rows(results: Results, label: str) -> Rows:
    """Returns every metric and count of a label, for all rows and each scenario, with intervals."""
    of_label = results.by_label[label]
    columns: tuple[str, ...] = MAIN_METRICS[of_label.kind]
    if of_label.kind == "binary" and not results.is_old:
        columns += (*MORE_METRICS, *COUNTS)
    columns += tuple(_defined(of_label.metrics, (*OF_IMPRESSIONS, *OTHER_COUNTS)))
    rows = [["scenario", *(metric_title(column, results.k) for column in columns)]]
    for name, metrics in by_group(of_label.metrics).items():
        rows.append([name, *(format_metric(metrics, column, one_line=True) for column in columns)])
    return rows


def calibration_rows(calibration: Calibration) -> Rows:
    """Returns the calibration errors before and after, by label and scenario, and the maps used."""
    columns = [f"{split}, {when}" for split in calibration.errors for when in ("before", "after")]
    rows = [["label", "scenario", *columns, "fitted on"]]
    for label, maps in calibration.labels.items():
        own = {ALL: maps.all} | maps.scenarios
        for scenario in (ALL, *calibration.scenarios):
            errors = [of[label].get(scenario, (None, None)) for of in calibration.errors.values()]
            rows_used = own.get(scenario, maps.all).rows
            reason = maps.fallbacks.get(scenario)
            fitted = f"{rows_used:,} rows" if reason is None else f"all rows: {reason}"
            cells = [format_value(value) for pair in errors for value in pair]
            rows.append([label, scenario, *cells, fitted])
    for label, reason in calibration.left_out.items():
        rows.append([label, ALL, *[UNDEFINED] * len(columns), f"not calibrated: {reason}"])
    return rows


def calibration_table(calibration: Calibration) -> Table:
    """Returns the table of `calibration_rows` for the terminal."""
    title = f"calibration error, {calibration.method}, checkpoint {calibration.checkpoint}"
    table = terminal_table(calibration_rows(calibration), title)
    table.caption = (
        f"The maps were fitted on the {calibration.split} rows, so that the error after "
        "calibration is too low there."
    )
    return table
