"""From a folder of predictions to results: a JSON file and tables to read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import first_error
from msrec.data.schema import Schema
from msrec.launch.evaluation.predictions import Predictions, load_predictions
from msrec.model.metrics.definitions import Array, Interval, Metrics, ScenarioMetrics
from msrec.model.metrics.exact import NO_INTERVALS, Grouping, MetricOptions, SortedRows, sort_rows

RESULTS_FILE = "results.json"
UNDEFINED = "undefined"
FIRST = ("rows", "auc", "log_loss", "ne", "gauc", "calibration")
SECOND = ("rig", "calibration_error", "average_precision", "gauc_by_user", "ndcg", "recall")
COUNTS = ("positives", "users", "users_left_out", "users_ranked")
COLUMNS = (*FIRST, *SECOND, *COUNTS)
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
OLD = "evaluated by an older msrec: evaluate again for intervals, PR-AUC, NDCG and recall"


class Results(BaseModel):
    """Exact metrics of one checkpoint on one split.

    `best_possible` are the metrics of the true click probability, where the data knows it: no
    model can be expected to do better on these rows. `slices` are metrics of other groups of rows
    than scenarios, where they were asked for: slice -> group -> metrics; `best_slices` those of the
    true probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    data: str | None = None
    """Folder of the dataset, where it is another than the one that the run was trained on."""
    split: str
    checkpoint: str
    rows: int
    k: int = MetricOptions().k
    """Places of NDCG and recall."""
    resamples: int = 0
    """Of the users, for the intervals; 0: none were made."""
    seed: int = 0
    metrics: ScenarioMetrics
    best_possible: ScenarioMetrics | None = None
    left_out: dict[str, int] = {}
    """Rows of the split that broke the schema and are in no metric: reason -> rows."""
    slices: dict[str, dict[str, Metrics]] = {}
    best_slices: dict[str, dict[str, Metrics]] = {}

    @property
    def is_old(self) -> bool:
        """Whether an older version made them, which knew fewer metrics."""
        return self.rows > 0 and self.metrics.all.users_ranked is None


def evaluate_predictions(
    folder: Path | str, schema: Schema, judging: MetricOptions = NO_INTERVALS
) -> Results:
    """Exact metrics of a committed folder of predictions, which must be of the schema's dataset.

    Raises:
        FileNotFoundError, ValueError: see `load_predictions` and `exact_metrics`; or the
            predictions were made on another dataset.
    """
    return results_of(load_predictions(folder), schema, judging)


def results_of(
    predictions: Predictions,
    schema: Schema,
    judging: MetricOptions = NO_INTERVALS,
    slices: Mapping[str, Grouping] | None = None,
) -> Results:
    """Exact metrics of predictions that are already in memory.

    Args:
        predictions: of the schema's dataset.
        schema: names its scenarios.
        judging: places of the rankings, and the making of intervals; the true probability is
            judged without them.
        slices: further groups of the rows; empty groups are left out.
    """
    p, commit = predictions, predictions.commit
    if commit.dataset != schema.name:
        raise ValueError(
            f"predictions must be of the dataset {schema.name!r}; these were made on "
            f"{commit.dataset!r}. Name the dataset that the run was trained on."
        )
    scenarios = Grouping([scenario.name for scenario in schema.scenarios], p.scenario)

    def judge(
        score: Array, how: MetricOptions
    ) -> tuple[ScenarioMetrics, dict[str, dict[str, Metrics]]]:
        rows = sort_rows(score, p.label, p.user, p.weight, how)
        metrics = ScenarioMetrics(rows.metrics(), rows.metrics_by(scenarios))
        return metrics, {name: sliced(rows, groups) for name, groups in (slices or {}).items()}

    metrics, of_slices = judge(p.score, judging)
    best = None if p.p_click is None else judge(p.p_click, judging._replace(resamples=0))
    return Results(
        dataset=commit.dataset,
        split=commit.split,
        checkpoint=commit.checkpoint,
        rows=commit.rows - commit.left_out,
        **judging._asdict(),
        left_out=commit.reasons,
        metrics=metrics,
        best_possible=None if best is None else best[0],
        slices=of_slices,
        best_slices={} if best is None else best[1],
    )


def sliced(rows: SortedRows, groups: Grouping) -> dict[str, Metrics]:
    """Metrics of each group that has rows."""
    return {name: found for name, found in rows.metrics_by(groups).items() if found.rows}


def save_results(results: Results, folder: Path | str) -> Path:
    """Write `results.json` in one step."""
    return write_text(Path(folder) / RESULTS_FILE, results.model_dump_json(indent=2) + "\n")


def load_results(folder: Path | str) -> Results:
    """Read `results.json`.

    Raises:
        FileNotFoundError: the run was not evaluated yet.
        ValueError: the file is not results; names the field.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist: it is made by `msrec evaluate`.")
    try:
        return Results.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None


def cell(value: float | int | None) -> str:
    """A metric as people read it.

    Example:
        >>> cell(1234567), cell(0.80951), cell(None)
        ('1,234,567', '0.8095', 'undefined')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def cell_of(metrics: Metrics, name: str, is_line: bool = False) -> str:
    """A metric with its interval, where it has one: below it, or behind it in one line.

    Example:
        >>> found = Metrics(9, 3, auc=0.75, intervals={"auc": (0.71, 0.788)})
        >>> cell_of(found, "auc", is_line=True), cell_of(found, "positives")
        ('0.7500 (0.7100–0.7880)', '3')
    """
    interval: Interval | None = metrics.intervals.get(name)
    value = cell(getattr(metrics, name))
    if interval is None:
        return value
    low, high = interval
    told = f"{low:.4f}{'–' if low >= 0 else ' to '}{high:.4f}"
    return f"{value} ({told})" if is_line else f"{value}\n{told}"


def title_of(name: str, k: int) -> str:
    """The heading of a metric's column."""
    return TITLES.get(name, name).format(k=k)


def results_tables(results: Results) -> list[Table]:
    """One row for all rows and one for each scenario; two tables, so that lines are not too long.

    Counts of users stand in the file alone.
    """
    title = f"{results.data or results.dataset}, {results.split}, checkpoint {results.checkpoint}"
    groups, best = _groups(results.metrics), results.best_possible
    truth = None if best is None else dict(_groups(best))
    tables = [_table(title, "scenario", FIRST, groups, results.k, truth)]
    if not results.is_old:
        tables.append(_table(None, "scenario", SECOND, groups, results.k))
    notes = [OLD] if results.is_old else []
    if results.left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in results.left_out.items())
        notes.append(f"left out as bad: {reasons}")
    if results.resamples:
        notes.append(
            f"95 % intervals over users: percentile bootstrap, {results.resamples:,} resamples, "
            f"seed {results.seed}"
        )
    tables[-1].caption = "\n".join(notes) or None
    return tables


def slice_table(results: Results, name: str, meaning: str) -> Table:
    """One row for each group of a slice, the first metrics."""
    groups, best = results.slices[name], results.best_slices.get(name)
    return _table(f"by {name}: {meaning}", name, FIRST, list(groups.items()), results.k, best)


def _table(
    title: str | None,
    first: str,
    columns: Sequence[str],
    groups: Sequence[tuple[str, Metrics]],
    k: int,
    best: Mapping[str, Metrics] | None = None,
) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(title_of(column, k), justify="right")
    if best is not None:
        table.add_column("best possible AUC", justify="right")
    for name, metrics in groups:
        cells = [cell_of(metrics, column) for column in columns]
        if best is not None:
            cells.append(cell(best[name].auc))
        table.add_row(name, *cells, end_section=name == "all")
    return table


def comparison_rows(
    runs: Mapping[str, Results],
    *,
    metric: str = "auc",
    best: bool = False,
    intervals: bool = False,
) -> list[list[str]]:
    """The cells of `comparison_table`, its head first: also the report's table, with intervals.

    Raises:
        ValueError: the runs differ in dataset, split, rows or scenarios, so that their numbers
            cannot be compared.
    """
    names, results = list(runs), list(runs.values())
    _check_comparable(names, results)
    two = len(runs) == 2
    groups = [_groups(run.metrics) for run in results]
    known = results[0].best_possible if best else None
    truth = None if known is None else _groups(known)
    head = ["scenario", *names, *["difference"] * two]
    head += [*["best possible"] * (truth is not None), "rows"]
    rows = [head]
    for at, (group, first) in enumerate(groups[0]):
        values = [getattr(run[at][1], metric) for run in groups]
        of_runs = [run[at][1] for run in groups]
        told = (
            [cell_of(m, metric, is_line=True) for m in of_runs] if intervals else map(cell, values)
        )
        cells = [group, *told]
        if two:
            cells.append(UNDEFINED if None in values else f"{values[1] - values[0]:+.4f}")
        if truth is not None:
            cells.append(cell(getattr(truth[at][1], metric)))
        rows.append([*cells, cell(first.rows)])
    return rows


def comparison_table(
    runs: Mapping[str, Results], *, metric: str = "auc", best: bool = False
) -> Table:
    """Runs side by side: a column each, the difference of two, the best possible where known."""
    head, *rows = comparison_rows(runs, metric=metric, best=best)
    first = next(iter(runs.values()))
    table = Table(title=f"{title_of(metric, first.k)}: {first.dataset}, {first.split}")
    for column in head:
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for at, row in enumerate(rows):
        table.add_row(*row, end_section=at == 0)
    return table


def _groups(metrics: ScenarioMetrics) -> list[tuple[str, Metrics]]:
    return [("all", metrics.all), *metrics.scenarios.items()]


def _check_comparable(names: list[str], results: list[Results]) -> None:
    if not results:
        raise ValueError("a comparison must have at least one run; got none.")
    facts = [(r.dataset, r.split, r.rows, list(r.metrics.scenarios)) for r in results]
    for name, found in zip(names[1:], facts[1:], strict=True):
        for what, one, other in zip(
            ("dataset", "split", "rows", "scenarios"), facts[0], found, strict=True
        ):
            if one != other:
                raise ValueError(
                    f"runs to compare must agree in {what}; {names[0]!r} has {one}, "
                    f"{name!r} has {other}. Evaluate both on the same split."
                )
