"""One HTML page about some runs: what was run, its curves, tables and pictures; opens offline."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from msrec.data.io.atomic_files import write_text
from msrec.launch.config import RunConfig
from msrec.launch.evaluation.explanation_file import (
    WAYS,
    ScenarioExplanation,
    UserExplanation,
    load_explanations,
)
from msrec.launch.evaluation.predictions import COMMIT_FILE, Predictions, load_predictions
from msrec.launch.evaluation.results import (
    COLUMNS,
    FIRST,
    OLD,
    RESULTS_FILE,
    TITLES,
    Results,
    cell,
    cell_of,
    comparison_rows,
    load_results,
    title_of,
)
from msrec.launch.reporting.figures import (
    Figure,
    calibration_figure,
    cosine_figure,
    roc_figure,
    scenario_figures,
    score_figure,
    training_figures,
)
from msrec.launch.reporting.run_section import (
    about_data,
    data_rows,
    knowledge_lines,
    plan_rows,
    schema_of,
    slice_tables,
)
from msrec.launch.training.metric_log import LOG_FILE, MetricLog, Points, load_metric_log
from msrec.model.metrics.curves import reliability_curve, roc_curve, score_distribution

CONFIG_FILE = "config.yaml"
MOST_ROWS = 50
"""Rows of an explained user that a page shows."""
RUN_FILES = (CONFIG_FILE, LOG_FILE, RESULTS_FILE)
"""What a run folder may hold for a report."""


def write_report(path: Path | str, runs: Mapping[str, Path | str]) -> Path:
    """Write one page that compares runs, in the given order; the first is the reference.

    What a run folder does not have (no log, not evaluated, no predictions) is left out, and the
    page says so.

    Args:
        path: the HTML file to write.
        runs: name on the page -> run folder.

    Raises:
        FileNotFoundError: a run folder is not there.
        ValueError: there is no run, no run has anything to show, the runs were judged on other
            rows, or a file is broken.
    """
    folders = {name: Path(folder) for name, folder in runs.items()}
    if not folders:
        raise ValueError("a report must have at least one run; got none.")
    for name, folder in folders.items():
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} must be the run folder of {name!r}; it is not there."
            )
    if not any((f / name).is_file() for f in folders.values() for name in RUN_FILES):
        raise ValueError(
            f"{next(iter(folders.values()))} must be a run folder; it has none of "
            f"{', '.join(RUN_FILES)}."
        )
    path = Path(path)
    page = render("msrec.launch.reporting", "report.html", **_content(folders))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, page)


def render(package: str, template: str, *, figures: list[Figure], **content: Any) -> str:
    """A page by a template of a package over `page.html`: one file, all scripts inside."""
    for at, one in enumerate(figures):
        one["id"] = f"figure-{at}"
    drawn = [{key: one[key] for key in ("id", "data", "layout")} for one in figures]
    places = [PackageLoader(name, package_path="") for name in (package, "msrec.launch.reporting")]
    environment = Environment(
        loader=ChoiceLoader(places), autoescape=True, undefined=StrictUndefined
    )
    plotly = Markup(get_plotlyjs())
    shown = environment.get_template(template)
    return shown.render(figures=figures, drawn=drawn, plotly=plotly, **content)


def _content(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Everything the template shows."""
    logs = {name: load_metric_log(folder) for name, folder in folders.items()}
    judged = {n: load_results(f) for n, f in folders.items() if (f / RESULTS_FILE).is_file()}
    pictures, without = _prediction_figures(folders, judged)
    configs = {name: _config(folder) for name, folder in folders.items()}
    curves = training_figures(logs)
    scenarios, not_drawn = scenario_figures(logs)
    explained = {name: load_explanations(folder) for name, folder in folders.items()}
    alike = {n: _alike(found) for n, (_, found) in explained.items() if found is not None}
    figures = [*curves, *scenarios, *pictures, *(one for many in alike.values() for one in many)]
    notes = _notes(logs, judged, without)
    if not_drawn:
        notes.append(f"The curves of {not_drawn} more scenarios are not drawn; see metrics.jsonl.")
    best = any(result.best_possible for result in judged.values())
    tables = ("auc", "log_loss") if judged else ()
    return {
        "runs": list(folders),
        "results": next(iter(judged.values()), None),
        "headline": _headline(judged),
        "comparisons": [
            (TITLES[metric], comparison_rows(judged, metric=metric, best=best, intervals=True))
            for metric in tables
        ],
        "details": {name: _details(result) for name, result in judged.items()},
        "curves": curves,
        "scenarios": scenarios,
        "pictures": pictures,
        "alike": alike,
        "prompts": {
            n: list(zip(found.names, found.prompts, found.texts, strict=True))
            for n, (_, found) in explained.items()
            if found is not None
        },
        "users": {n: [_told(user) for user in users] for n, (users, _) in explained.items()},
        "figures": figures,
        "slices": slice_tables(judged),
        "data": _data(configs),
        "knowledge": {n: lines for n, c in configs.items() if (lines := _knowledge(c))},
        "plans": {n: rows for n, folder in folders.items() if (rows := plan_rows(folder))},
        "differences": _differences(configs),
        "configs": {n: yaml.safe_dump(c, sort_keys=False) for n, c in configs.items() if c},
        "versions": {name: _versions(folder) for name, folder in folders.items()},
        "notes": notes,
    }


def _data(configs: Mapping[str, dict[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """A sentence and a table for each dataset that a run was trained on and that is here."""
    schemas = {}
    for config in configs.values():
        if "dataset" in config and (schema := schema_of(RunConfig.model_validate(config))):
            schemas[config["dataset"]] = schema
    return [(about_data(schema), data_rows(schema)) for schema in schemas.values()]


def _knowledge(config: dict[str, Any]) -> list[str]:
    return knowledge_lines(RunConfig.model_validate(config)) if "dataset" in config else []


def _prediction_figures(
    folders: Mapping[str, Path], judged: Mapping[str, Results]
) -> tuple[list[Figure], list[str]]:
    """Calibration and ROC of the runs whose predictions are still there, and the other runs."""
    said: dict[str, Points] = {}
    ranked: dict[str, Points] = {}
    best: Points | None = None
    spread: list[Figure] = []
    without = []
    for name, result in judged.items():
        folder = folders[name] / "predictions" / result.split
        if not (folder / COMMIT_FILE).is_file():
            without.append(name)
            continue
        found = load_predictions(folder)
        said[name] = reliability_curve(found.score, found.label, found.weight)
        ranked[name] = roc_curve(found.score, found.label, found.weight)
        best = best or best_roc(found)
        edges, shares = score_distribution(found.score, found.label)
        spread.append(
            score_figure(name, edges.tolist(), {n: v.tolist() for n, v in shares.items()})
        )
    drawn = [calibration_figure(said), roc_figure(ranked, best), *spread] if said else []
    return drawn, without


def _headline(judged: Mapping[str, Results]) -> list[tuple[str, str, str]]:
    """Name, AUC and a remark for each run, and for the best possible."""
    first, *_ = [*judged.values(), None]
    if first is None:
        return []
    reference, name_of_first = first.metrics.all.auc, next(iter(judged))
    tiles = []
    for name, result in judged.items():
        auc = result.metrics.all.auc
        remark = "reference"
        if result is not first and auc is not None and reference is not None:
            remark = f"{auc - reference:+.4f} against {name_of_first}"
        tiles.append((name, cell(auc), remark))
    if first.best_possible is not None:
        auc = first.best_possible.all.auc
        tiles.append(("best possible", cell(auc), "the true click probability"))
    return tiles


def _details(result: Results) -> list[list[str]]:
    """All metrics of a run, its head first."""
    groups = [("all", result.metrics.all), *result.metrics.scenarios.items()]
    columns = FIRST if result.is_old else COLUMNS
    head = ["scenario", *(title_of(column, result.k) for column in columns)]
    return [
        head,
        *([n, *(cell_of(m, column, is_line=True) for column in columns)] for n, m in groups),
    ]


def _alike(found: ScenarioExplanation) -> list[Figure]:
    """Heat maps: LLM states beside generated layers, as they are and less their mean."""
    return [
        cosine_figure(name, "Cosine between scenarios.", found.names, cosines)
        for name, cosines in found.matrices()
    ]


def _told(user: UserExplanation) -> dict[str, Any]:
    """What the template shows of a user."""
    rows = [["item", "scenario", "label", *(WAYS[way] for way in user.ways)]]
    rows += [
        [
            row.item,
            row.scenario,
            f"{row.label:.0f}",
            *(cell(getattr(row, way)) for way in user.ways),
        ]
        for row in user.rows[:MOST_ROWS]
    ]
    losses = ", ".join(f"{WAYS[way]} {loss:.4f}" for way, loss in user.log_losses().items())
    return {
        "user": user,
        "rows": rows if user.rows else [],
        "losses": losses,
        "nearest": ", ".join(f"{n.key} ({n.cosine:.3f})" for n in user.nearest),
    }


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def _versions(folder: Path) -> dict[str, str]:
    path = folder / "versions.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _flat(config: Mapping[str, Any], start: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{key}.")
        else:
            flat[start + key] = "none" if value is None else str(value)
    return flat


def _differences(configs: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """Config keys whose values differ between runs, a column a run, the head first; or nothing."""
    flat = [_flat(config) for config in configs.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [[key, *(one.get(key, "not set") for one in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [["key", *configs], *rows] if rows else []


def _notes(
    logs: Mapping[str, MetricLog], judged: Mapping[str, Results], without: list[str]
) -> list[str]:
    """What the page could not show, in words."""
    notes = [
        f"{name}: not evaluated, so that no table has it." for name in logs if name not in judged
    ]
    notes += [f"{name}: {OLD}." for name, result in judged.items() if result.is_old]
    made = {(r.resamples, r.seed) for r in judged.values() if r.resamples}
    notes += [
        f"Intervals of 95 % over users: percentile bootstrap, {resamples:,} resamples, seed {seed}."
        for resamples, seed in sorted(made)
    ]
    notes += [f"{name}: no predictions, so no calibration and ROC." for name in without]
    for name, log in logs.items():
        if not log.steps:
            notes.append(f"{name}: no training log, so no curves.")
        if log.again:
            notes.append(f"{name}: {log.again} steps were logged again after a restart.")
        if log.unreadable:
            notes.append(f"{name}: {log.unreadable} lines of its log cannot be read.")
    return notes


def best_roc(predictions: Predictions) -> Points | None:
    """ROC of the true click probability, where the data knows it."""
    truth = predictions.p_click
    return None if truth is None else roc_curve(truth, predictions.label, predictions.weight)
