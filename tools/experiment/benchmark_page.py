"""Page of the benchmark: tables of each data set, published figures, and what tuning chose."""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from msrec.tools.bench.harness.report import processor_name
from msrec.tools.experiment.results import (
    Group,
    group_metrics,
    markdown_table,
    seed_values,
    spread,
    with_seeds,
)
from msrec.tools.experiment.sweep import PublishedAUC, Sweep, SweepDataset
from msrec.tools.experiment.trainings import SettingCells, load_cells, settings
from msrec.tools.experiment.tuning import START, best_trial, search_space

LONG_TRAINING_S = 120
BENCHMARK_COMMAND = "msrec bench table RAW"


def benchmark_page(sweep: Sweep, everything: Sweep) -> str:
    """Returns the page as Markdown.

    Args:
        sweep: a tuned sweep without arms, of which trainings are finished.
        everything: the whole benchmark; the page names the data sets that `sweep` leaves out.
    """
    loaded = [load_cells(setting) for setting in settings(sweep)]
    left_out = [d.title for name, d in everything.datasets.items() if name not in sweep.datasets]
    lines = list(_introduction(sweep, left_out, loaded))
    for name, dataset in sweep.datasets.items():
        lines += ["", f"## {dataset.title}", "", dataset.about]
        lines += _tables(dataset, [cells for cells in loaded if cells.setting.dataset == name])
    return "\n".join(lines) + "\n"


def _introduction(
    sweep: Sweep, left_out: Sequence[str], loaded: Sequence[SettingCells]
) -> Iterator[str]:
    only = "".join(f" --benchmark {name}" for name in sweep.datasets) if left_out else ""
    options = f"--trials {sweep.trials} --seeds {sweep.seeds} --jobs 2{only}"
    yield from ("# Benchmark", "", "Made by this command:", "", "```sh")
    yield f"{BENCHMARK_COMMAND} {options} --page docs/results/benchmark.md"
    yield from ("```", "")
    if left_out:
        names = "; ".join(left_out)
        yield f"**Not run for this page:** {names}; without `--benchmark`, all are run."
        yield ""
    yield sweep.about
    ranges = [[n, _range(values), f"{START[n]:g}"] for n, values in search_space().items()]
    yield from markdown_table(["tuned", "range", "first trial"], ranges)
    seconds = [cell.seconds for cells in loaded for cell in cells.finished]
    long = sum(duration > LONG_TRAINING_S for duration in seconds)
    yield ""
    yield (
        f"{sweep.trials} trials and {sweep.seeds} seeds per model and data set, {len(seconds)} "
        f"trainings in all; the longest took {max(seconds):.0f} s, {long} more than "
        f"{LONG_TRAINING_S} s. rows/s: {sweep.timed_steps} steps on one core of "
        f"{processor_name()}."
    )


def _range(distribution: Any) -> str:
    """Returns the values of one of Optuna's distributions as text."""
    if hasattr(distribution, "choices"):
        return ", ".join(f"{choice:g}" for choice in distribution.choices)
    steps = f"steps of {distribution.step:g}" if distribution.step else "log-uniform"
    return f"{distribution.low:g} to {distribution.high:g}, {steps}"


def _tables(dataset: SweepDataset, models: Sequence[SettingCells]) -> Iterator[str]:
    evaluated = [cells for cells in models if cells.evaluated]
    if not evaluated:
        yield from ("", "No training is finished.")
        return
    first = next(iter(evaluated[0].evaluated.values()))
    scenarios = [group for group in group_metrics(first) if group[0] == "scenario"]
    names = [name for _, name in scenarios]
    yield from _model_table(models, scenarios, dataset.published)
    yield from ("", "Log loss per scenario:")
    losses = [
        [cells.setting.model, *(spread(cells, "log_loss", group) for group in scenarios)]
        for cells in evaluated
    ]
    yield from markdown_table(["model", *names], losses)
    if dataset.published is not None:
        yield from ("", _comparison(dataset.published, evaluated))
    yield from ("", "<details><summary>What was chosen, by validation AUC</summary>")
    head = ["model", *START, "best trial", "trials' AUC", "epochs"]
    yield from markdown_table(head, map(_tuned_row, evaluated))
    yield from ("", "</details>")


def _model_table(
    models: Sequence[SettingCells], scenarios: Sequence[Group], published: PublishedAUC | None
) -> Iterator[str]:
    rows = []
    for cells in models:
        model, evaluated = cells.setting.model, list(cells.evaluated.values())
        if not evaluated:
            rows.append([model, "not run"])
            continue
        row = [with_seeds(model, cells), spread(cells, "auc")]
        if published is not None:
            row.append(f"{published.auc[model]:.4f}" if model in published.auc else "")
        row += [spread(cells, "log_loss"), *(spread(cells, "auc", group) for group in scenarios)]
        row += [f"{evaluated[0].parameters:,}", f"{evaluated[0].table_parameters:,}"]
        row.append("".join(f"{cell.rows_per_s:,.0f}" for cell in cells.speed if cell))
        row.append(f"{sum(cell.seconds for cell in cells.finished) / 60:.1f}")
        rows.append(row)
    head = ["model", "AUC", *(["published"] if published else []), "log loss"]
    head += [f"AUC {name}" for _, name in scenarios]
    return markdown_table(
        [*head, "dense parameters", "table parameters", "rows/s", "minutes"], rows
    )


def _comparison(published: PublishedAUC, evaluated: Sequence[SettingCells]) -> str:
    """Returns how many models reach their published AUC, and the names of the others."""
    below = []
    compared = [cells for cells in evaluated if cells.setting.model in published.auc]
    for cells in compared:
        model = cells.setting.model
        auc = mean(auc or 0.0 for auc in seed_values(cells, "auc").values())
        if auc < published.auc[model]:
            below.append(f"{model} ({auc:.4f} < {published.auc[model]:.4f})")
    names = f"; below it: {', '.join(below)}" if below else ""
    return (
        f"Published: {published.source}. Of the {len(compared)} models with a published AUC, "
        f"{len(compared) - len(below)} reach it here{names}."
    )


def _tuned_row(cells: SettingCells) -> list[str]:
    choice = cells.choice or {}
    aucs = [cell.valid for cell in cells.trials if cell and cell.valid is not None]
    best = cells.trials.index(best_trial(cells.trials))
    row = [cells.setting.model, *(f"{choice[name]:.3g}" for name in START)]
    row += [str(best), f"{min(aucs):.4f} to {max(aucs):.4f}"]
    return [*row, f"{mean(cell.epochs for cell in cells.evaluated.values()):.1f}"]
