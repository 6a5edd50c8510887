"""Shows the results of several runs side by side, in one label and metric."""

from collections.abc import Mapping

from rich.table import Table

from msrec.launch.evaluation.results import LabelResults, Results
from msrec.launch.reporting.page import Rows
from msrec.launch.reporting.result_tables import (
    UNDEFINED,
    by_group,
    format_metric,
    format_value,
    metric_title,
    terminal_table,
)
from msrec.model.metrics.definitions import MAIN_METRIC


def label_names(runs: Mapping[str, Results]) -> list[str]:
    """Returns the labels of any of the runs, each once; empty text for one without a name."""
    names = dict.fromkeys(name for run in runs.values() for name in run.by_label)
    if len(names) > 1:
        names.pop("", None)  # see `with_label`
    return list(names)


def with_label(runs: Mapping[str, Results], label: str) -> dict[str, LabelResults]:
    """Returns the results of the runs that have a label.

    Results of an older version do not name their label: it is the first one of all.
    """
    first = label_names(runs)[0]
    found = {
        name: run.by_label.get(label, run.by_label.get("") if label == first else None)
        for name, run in runs.items()
    }
    return {name: results for name, results in found.items() if results is not None}


def shown_metrics(results: LabelResults) -> tuple[str, ...]:
    """Returns the metrics of a label that runs are compared in."""
    second = {"binary": "log_loss", "regression": "spearman"}
    return MAIN_METRIC[results.kind], second[results.kind]


def comparison_rows(
    runs: Mapping[str, Results],
    *,
    metric: str = "auc",
    label: str | None = None,
    best: bool = False,
    intervals: bool = False,
) -> Rows:
    """Returns one metric of several runs: a column for each run, a row for each scenario.

    Args:
        runs: name -> results. Two runs get a column with their difference.
        metric: field of `Metrics`.
        label: name of the label, which some runs must have; None means the first one.
        best: adds the best possible value, if the first run knows it.
        intervals: adds the intervals of the metric.

    Raises:
        ValueError: the runs differ in dataset, split, rows or scenarios, so that their numbers
            cannot be compared.
    """
    _check_comparable(runs)
    first_label = label_names(runs)[0]
    labels = with_label(runs, first_label if label is None else label)
    of_runs = [by_group(run.metrics) for run in labels.values()]
    possible = next(iter(labels.values())).best_possible
    truth = by_group(possible) if best and possible else None
    head = ["scenario", *labels]
    head += ["difference"] if len(labels) == 2 else []
    head += ["best possible"] if truth else []
    rows = [[*head, "rows"]]
    for group, first in of_runs[0].items():
        values = [getattr(run[group], metric) for run in of_runs]
        if intervals:
            cells = [format_metric(run[group], metric, one_line=True) for run in of_runs]
        else:
            cells = [format_value(value) for value in values]
        if len(labels) == 2:
            cells.append(UNDEFINED if None in values else f"{values[1] - values[0]:+.4f}")
        if truth:
            cells.append(format_value(getattr(truth[group], metric)))
        rows.append([group, *cells, format_value(first.rows)])
    return rows


def slice_comparison_rows(runs: Mapping[str, Results], slice_name: str, label: str) -> Rows:
    """Returns the main metrics of several runs for each group of a slice, with intervals."""
    labels = {n: r for n, r in with_label(runs, label).items() if slice_name in r.slices}
    slices = {run: results.slices[slice_name] for run, results in labels.items()}
    groups = dict.fromkeys(group for of_run in slices.values() for group in of_run)
    metrics_of = {run: shown_metrics(results) for run, results in labels.items()}
    k = next(iter(runs.values())).k
    heads = [f"{run}, {metric_title(name, k)}" for run in slices for name in metrics_of[run]]
    rows = [[slice_name, "rows", *heads]]
    for group in groups:
        of_runs = {run: by_name.get(group) for run, by_name in slices.items()}
        count = next(metrics.rows for metrics in of_runs.values() if metrics)
        cells = [group, format_value(count)]
        for run, metrics in of_runs.items():
            for name in metrics_of[run]:
                cells.append(format_metric(metrics, name, one_line=True) if metrics else "")
        rows.append(cells)
    return rows


def comparison_table(
    runs: Mapping[str, Results], *, metric: str = "auc", best: bool = False
) -> Table:
    """Returns the table of `comparison_rows` for the terminal."""
    first = next(iter(runs.values()))
    title = f"{metric_title(metric, first.k)}: {first.dataset}, {first.split}"
    return terminal_table(comparison_rows(runs, metric=metric, best=best), title)


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
