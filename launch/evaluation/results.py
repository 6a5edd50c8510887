"""Computes the exact metrics of predictions; writes and reads them as `results.json`."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import Precision, StrictModel, first_error
from msrec.data.labels import LabelKind
from msrec.data.schema import EventChoice, HistoryProtocol
from msrec.model.metrics.definitions import COMBINED_PREFIX, Metrics, ScenarioMetrics
from msrec.model.metrics.exact import (
    MetricOptions,
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
