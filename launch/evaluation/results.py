"""Computes the exact metrics of predictions; writes and reads them as `results.json`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import Precision, StrictModel, first_error
from msrec.data.labels import LabelKind
from msrec.data.schema import EventChoice, HistoryProtocol, Schema
from msrec.launch.evaluation.predictions import Predictions, load_predictions
from msrec.model.metrics.definitions import COMBINED_PREFIX, Array, Metrics, ScenarioMetrics
from msrec.model.metrics.exact import (
    NO_INTERVALS,
    Grouping,
    MetricOptions,
    ScoreKind,
    SortedRows,
    sort_rows,
)

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


class LabelResults(StrictModel):
    """Exact metrics of a label."""

    kind: LabelKind = "binary"
    metrics: ScenarioMetrics
    slices: dict[str, dict[str, Metrics]] = {}
    """Groups of rows other than scenarios, if requested: slice -> group -> metrics."""
    best_possible: ScenarioMetrics | None = None
    """Metrics of the best possible scores, if the data has them: no model can be expected to do
    better on these rows."""
    best_slices: dict[str, dict[str, Metrics]] = {}


class CombinedResults(StrictModel):
    """Rankings of the rows by the combined score, judged by each binary label."""

    score: str
    """The formula."""
    labels: dict[str, LabelResults]
    """Binary label -> metrics that depend on the ranking only."""


class Results(StrictModel):
    """Exact metrics of one checkpoint on one split.

    `metrics`, `slices` and so on are those of the first label, `labels` has those of the others.
    """

    dataset: str
    data: str | None = None
    """Folder of the evaluated dataset, if it is not the dataset the run was trained on."""
    split: str
    checkpoint: str
    precision: Precision = "fp32"
    """Precision of the training steps; scores are always computed in fp32."""
    rows: int
    k: int = MetricOptions().k
    """Cutoff of NDCG and recall."""
    resamples: int = 0
    """Bootstrap resamples of the users for the intervals; 0 means no intervals."""
    seed: int = 0
    label: str = ""
    """Name of the first label; empty in results of an older version."""
    kind: LabelKind = "binary"
    """Kind of the first label."""
    calibration: str | None = None
    """Method by which the scores of binary labels were calibrated, if they were."""
    metrics: ScenarioMetrics
    best_possible: ScenarioMetrics | None = None
    left_out: dict[str, int] = {}
    """Rows that broke the schema and are in no metric: reason -> rows."""
    slices: dict[str, dict[str, Metrics]] = {}
    best_slices: dict[str, dict[str, Metrics]] = {}
    labels: dict[str, LabelResults] = {}
    """Further labels."""
    combined: CombinedResults | None = None
    """Combined score, if the run has a formula."""
    history: ResultHistory | None = None
    """Ordered histories, if the run reads them."""

    @property
    def is_old(self) -> bool:
        """Whether an older version wrote these results, which had fewer metrics."""
        whole = self.metrics.all
        return self.rows > 0 and self.kind == "binary" and whole.users_ranked is None

    @property
    def by_label(self) -> dict[str, LabelResults]:
        """Results of every label, the first one first."""
        first = LabelResults(
            kind=self.kind,
            metrics=self.metrics,
            slices=self.slices,
            best_possible=self.best_possible,
            best_slices=self.best_slices,
        )
        return {self.label: first} | self.labels

    def named(self) -> dict[str, float]:
        """Returns every metric of every label and of the combined score by its name in logs.

        The metrics of the combined score are called `combined_ndcg` and so on.
        """
        named = self.metrics.named()
        for label, results in self.labels.items():
            named |= results.metrics.named(label)
        for label, ranked in (self.combined.labels if self.combined else {}).items():
            of_label = ranked.metrics.named(None if label == self.label else label)
            named |= {f"{COMBINED_PREFIX}{name}": value for name, value in of_label.items()}
        return named

    @property
    def rankings(self) -> dict[str, LabelResults]:
        """Results of the combined score, by titles such as `like ranked by click^0.5 * watch`."""
        combined = self.combined
        if combined is None:
            return {}
        return {f"{label} ranked by {combined.score}": of for label, of in combined.labels.items()}

    def logged_values(self) -> Iterator[LoggedValue]:
        """Yields every metric as `evaluated test/auc/scenario=feed`, at its checkpoint's step."""
        step = int(self.checkpoint.removeprefix("step-"))
        for name, value in self.named().items():
            yield f"evaluated {self.split}/{name}", value, step


def evaluate_predictions(
    folder: Path | str, schema: Schema, options: MetricOptions = NO_INTERVALS
) -> Results:
    """Computes the exact metrics of a committed folder of predictions.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: its rows or values are broken, or belong to another dataset.
    """
    return compute_results(load_predictions(folder), schema, options)


def compute_results(
    predictions: Predictions,
    schema: Schema,
    options: MetricOptions = NO_INTERVALS,
    slices: Mapping[str, Grouping] | None = None,
) -> Results:
    """Computes the exact metrics of all labels: of all rows, of each scenario and of each slice.

    Args:
        predictions: the scored rows.
        schema: names the scenarios and the kinds of the labels.
        options: cutoff of the rankings and resamples for intervals. The metrics of the best
            possible scores have no intervals.
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
    names = commit.labels or schema.labels[:1]
    labels = {}
    for number, name in enumerate(names):
        kind = schema.label(name).kind
        rows = label_rows(predictions, number, options, kind)
        labels[name] = label_results(rows, kind, scenarios, slices or {})
        if (truth := predictions.labels[number].truth) is not None:
            no_intervals = options._replace(resamples=0)
            rows = label_rows(predictions, number, no_intervals, kind, truth)
            best = label_results(rows, kind, scenarios, slices or {})
            update = {"best_possible": best.metrics, "best_slices": best.slices}
            labels[name] = labels[name].model_copy(update=update)
    first = labels.pop(names[0])
    return Results(
        dataset=commit.dataset,
        split=commit.split,
        checkpoint=commit.checkpoint,
        rows=commit.rows - commit.left_out,
        **options._asdict(),
        label=names[0],
        kind=first.kind,
        calibration=commit.calibration,
        left_out=commit.reasons,
        metrics=first.metrics,
        best_possible=first.best_possible,
        slices=first.slices,
        best_slices=first.best_slices,
        labels=labels,
        combined=_combined_results(predictions, names, schema, scenarios, slices or {}, options),
    )


def label_rows(
    predictions: Predictions,
    number: int,
    options: MetricOptions,
    kind: ScoreKind,
    score: Array | None = None,
) -> SortedRows:
    """Returns the rows of a label, by its number, sorted by its score or by another one."""
    rows = predictions.labels[number]
    scores = rows.score if score is None else score
    return sort_rows(
        *(scores, rows.label, predictions.user, rows.weight, options),
        kind=kind,
        impression=predictions.impression,
    )


def label_results(
    rows: SortedRows, kind: LabelKind, scenarios: Grouping, slices: Mapping[str, Grouping]
) -> LabelResults:
    """Computes the metrics of the rows of a label."""
    return LabelResults(
        kind=kind,
        metrics=ScenarioMetrics(rows.metrics(), rows.metrics_by(scenarios)),
        slices={name: slice_metrics(rows, groups) for name, groups in slices.items()},
    )


def _combined_results(
    predictions: Predictions,
    names: Sequence[str],
    schema: Schema,
    scenarios: Grouping,
    slices: Mapping[str, Grouping],
    options: MetricOptions,
) -> CombinedResults | None:
    formula, score = predictions.commit.combined, predictions.combined
    if formula is None or score is None:
        return None
    by_label = {}
    for number, name in enumerate(names):
        if schema.label(name).kind == "binary":
            rows = label_rows(predictions, number, options, "ranking", score)
            by_label[name] = label_results(rows, "binary", scenarios, slices)
    return CombinedResults(score=formula, labels=by_label)


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
