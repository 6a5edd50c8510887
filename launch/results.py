"""From a folder of predictions to results: a JSON file and tables to read."""

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from msrec.data.files import write_text
from msrec.data.schema import Schema
from msrec.data.validation import first_fault
from msrec.launch.metrics import Metrics, ScenarioMetrics, exact_metrics
from msrec.launch.predictions import Predictions, load_predictions
from msrec.launch.ranking import Array

RESULTS_FILE = "results.json"
UNDEFINED = "undefined"
COLUMNS = ("rows", "positives", "auc", "log_loss", "gauc", "gauc_by_user", "ne", "calibration")
TITLES = {"auc": "AUC", "log_loss": "log loss", "gauc": "GAUC", "ne": "NE"} | {
    "gauc_by_user": "GAUC, users equal"
}


class Results(BaseModel):
    """Exact metrics of one checkpoint on one split.

    `best_possible` are the metrics of the true click probability, where the data knows it: no
    model can be expected to do better on these rows. `slices` are metrics of other groups of rows
    than scenarios, where they were asked for: slice -> group -> metrics; `best_slices` those of the
    true probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    split: str
    checkpoint: str
    rows: int
    metrics: ScenarioMetrics
    best_possible: ScenarioMetrics | None = None
    left_out: dict[str, int] = {}
    """Rows of the split that broke the schema and are in no metric: reason -> rows."""
    slices: dict[str, dict[str, Metrics]] = {}
    best_slices: dict[str, dict[str, Metrics]] = {}


def evaluate_predictions(folder: Path | str, schema: Schema) -> Results:
    """Exact metrics of a committed folder of predictions, which must be of the schema's dataset.

    Raises:
        FileNotFoundError, ValueError: see `load_predictions` and `exact_metrics`; or the
            predictions were made on another dataset.
    """
    return results_of(load_predictions(folder), schema)


def results_of(predictions: Predictions, schema: Schema) -> Results:
    """Exact metrics of predictions that are already in memory."""
    commit = predictions.commit
    if commit.dataset != schema.name:
        raise ValueError(
            f"predictions must be of the dataset {schema.name!r}; these were made on "
            f"{commit.dataset!r}. Name the dataset that the run was trained on."
        )
    names = [scenario.name for scenario in schema.scenarios]

    def judge(score: Array) -> ScenarioMetrics:
        p = predictions
        return exact_metrics(score, p.label, p.scenario, p.user, names, p.weight)

    return Results(
        dataset=commit.dataset,
        split=commit.split,
        checkpoint=commit.checkpoint,
        rows=commit.rows - commit.left_out,
        left_out=commit.reasons,
        metrics=judge(predictions.score),
        best_possible=None if predictions.p_click is None else judge(predictions.p_click),
    )


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
        raise ValueError(f"{path}: {first_fault(error)}.") from None


def cell(value: float | int | None) -> str:
    """A metric as people read it.

    Example:
        >>> cell(1234567), cell(0.80951), cell(None)
        ('1,234,567', '0.8095', 'undefined')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def results_table(results: Results) -> Table:
    """One row for all rows and one for each scenario; undefined where a metric is."""
    table = Table(title=f"{results.dataset}, {results.split}, checkpoint {results.checkpoint}")
    table.add_column("scenario")
    for column in COLUMNS:
        table.add_column(TITLES.get(column, column), justify="right")
    if results.best_possible is not None:
        table.add_column("best possible AUC", justify="right")
    best = None if results.best_possible is None else _groups(results.best_possible)
    for at, (name, metrics) in enumerate(_groups(results.metrics)):
        cells = [cell(getattr(metrics, column)) for column in COLUMNS]
        if best is not None:
            cells.append(cell(best[at][1].auc))
        table.add_row(name, *cells, end_section=at == 0)
    if results.left_out:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in results.left_out.items())
        table.caption = f"left out as bad: {reasons}"
    return table


def slice_table(results: Results, name: str) -> Table:
    """One row for each group of a slice."""
    best = results.best_slices.get(name, {})
    table = Table(title=f"by {name}: training rows of the row's {name.removesuffix('_history')}")
    table.add_column(name)
    for column in COLUMNS:
        table.add_column(TITLES.get(column, column), justify="right")
    if best:
        table.add_column("best possible AUC", justify="right")
    for group, metrics in results.slices[name].items():
        cells = [cell(getattr(metrics, column)) for column in COLUMNS]
        table.add_row(group, *cells, *([cell(best[group].auc)] if best else []))
    return table


def comparison_rows(
    runs: Mapping[str, Results], *, metric: str = "auc", best: bool = False
) -> list[list[str]]:
    """The cells of `comparison_table`, its head first: also the report's table.

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
        cells = [group, *map(cell, values)]
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
    table = Table(title=f"{TITLES.get(metric, metric)}: {first.dataset}, {first.split}")
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
