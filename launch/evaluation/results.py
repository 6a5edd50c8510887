"""Computes the exact metrics of predictions; writes and reads them as `results.json`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.schema import EventChoice, HistoryProtocol, Schema
from msrec.launch.evaluation.predictions import Predictions, load_predictions
from msrec.model.metrics.definitions import Array, Metrics, ScenarioMetrics
from msrec.model.metrics.exact import NO_INTERVALS, Grouping, MetricOptions, SortedRows, sort_rows

RESULTS_FILE = "results.json"
LoggedValue = tuple[str, float, int]
"""Name, value and step of a value for an experiment tracker."""


class ResultHistory(StrictModel):
    """Ordered histories that the scored rows had."""

    protocol: HistoryProtocol
    """Splits whose rows are events."""
    events: EventChoice
    """Rows that are events."""
    max_len: int
    """Newest events per row."""


class Results(StrictModel):
    """Exact metrics of one checkpoint on one split.

    `best_possible` holds the metrics of the true click probability, if the data has it: no model
    can be expected to do better on these rows. `slices` holds the metrics of groups of rows other
    than scenarios, if requested: slice -> group -> metrics. `best_slices` holds those of the true
    click probability.
    """

    dataset: str
    data: str | None = None
    """Folder of the evaluated dataset, if it is not the dataset the run was trained on."""
    split: str
    checkpoint: str
    rows: int
    k: int = MetricOptions().k
    """Cutoff of NDCG and recall."""
    resamples: int = 0
    """Bootstrap resamples of the users for the intervals; 0 means no intervals."""
    seed: int = 0
    metrics: ScenarioMetrics
    best_possible: ScenarioMetrics | None = None
    left_out: dict[str, int] = {}
    """Rows that broke the schema and are in no metric: reason -> rows."""
    slices: dict[str, dict[str, Metrics]] = {}
    best_slices: dict[str, dict[str, Metrics]] = {}
    history: ResultHistory | None = None
    """Ordered histories, if the run reads them."""

    @property
    def is_old(self) -> bool:
        """Whether an older version wrote these results, which had fewer metrics."""
        return self.rows > 0 and self.metrics.all.users_ranked is None

    def logged_values(self) -> Iterator[LoggedValue]:
        """Yields every metric as `evaluated test/auc/scenario=feed`, at its checkpoint's step."""
        step = int(self.checkpoint.removeprefix("step-"))
        for name, value in self.metrics.named().items():
            yield f"evaluated {self.split}/{name}", value, step


def evaluate_predictions(
    folder: Path | str, schema: Schema, options: MetricOptions = NO_INTERVALS
) -> Results:
    """Computes the exact metrics of a committed folder of predictions.

    Raises:
        FileNotFoundError, ValueError: see `load_predictions` and `compute_results`.
    """
    return compute_results(load_predictions(folder), schema, options)


def compute_results(
    predictions: Predictions,
    schema: Schema,
    options: MetricOptions = NO_INTERVALS,
    slices: Mapping[str, Grouping] | None = None,
) -> Results:
    """Computes the exact metrics of predictions in memory.

    Args:
        predictions: scored rows of the schema's dataset.
        schema: names the scenarios.
        options: cutoff of the rankings and resamples for intervals. The metrics of the true click
            probability have no intervals.
        slices: more groups of the rows; empty groups are left out.

    Raises:
        ValueError: the predictions belong to another dataset, or a value is out of its range.
    """
    commit = predictions.commit
    if commit.dataset != schema.name:
        raise ValueError(
            f"predictions must be of the dataset {schema.name!r}; these were made on "
            f"{commit.dataset!r}. Name the dataset that the run was trained on."
        )
    scenarios = Grouping([scenario.name for scenario in schema.scenarios], predictions.scenario)

    def metrics_of(
        score: Array, options: MetricOptions
    ) -> tuple[ScenarioMetrics, dict[str, dict[str, Metrics]]]:
        p = predictions
        rows = sort_rows(score, p.label, p.user, p.weight, options)
        by_slice = {name: slice_metrics(rows, groups) for name, groups in (slices or {}).items()}
        return ScenarioMetrics(rows.metrics(), rows.metrics_by(scenarios)), by_slice

    metrics, of_slices = metrics_of(predictions.score, options)
    best = None
    if predictions.p_click is not None:
        best = metrics_of(predictions.p_click, options._replace(resamples=0))
    return Results(
        dataset=commit.dataset,
        split=commit.split,
        checkpoint=commit.checkpoint,
        rows=commit.rows - commit.left_out,
        **options._asdict(),
        left_out=commit.reasons,
        metrics=metrics,
        best_possible=best[0] if best else None,
        slices=of_slices,
        best_slices=best[1] if best else {},
    )


def slice_metrics(rows: SortedRows, groups: Grouping) -> dict[str, Metrics]:
    """Returns the metrics of each group that has rows."""
    by_group = rows.metrics_by(groups)
    return {name: metrics for name, metrics in by_group.items() if metrics.rows}


def save_results(results: Results, folder: Path | str) -> Path:
    """Writes `results.json` in one step."""
    return write_text(Path(folder) / RESULTS_FILE, results.model_dump_json(indent=2) + "\n")


def load_results(folder: Path | str) -> Results:
    """Reads `results.json`.

    Raises:
        FileNotFoundError: the run was not evaluated yet.
        ValueError: the file does not hold results; the message names the field.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist; `msrec evaluate` writes it.")
    try:
        return Results.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None
