"""Metrics of a sweep over seeds, paired differences between its arms, and tables of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import polars as pl
from scipy import stats

from msrec.data.labels import LabelKind
from msrec.launch.evaluation.results import LabelResults
from msrec.model.metrics.definitions import METRIC_NAMES, Metrics, ScenarioMetrics
from msrec.tools.experiment.cell import Cell
from msrec.tools.experiment.trainings import SettingCells

Group = tuple[str, str]
"""Kind and name of a group of rows, such as ("scenario", "feed")."""
ALL: Group = ("all", "all")
LEVEL = 0.95
"""Level of the intervals."""


def label_kinds(cells: Iterable[Cell]) -> dict[str, LabelKind]:
    """Returns the labels and rankings of any of some evaluated trainings, with their kinds.

    Trainings of an older version have one label without a name, which only counts alone.
    """
    kinds: dict[str, LabelKind] = {}
    for cell in cells:
        kinds |= {name: of.kind for name, of in _judged(cell).items()}
    return {name: kind for name, kind in kinds.items() if name or len(kinds) == 1}


def _judged(cell: Cell) -> dict[str, LabelResults]:
    """Returns the results of every label, and of every label ranked by the combined score."""
    return cell.evaluation.by_label | cell.evaluation.rankings


def group_metrics(cell: Cell, label: str | None = None) -> dict[Group, Metrics]:
    """Returns the metrics of all rows, of each scenario and of each group of a slice.

    Args:
        cell: of an evaluated training.
        label: name of a label, or title of a ranking; the result is empty if the training does
            not have it. None is the first label.
    """
    by_label = _judged(cell)
    found = by_label.get(next(iter(by_label)) if label is None else label)
    return {} if found is None else _groups(found.metrics, found.slices)


def best_metrics(cell: Cell, label: str | None = None) -> dict[Group, Metrics]:
    """Returns the metrics of the best possible scores of a label; empty without them."""
    by_label = _judged(cell)
    found = by_label.get(next(iter(by_label)) if label is None else label)
    if found is None or found.best_possible is None:
        return {}
    return _groups(found.best_possible, found.best_slices)


def _groups(
    metrics: ScenarioMetrics, slices: dict[str, dict[str, Metrics]]
) -> dict[Group, Metrics]:
    kinds = {"all": {"all": metrics.all}, "scenario": metrics.scenarios, **slices}
    return {(kind, name): group for kind in kinds for name, group in kinds[kind].items()}


def seed_values(
    cells: SettingCells, metric: str, group: Group = ALL, label: str | None = None
) -> dict[int, float | None]:
    """Returns a metric of a group of rows by seed; seeds that are not evaluated are left out."""
    groups = {seed: group_metrics(cell, label) for seed, cell in cells.evaluated.items()}
    return {seed: getattr(of[group], metric) for seed, of in groups.items() if group in of}


def spread(cells: SettingCells, metric: str, group: Group = ALL, label: str | None = None) -> str:
    """Returns mean and, of several seeds, standard deviation, such as `0.8100 ± 0.0141`."""
    values = seed_values(cells, metric, group, label).values()
    known = [value for value in values if value is not None]
    if len(known) > 1:
        return f"{mean(known):.4f} ± {stdev(known):.4f}"
    if known:
        return f"{known[0]:.4f}"
    return "undefined" if values else ""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a paired difference over seeds, half its interval, and p of the two-sided t-test.

    Fields are None where they are undefined: with one seed, or when all differences are equal.
    """

    mean: float
    half_width: float | None
    p: float | None

    def __str__(self) -> str:
        """Text of a table cell.

        Example:
            >>> str(paired_difference([0.81, 0.82, 0.83], [0.80, 0.80, 0.80]))
            '+0.0200 ± 0.0248 (p = .074)'
        """
        text = f"{self.mean:+.4f}"
        if self.half_width is not None:
            text += f" ± {self.half_width:.4f}"
        if self.p is None:
            return text
        p = "p < .001" if self.p < 0.001 else f"p = {self.p:.3f}".replace("0.", ".", 1)
        return f"{text} ({p})"


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """Compares a metric of runs that share seed, data and order of rows; one value per seed.

    Source:
        scipy.stats.ttest_rel.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    average = mean(differences)
    if len(differences) < 2:
        return PairedDifference(average, None, None)
    if len(set(differences)) == 1:
        return PairedDifference(average, 0.0, None)
    test = stats.ttest_rel(values, reference)
    interval = test.confidence_interval(LEVEL)
    return PairedDifference(average, float(interval.high - interval.low) / 2, float(test.pvalue))


def metric_difference(
    cells: SettingCells,
    other: SettingCells,
    metric: str = "auc",
    group: Group = ALL,
    label: str | None = None,
) -> PairedDifference | None:
    """Returns a metric of an arm minus that of another, over the seeds that have both, if any."""
    values, reference = (seed_values(of, metric, group, label) for of in (cells, other))
    pairs = [(value, reference.get(seed)) for seed, value in values.items()]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return paired_difference(*zip(*known, strict=True)) if known else None


def results_frame(loaded: Iterable[SettingCells]) -> pl.DataFrame:
    """Returns a row for each evaluated training, label and group of rows: names, seed and metrics.

    The intervals over users are left out, since a sweep compares trainings.

    Raises:
        ValueError: no training is evaluated.
    """
    rows = [row for cells in loaded for row in _rows(cells)]
    if not rows:
        raise ValueError("a report must have at least one evaluated training; there is none.")
    return pl.DataFrame(rows, infer_schema_length=None)


def _rows(cells: SettingCells) -> Iterator[dict[str, Any]]:
    setting = cells.setting
    for seed, cell in cells.evaluated.items():
        groups = [
            (label, group, metrics)
            for label in _judged(cell)
            for group, metrics in group_metrics(cell, label).items()
        ]
        for label, (kind, name), metrics in groups:
            best = best_metrics(cell, label)
            yield {
                "dataset": setting.dataset,
                "backbone": setting.model,
                "arm": setting.arm,
                "seed": seed,
                "split": cell.evaluation.split,
                "label": label,
                "kind": kind,
                "group": name,
                **{metric: getattr(metrics, metric) for metric in METRIC_NAMES},
                "parameters": cell.parameters,
                "seconds": cell.seconds,
                "best_auc": best[kind, name].auc if (kind, name) in best else None,
                "best_rmse": best[kind, name].rmse if (kind, name) in best else None,
            }


def with_seeds(name: str, cells: SettingCells) -> str:
    """Returns a name, with the number of evaluated seeds if some are missing."""
    evaluated, seeds = len(cells.evaluated), len(cells.seeds)
    return name if evaluated == seeds else f"{name} ({evaluated} of {seeds} seeds)"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields an empty line and a table; short rows end with empty cells."""
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join([*row, *[''] * (len(head) - len(row))])} |"
