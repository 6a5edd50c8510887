"""Shows a comparison of two runs: a table and a sentence that may be quoted."""

from collections.abc import Mapping

from rich.table import Table

from msrec.launch.evaluation.compare import Comparison
from msrec.launch.reporting.result_tables import UNDEFINED, format_value, metric_title
from msrec.model.metrics.bootstrap import MIN_USERS
from msrec.model.metrics.definitions import MAIN_METRIC
from msrec.model.metrics.differences import ALL, Difference

MAX_NAMED = 5
"""Most scenarios that the verdict lists by name; a longer list is given as a number."""
NOTE = "Paired over users. Holds for these two trained models; another seed gives another model."


def label_metric(
    comparison: Comparison, label: str | None, metric: str | None
) -> tuple[str, str, dict[str, Difference]]:
    """Returns a label, a metric of it, and its differences by group of rows.

    Args:
        comparison: of two runs.
        label: name of the label; None means the first one.
        metric: field of `Metrics`; None means AUC, of a regression label RMSE.

    Raises:
        ValueError: the runs do not have the label, or the label does not have the metric.
    """
    name = comparison.label if label is None else label
    if name not in comparison.by_label:
        known = ", ".join(comparison.by_label)
        raise ValueError(f"label must be one that both runs have ({known}); got {name!r}.")
    metrics = comparison.by_label[name]
    metric = metric or next(each for each in MAIN_METRIC.values() if each in metrics)
    if metric not in metrics:
        raise ValueError(f"metric of {name} must be one of {', '.join(metrics)}; got {metric!r}.")
    return name, metric, metrics[metric]


def _title(comparison: Comparison, label: str, metric: str) -> str:
    """Returns the metric's title, with the name of the label if there are several."""
    title = metric_title(metric, comparison.k)
    return f"{title} of {label}" if comparison.labels else title


def verdict(comparison: Comparison, metric: str | None = None, label: str | None = None) -> str:
    """Returns one sentence that may be quoted; see `label_metric` for the arguments."""
    label, metric, groups = label_metric(comparison, label, metric)
    scenarios = dict(groups)
    whole = scenarios.pop(ALL)
    title, (first, second) = _title(comparison, label, metric), comparison.names
    where = f"in {title} on {comparison.dataset}, {comparison.split}"
    if whole.p is None or whole.difference is None or whole.interval is None:
        return (
            f"{second} and {first} cannot be compared {where}: it is undefined, or there are fewer "
            f"than {MIN_USERS} users."
        )
    outcome = whole.outcome(metric)
    if outcome == "undecided":
        head = f"{second} and {first} do not differ measurably {where}"
    else:
        head = f"{second} is {outcome} than {first} {where}"
    low, high = whole.interval
    return (
        f"{head}: {whole.difference:+.4f} over {whole.rows:,} rows of {whole.users:,} users "
        f"(95 % interval {low:+.4f} to {high:+.4f}, p {_p_value(whole.p)}{_corrected(whole)}); "
        f"{_by_scenario(scenarios, metric, _family_size(comparison, metric))}."
    )


def history_note(comparison: Comparison) -> str:
    """Returns a sentence on the histories of the two runs if they differ, else an empty text."""
    if comparison.histories[0] == comparison.histories[1]:
        return ""
    parts = []
    for name, history in zip(comparison.names, comparison.histories, strict=True):
        if history is None:
            parts.append(f"{name} without histories")
        else:
            parts.append(
                f"{name} with the {history.max_len} newest of {history.events} events, protocol "
                f"{history.protocol}"
            )
    return f"Note: the runs scored the rows {' and '.join(parts)}."


def _corrected(whole: Difference) -> str:
    """Returns the corrected p-value of all rows, if there are several labels."""
    return "" if whole.p_holm is None else f", over all labels {_p_value(whole.p_holm)}"


def _family_size(comparison: Comparison, metric: str) -> int:
    """Returns the number of tests that were corrected together, see `correct`."""
    metrics = MAIN_METRIC.values() if metric in MAIN_METRIC.values() else [metric]
    return sum(
        difference.p is not None
        for of_label in comparison.by_label.values()
        for name in metrics
        for group, difference in of_label.get(name, {}).items()
        if group != ALL
    )


def _by_scenario(scenarios: Mapping[str, Difference], metric: str, tests: int) -> str:
    outcomes: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, difference in scenarios.items():
        outcomes[difference.outcome(metric)].append(name)
    lists = ", ".join(
        f"{outcome} in {_names(names)}" for outcome, names in outcomes.items() if names
    )
    return f"by scenario, with Holm's correction for {tests}: {lists}"


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} scenarios"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def differences_table(
    comparison: Comparison, metric: str | None = None, label: str | None = None
) -> Table:
    """Returns a table with one row for all rows and one for each scenario, see `label_metric`."""
    label, metric, groups = label_metric(comparison, label, metric)
    title = _title(comparison, label, metric)
    table = _empty_table(comparison, f"{title}: {comparison.dataset}, {comparison.split}")
    for name, part in groups.items():
        table.add_row(name, *_cells(part, metric), end_section=name == ALL)
    return table


def combined_table(comparison: Comparison) -> Table:
    """Returns a table of NDCG by the combined scores: a row for each label and scenario."""
    metrics = ("ndcg_by_impression", "ndcg")
    first = next(iter(comparison.combined.values()))
    metric = next(name for name in metrics if name in first)
    title = f"{metric_title(metric, comparison.k)} by the combined score"
    table = _empty_table(comparison, f"{title}: {comparison.dataset}, {comparison.split}")
    for label, of_label in comparison.combined.items():
        for name, part in of_label[metric].items():
            table.add_row(f"{label}, {name}", *_cells(part, metric), end_section=name == ALL)
    return table


def _empty_table(comparison: Comparison, title: str) -> Table:
    table = Table(title=title, caption=NOTE)
    table.add_column("scenario")
    for head in (*comparison.names, "difference", "95 % interval", "p", "p, Holm", "rows", "users"):
        table.add_column(head, justify="right")
    table.add_column(comparison.names[1])
    return table


def _cells(part: Difference, metric: str) -> list[str]:
    return [
        format_value(part.first),
        format_value(part.second),
        UNDEFINED if part.difference is None else f"{part.difference:+.4f}",
        UNDEFINED if part.interval is None else "{:+.4f} to {:+.4f}".format(*part.interval),
        UNDEFINED if part.p is None else _p_value(part.p).removeprefix("= "),
        "" if part.p_holm is None else _p_value(part.p_holm).removeprefix("= "),
        format_value(part.rows),
        format_value(part.users),
        part.outcome(metric),
    ]
