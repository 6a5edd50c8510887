"""Computes the exact metrics of predictions: of all labels, by scenario and by slice."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, Self

from msrec.data.labels import LabelKind
from msrec.data.schema import Schema
from msrec.launch.evaluation.results import CombinedResults, LabelResults, Results
from msrec.launch.evaluation.scored_rows.commit import COMBINED, Commit, label_column, load_commit
from msrec.launch.evaluation.scored_rows.partitioned import PartitionedRows, partitioned
from msrec.launch.evaluation.scored_rows.parts import Parts
from msrec.launch.evaluation.scored_rows.predictions import (
    ROWS_IN_MEMORY,
    Predictions,
    load_predictions,
)
from msrec.launch.evaluation.scored_rows.row_groups import RowGroups
from msrec.model.metrics.definitions import Array, Metrics, ScenarioMetrics
from msrec.model.metrics.exact import (
    NO_INTERVALS,
    Grouping,
    MetricOptions,
    ScoreKind,
    SortedRows,
    sort_rows,
)
from msrec.model.metrics.user_sums import UserSums

ScoreName = Literal["score", "truth", "combined"]
"""Score of a label, its best possible score, or the combined score of all labels."""


class RowSource(Protocol):
    """Rows of predictions, in memory or on disk, in groups: by scenario first, then by slice."""

    commit: Commit

    def has(self, number: int, score: ScoreName) -> bool:
        """Whether the rows have such a score of a label."""
        ...

    def metrics(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> tuple[Metrics, list[dict[str, Metrics]]]:
        """Returns the metrics of all rows, and of each group of each grouping.

        Raises:
            ValueError: a value is out of its range.
        """
        ...

    def sums(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> list[UserSums]:
        """Returns the sums of all rows, then of each scenario."""
        ...


class RowsInMemory:
    """Rows of predictions in memory.

    Args:
        predictions: the rows.
        groupings: by scenario, then by slice.
    """

    def __init__(self, predictions: Predictions, groupings: Sequence[Grouping]) -> None:
        self.commit, self._groupings = predictions.commit, groupings
        self._predictions = predictions

    @classmethod
    def read(cls, folder: Path, scenarios: list[str], slices: Sequence[RowGroups]) -> Self:
        """Reads the rows of a folder."""
        predictions = load_predictions(folder)
        groups = [each.grouping(predictions.row_id) for each in slices]
        return cls(predictions, [Grouping(scenarios, predictions.scenario), *groups])

    def has(self, number: int, score: ScoreName) -> bool:
        """See `RowSource`."""
        return self._score(number, score) is not None

    def metrics(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> tuple[Metrics, list[dict[str, Metrics]]]:
        """See `RowSource`."""
        scores = self._score(number, score)
        rows = label_rows(self._predictions, number, options, kind, scores)
        return rows.metrics(), [rows.metrics_by(groups) for groups in self._groupings]

    def sums(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> list[UserSums]:
        """See `RowSource`."""
        scores = self._score(number, score)
        rows = label_rows(self._predictions, number, options, kind, scores)
        return [rows.sums(group) for group in (None, *rows.rows_of(self._groupings[0]))]

    def _score(self, number: int, score: ScoreName) -> Array | None:
        label = self._predictions.labels[number]
        return {"score": label.score, "truth": label.truth, COMBINED: self._predictions.combined}[
            score
        ]


class RowsOnDisk:
    """Rows of predictions that are read for each label; those of a regression label at once.

    Args:
        folder: of the predictions.
        scenarios: names.
        slices: further groups of the rows.
    """

    def __init__(self, folder: Path, scenarios: list[str], slices: Sequence[RowGroups]) -> None:
        self._parts, self._scenarios, self._slices = Parts.open(folder), scenarios, slices
        self.commit = self._parts.commit

    def has(self, number: int, score: ScoreName) -> bool:
        """See `RowSource`."""
        return self._column(number, score) in self._parts.columns

    def metrics(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> tuple[Metrics, list[dict[str, Metrics]]]:
        """See `RowSource`."""
        if kind == "regression":  # its ranks need all rows
            return self._in_memory().metrics(number, score, kind, options)
        with self._partitioned(number, score, kind, options) as rows:
            return rows.metrics()

    def sums(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> list[UserSums]:
        """See `RowSource`."""
        if kind == "regression":
            return self._in_memory().sums(number, score, kind, options)
        with self._partitioned(number, score, kind, options) as rows:
            return rows.scenario_sums()

    def _partitioned(
        self, number: int, score: ScoreName, kind: ScoreKind, options: MetricOptions
    ) -> AbstractContextManager[PartitionedRows]:
        columns = self._parts.column_names(number) | {"score": self._column(number, score)}
        columns.pop("truth", None)
        groups = (self._scenarios, self._slices)
        return partitioned(self._parts, columns, kind, *groups, options)

    def _in_memory(self) -> RowsInMemory:
        return RowsInMemory.read(self._parts.folder, self._scenarios, self._slices)

    @staticmethod
    def _column(number: int, score: ScoreName) -> str:
        return COMBINED if score == COMBINED else label_column(score, number)


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
    slices = slices or {}
    scenarios = Grouping([scenario.name for scenario in schema.scenarios], predictions.scenario)
    source = RowsInMemory(predictions, [scenarios, *slices.values()])
    return results_of(source, schema, options, list(slices))


def evaluate_predictions(
    folder: Path | str,
    schema: Schema,
    options: MetricOptions = NO_INTERVALS,
    slices: Mapping[str, RowGroups] | None = None,
    rows_in_memory: int | None = None,
) -> Results:
    """Computes what `compute_results` does of a committed folder; many rows stay on disk.

    The metrics are the same on disk and in memory, up to rounding (1e-9), and so are the intervals.

    Raises:
        FileNotFoundError: the folder is not complete.
        ValueError: its rows or values are broken, or belong to another dataset.
    """
    slices = slices or {}
    names = [scenario.name for scenario in schema.scenarios]
    source = row_source(Path(folder), names, list(slices.values()), rows_in_memory)
    return results_of(source, schema, options, list(slices))


def row_source(
    folder: Path,
    scenarios: list[str],
    slices: Sequence[RowGroups] = (),
    rows_in_memory: int | None = None,
) -> RowSource:
    """Returns the rows of a committed folder: in memory, or on disk if there are many.

    Args:
        folder: of the predictions.
        scenarios: names.
        slices: further groups of the rows.
        rows_in_memory: most rows that are read into memory; None means `ROWS_IN_MEMORY`.
    """
    most = ROWS_IN_MEMORY if rows_in_memory is None else rows_in_memory
    if load_commit(folder).rows <= most:
        return RowsInMemory.read(folder, scenarios, slices)
    return RowsOnDisk(folder, scenarios, slices)


def results_of(
    source: RowSource, schema: Schema, options: MetricOptions, slices: Sequence[str]
) -> Results:
    """Computes the exact metrics of all labels and of the combined score.

    Args:
        source: the scored rows.
        schema: names the scenarios and the kinds of the labels.
        options: see `compute_results`.
        slices: names of the groupings of `source` after the scenarios.
    """
    commit = source.commit
    if commit.dataset != schema.name:
        raise ValueError(
            f"predictions must be of the dataset {schema.name!r}; these were made on "
            f"{commit.dataset!r}. Name the dataset that the run was trained on."
        )
    names = commit.labels or schema.labels[:1]
    labels = {}
    for number, name in enumerate(names):
        kind = schema.label(name).kind
        labels[name] = _label_results(source.metrics(number, "score", kind, options), kind, slices)
        if source.has(number, "truth"):
            no_intervals = options._replace(resamples=0)
            best = _label_results(source.metrics(number, "truth", kind, no_intervals), kind, slices)
            update = {"best_possible": best.metrics, "best_slices": best.slices}
            labels[name] = labels[name].model_copy(update=update)
    combined = None
    if commit.combined is not None and source.has(0, "combined"):
        ranked = {
            name: _label_results(
                source.metrics(number, "combined", "ranking", options), "binary", slices
            )
            for number, name in enumerate(names)
            if schema.label(name).kind == "binary"
        }
        combined = CombinedResults(score=commit.combined, labels=ranked)
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
        combined=combined,
    )


def _label_results(
    metrics: tuple[Metrics, list[dict[str, Metrics]]], kind: LabelKind, slices: Sequence[str]
) -> LabelResults:
    """Returns the results of a label; groups of a slice without rows are left out."""
    whole, (scenarios, *by_slice) = metrics
    return LabelResults(
        kind=kind,
        metrics=ScenarioMetrics(whole, scenarios),
        slices={
            name: {group: found for group, found in groups.items() if found.rows}
            for name, groups in zip(slices, by_slice, strict=True)
        },
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
        user_ids=predictions.user_ids,
    )
