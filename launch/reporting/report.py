"""Writes one HTML page about some runs: results, score distributions, curves and setup."""

from collections.abc import Mapping
from pathlib import Path

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import PAGE, check_output
from msrec.data.io.paths import AnyPath, local_path, to_path
from msrec.launch.calibration.calibration_file import read_calibration
from msrec.launch.checkpointing.remote_runs import local_run
from msrec.launch.config.run_config import CONFIG_FILE
from msrec.launch.evaluation.results import RESULTS_FILE, Results, load_results
from msrec.launch.explanations.explanation_file import load_explanations
from msrec.launch.reporting.comparison_tables import label_names, shown_metrics, with_label
from msrec.launch.reporting.explanation_sections import (
    interest_section,
    scenario_section,
    user_section,
)
from msrec.launch.reporting.figures import scenario_figures, training_figures
from msrec.launch.reporting.label_sections import result_sections
from msrec.launch.reporting.page import DataTable, Figures, Section, Text, Tile, render_page
from msrec.launch.reporting.result_tables import (
    CALIBRATED,
    OLD_NOTE,
    calibration_rows,
    format_value,
    metric_title,
)
from msrec.launch.reporting.setup_section import setup_section
from msrec.launch.training.metric_log import LOG_FILE, MetricLog, load_metric_log

RUN_FILES = (CONFIG_FILE, LOG_FILE, RESULTS_FILE)
"""A run folder must have one of these files for a report."""


def write_report(path: Path | str, runs: Mapping[str, AnyPath | str]) -> Path:
    """Writes one page that compares runs in the given order; the first run is the reference.

    Parts that a run folder does not have (training log, results, predictions) are left out, and
    the page notes it.

    Args:
        path: the HTML file to write.
        runs: name on the page -> run folder.

    Raises:
        FileNotFoundError: a run folder does not exist.
        ValueError: there is no run, no run has anything to show, the runs were evaluated on
            different rows, or a file is broken.
    """
    path = local_path(path)
    folders = {name: local_run(to_path(run), weights=False) for name, run in runs.items()}
    if not folders:
        raise ValueError("a report must have at least one run; got none.")
    for name, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} must be the run folder of {name!r}; it does not exist."
            )
    if not any((f / name).is_file() for f in folders.values() for name in RUN_FILES):
        raise ValueError(
            f"{next(iter(folders.values()))} must be a run folder; it has none of "
            f"{', '.join(RUN_FILES)}."
        )
    check_output(path, PAGE)
    html = _report(folders)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, html)


def _report(folders: Mapping[str, Path]) -> str:
    logs = {name: load_metric_log(folder) for name, folder in folders.items()}
    results = {n: load_results(f) for n, f in folders.items() if (f / RESULTS_FILE).is_file()}
    of_labels, of_curves = result_sections(folders, results)
    curves, (by_scenario, hidden) = training_figures(logs), scenario_figures(logs)
    notes = [*_result_notes(logs, results), *of_curves, *_log_notes(logs)]
    if hidden:
        notes.append(f"The curves of {hidden} more scenarios are not drawn; see {LOG_FILE}.")
    sections = [
        Section("Notes", [Text(note) for note in notes]),
        *of_labels,
    ]
    training = [Figures(curves)] if curves else []
    training += [Figures(by_scenario, "small", title="By scenario")] if by_scenario else []
    sections.append(Section("Training", training))
    for name, folder in folders.items():
        if (calibration := read_calibration(folder)) is not None:
            table = DataTable(calibration_rows(calibration), "Calibration error", is_text=True)
            sections.append(Section(f"Calibration of {name}", [table]))
    explained = {name: load_explanations(folder) for name, folder in folders.items()}
    sections += [scenario_section(n, s) for n, (_, s) in explained.items() if s is not None]
    for name, (users, _) in explained.items():
        for user in users:
            sections += [user_section(name, user), interest_section(name, user)]
    first = next(iter(results.values()), None)
    return render_page(
        title=f"msrec report: {', '.join(folders)}",
        heading=(" and " if len(folders) == 2 else ", ").join(folders),
        subtitle=f"{first.dataset}, {first.split} split, {first.rows:,} rows" if first else "",
        tiles=_tiles(results),
        sections=[*sections, setup_section(folders)],
    )


def _tiles(results: Mapping[str, Results]) -> list[Tile]:
    """Returns the main metric of each label and run, and the best possible AUC."""
    if not results:
        return []
    first = next(iter(results.values()))
    labels = label_names(results)
    tiles = []
    for label in labels:
        of_runs = with_label(results, label)
        reference = next(iter(of_runs))
        metric = shown_metrics(of_runs[reference])[0]
        values = {name: getattr(run.metrics.all, metric) for name, run in of_runs.items()}
        title = metric_title(metric, first.k) + (f" of {label}" if len(labels) > 1 else "")
        for name, value in values.items():
            remark = "reference"
            if name != reference and None not in (value, values[reference]):
                remark = f"{value - values[reference]:+.4f} against {reference}"
            tiles.append(Tile(format_value(value), remark, label=f"{name}, {title}"))
        if (best := of_runs[reference].best_possible) is not None:
            value = format_value(getattr(best.all, metric))
            tiles.append(Tile(value, "by the true probability", label=f"best possible, {title}"))
    return tiles


def _result_notes(logs: Mapping[str, MetricLog], results: Mapping[str, Results]) -> list[str]:
    """Returns sentences on missing results and on the intervals."""
    notes = [
        f"{name}: not evaluated, so it is in no table." for name in logs if name not in results
    ]
    notes += [f"{name}: {OLD_NOTE}." for name, result in results.items() if result.is_old]
    notes += [
        f"{name}: {CALIBRATED.format(method=result.calibration)}."
        for name, result in results.items()
        if result.calibration is not None
    ]
    intervals = {(r.resamples, r.seed) for r in results.values() if r.resamples}
    notes += [
        f"95 % intervals over users: percentile bootstrap, {resamples:,} resamples, seed {seed}."
        for resamples, seed in sorted(intervals)
    ]
    return notes


def _log_notes(logs: Mapping[str, MetricLog]) -> list[str]:
    notes = []
    for name, log in logs.items():
        if not log.steps:
            notes.append(f"{name}: no training log, so no curves.")
        if log.again:
            notes.append(f"{name}: {log.again} steps were logged again after a restart.")
        if log.unreadable:
            notes.append(f"{name}: {log.unreadable} lines of its log cannot be read.")
    return notes
