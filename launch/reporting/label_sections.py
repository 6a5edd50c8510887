"""Builds the report's sections on each label: results by scenario and slice, and score figures."""

from collections.abc import Mapping
from pathlib import Path

from msrec.data.labels import LabelKind
from msrec.launch.evaluation.results import Results
from msrec.launch.evaluation.scored_rows.commit import COMMIT_FILE
from msrec.launch.evaluation.scored_rows.predictions import (
    Predictions,
    load_predictions,
    sampling_step,
)
from msrec.launch.evaluation.slices import SLICE_TITLES
from msrec.launch.reporting.comparison_tables import (
    comparison_rows,
    label_names,
    shown_metrics,
    slice_comparison_rows,
    with_label,
)
from msrec.launch.reporting.figures import (
    Figure,
    calibration_figure,
    roc_figure,
    score_figure,
    value_figure,
)
from msrec.launch.reporting.page import Block, DataTable, Details, Figures, Section
from msrec.launch.reporting.result_tables import (
    all_metrics_rows,
    by_group,
    format_metric,
    metric_title,
)
from msrec.launch.training.metric_log import Points
from msrec.model.metrics.curves import (
    reliability_curve,
    roc_curve,
    score_distribution,
    value_distribution,
)
from msrec.model.metrics.definitions import OF_IMPRESSIONS


def result_sections(
    folders: Mapping[str, Path], results: Mapping[str, Results]
) -> tuple[list[Section], list[str]]:
    """Returns the sections of all labels, and sentences on curves of a part of the rows or of none.

    Args:
        folders: run -> run folder.
        results: run -> results, of the evaluated runs.
    """
    predictions: dict[str, Predictions] = {}
    notes: list[str] = []
    for name, result in results.items():
        folder = folders[name] / "predictions" / result.split
        if (folder / COMMIT_FILE).is_file():
            step = sampling_step(folder)
            predictions[name] = load_predictions(folder, step)
            if step > 1:
                notes.append(f"{name}: its curves and distributions show 1 row of {step}.")
    sections = []
    labels = label_names(results) if results else []
    for label in labels:
        end = f" of {label}" if len(labels) > 1 else ""
        figures = _score_figures(results, predictions, label)
        sections += [
            Section(f"Results{end} by scenario", _scenario_blocks(results, label)),
            Section(f"Results{end} by slice", _slice_blocks(results, label)),
            Section(f"Scores{end}", [Figures(figures)] if figures else []),
        ]
    sections.append(Section("Combined score", _combined_blocks(results)))
    notes += [
        f"{name}: no predictions, so no calibration and ROC."
        for name in results
        if name not in predictions
    ]
    return sections, notes


def _scenario_blocks(results: Mapping[str, Results], label: str) -> list[Block]:
    of_label = with_label(results, label)
    best = any(run.best_possible for run in of_label.values())
    k = next(iter(results.values())).k
    blocks: list[Block] = [
        DataTable(
            comparison_rows(results, metric=name, label=label, best=best, intervals=True),
            metric_title(name, k),
        )
        for name in shown_metrics(next(iter(of_label.values())))
    ]
    for name in of_label:
        run = results[name]
        rows = all_metrics_rows(run, label if label in run.by_label else "")
        blocks.append(Details(f"All metrics of {name}", [DataTable(rows)]))
    return blocks


def _slice_blocks(results: Mapping[str, Results], label: str) -> list[Block]:
    of_runs = with_label(results, label).values()
    names = dict.fromkeys(name for of_label in of_runs for name in of_label.slices)
    return [
        DataTable(slice_comparison_rows(results, name, label), f"By {SLICE_TITLES[name]}")
        for name in names
    ]


def _combined_blocks(results: Mapping[str, Results]) -> list[Block]:
    """Returns a table of each run with a combined score: rankings of each label by scenario."""
    blocks: list[Block] = []
    for name, run in results.items():
        if run.combined is None:
            continue
        by_impression = any(of.metrics.all.impressions for of in run.combined.labels.values())
        columns = OF_IMPRESSIONS if by_impression else ("gauc", "ndcg")
        titles = [metric_title(column, run.k) for column in columns]
        rows = [["scenario", *(f"{label}, {t}" for label in run.combined.labels for t in titles)]]
        groups = [by_group(of.metrics) for of in run.combined.labels.values()]
        for scenario in groups[0] if groups else []:
            cells = [
                format_metric(of_label[scenario], column, one_line=True)
                for of_label in groups
                for column in columns
            ]
            rows.append([scenario, *cells])
        blocks.append(DataTable(rows, f"{name}, ranked by {run.combined.score}"))
    return blocks


def _score_figures(
    results: Mapping[str, Results], predictions: Mapping[str, Predictions], label: str
) -> list[Figure]:
    """Returns calibration, ROC and score distributions of a label; empty without predictions."""
    calibration: dict[str, Points] = {}
    roc_curves: dict[str, Points] = {}
    best: Points | None = None
    distributions: list[Figure] = []
    kind: LabelKind = "binary"
    for run, of_label in with_label(results, label).items():
        if run not in predictions:
            continue
        p, kind = predictions[run], of_label.kind
        names = list(results[run].by_label)
        number = names.index(label) if label in names else 0
        y, weight, score, best_score = p.labels[number]
        calibration[run] = reliability_curve(score, y, weight)
        if kind == "regression":
            distributions.append(value_figure(run, *value_distribution(score, y)))
            continue
        roc_curves[run] = roc_curve(score, y, weight)
        if best is None and best_score is not None:
            best = roc_curve(best_score, y, weight)
        distributions.append(score_figure(run, *score_distribution(score, y)))
    if not calibration:
        return []
    rocs = [roc_figure(roc_curves, best)] if roc_curves else []
    return [calibration_figure(calibration, kind), *rocs, *distributions]
