"""Page of the benchmark: a table per data set, published figures, and what tuning chose."""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import polars as pl

from msrec.tools.bench.harness.report import processor_name
from msrec.tools.experiment.results import (
    ALL,
    Group,
    markdown_table,
    results_frame,
    select,
    spread,
    with_seeds,
)
from msrec.tools.experiment.sweep import PublishedAUC, Sweep
from msrec.tools.experiment.trainings import SettingCells, load_cells, settings
from msrec.tools.experiment.tuning import START, search_space

LONG_TRAINING_S = 120


def benchmark_page(sweep: Sweep, left_out: Sequence[str]) -> str:
    """Returns the page as Markdown.

    Args:
        sweep: a tuned sweep without arms, with at least one evaluated training.
        left_out: titles of data sets of the benchmark that are not in `sweep`.
    """
    loaded = [load_cells(setting) for setting in settings(sweep)]
    frame = results_frame(loaded)
    lines = [*_introduction(sweep, left_out, loaded)]
    for name in sweep.datasets:
        of_dataset = [cells for cells in loaded if cells.setting.dataset == name]
        lines += _section(sweep, name, of_dataset, frame.filter(pl.col("dataset") == name))
    return "\n".join(lines) + "\n"


def _introduction(
    sweep: Sweep, left_out: Sequence[str], loaded: Sequence[SettingCells]
) -> Iterator[str]:
    only = "".join(f" --benchmark {name}" for name in sweep.datasets) if left_out else ""
    options = f"--trials {sweep.trials} --seeds {sweep.seeds} --jobs 2{only}"
    seconds = [cell.seconds for cells in loaded for cell in cells.finished]
    long = sum(duration > LONG_TRAINING_S for duration in seconds)
    yield "# Benchmark"
    yield ""
    yield "```sh"
    yield f"msrec bench table RAW {options} --page docs/results/benchmark.md"
    yield "```"
    yield ""
    if left_out:
        yield f"**Not run for this page:** {'; '.join(left_out)}."
        yield ""
    yield sweep.about
    ranges = [[n, _range(values), f"{START[n]:g}"] for n, values in search_space().items()]
    yield from markdown_table(["tuned", "range", "first trial"], ranges)
    yield ""
    yield (
        f"{sweep.trials} trials and {sweep.seeds} seeds per model and data set, "
        f"{len(seconds)} trainings in all; the longest took {max(seconds):.0f} s, {long} more than "
        f"{LONG_TRAINING_S} s. rows/s is measured on {sweep.timed_steps} steps on one core of "
        f"{processor_name()}."
    )


def _range(distribution: Any) -> str:
    """Returns the values of one of Optuna's distributions as text."""
    if hasattr(distribution, "choices"):
        return ", ".join(f"{choice:g}" for choice in distribution.choices)
    steps = f"steps of {distribution.step:g}" if distribution.step else "log-uniform"
    return f"{distribution.low:g} to {distribution.high:g}, {steps}"


def _section(
    sweep: Sweep, name: str, loaded: Sequence[SettingCells], frame: pl.DataFrame
) -> Iterator[str]:
    dataset = sweep.datasets[name]
    yield from ("", f"## {dataset.title or name}", "", dataset.about)
    if frame.is_empty():
        yield from ("", "No training is finished.")
        return
    groups = frame.filter(pl.col("kind") == "scenario")["group"].unique(maintain_order=True)
    scenarios = [("scenario", name) for name in groups]
    evaluated = [cells for cells in loaded if cells.evaluated]
    yield from _model_table(loaded, frame, scenarios, dataset.published)
    yield from ("", "Log loss per scenario:")
    losses = [
        [cells.setting.model, *_spreads(cells, frame, "log_loss", scenarios)] for cells in evaluated
    ]
    yield from markdown_table(["model", *groups], losses)
    if dataset.published is not None:
        yield from ("", _comparison(dataset.published, frame))
    yield from ("", "<details><summary>Values chosen by the validation AUC of the trials</summary>")
    head = ["model", *START, "best trial", "trials' AUC", "epochs"]
    yield from markdown_table(head, map(_tuned_row, evaluated))
    yield from ("", "</details>")


def _model_table(
    loaded: Sequence[SettingCells],
    frame: pl.DataFrame,
    scenarios: Sequence[Group],
    published: PublishedAUC | None,
) -> Iterator[str]:
    head = ["model", "AUC", *(["published"] if published else []), "log loss"]
    head += [f"AUC {scenario}" for _, scenario in scenarios]
    head += ["dense parameters", "table parameters", "rows/s", "minutes"]
    rows = []
    for cells in loaded:
        model, evaluated = cells.setting.model, cells.evaluated
        if not evaluated:
            rows.append([model, "not run"])
            continue
        row = [with_seeds(model, len(evaluated), len(cells.seeds))]
        row += _spreads(cells, frame, "auc", [ALL])
        if published is not None:
            row.append(f"{published.auc[model]:.4f}" if model in published.auc else "")
        row += _spreads(cells, frame, "log_loss", [ALL])
        row += _spreads(cells, frame, "auc", scenarios)
        row += [f"{evaluated[0].parameters:,}", f"{evaluated[0].table_parameters:,}"]
        row.append("".join(f"{cell.rows_per_s:,.0f}" for cell in cells.speed if cell))
        row.append(f"{sum(cell.seconds for cell in cells.finished) / 60:.1f}")
        rows.append(row)
    return markdown_table(head, rows)


def _spreads(
    cells: SettingCells, frame: pl.DataFrame, metric: str, groups: Sequence[Group]
) -> list[str]:
    setting = cells.setting
    return [spread(select(frame, setting.model, setting.arm, group)[metric]) for group in groups]


def _comparison(published: PublishedAUC, frame: pl.DataFrame) -> str:
    """Returns the number of models that reach their published AUC, and the names of the others."""
    of_all_rows = frame.filter(pl.col("kind") == "all")
    means = of_all_rows.group_by("backbone", maintain_order=True).agg(pl.col("auc").mean())
    aucs = {model: auc for model, auc in means.iter_rows() if model in published.auc}
    below = [
        f"{model} ({auc:.4f} < {published.auc[model]:.4f})"
        for model, auc in aucs.items()
        if auc < published.auc[model]
    ]
    text = f"Published: {published.source}. Of the {len(aucs)} models with a published AUC, "
    text += f"{len(aucs) - len(below)} reach it here"
    return text + (f"; below it: {', '.join(below)}." if below else ".")


def _tuned_row(cells: SettingCells) -> list[str]:
    choice = cells.choice or {}
    aucs = [c.valid_auc for c in cells.trials if c is not None and c.valid_auc is not None]
    row = [cells.setting.model, *(f"{choice[name]:.3g}" for name in START)]
    row += [str(aucs.index(max(aucs))), f"{min(aucs):.4f} to {max(aucs):.4f}"]
    return [*row, f"{mean(cell.epochs for cell in cells.evaluated):.1f}"]
