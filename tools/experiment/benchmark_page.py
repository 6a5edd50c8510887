"""Page of the benchmark: a table per data set, published figures, and what tuning chose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import polars as pl

from msrec.tools.bench.harness.report import processor_name
from msrec.tools.experiment.results import (
    markdown_table,
    results_frame,
    select,
    spread,
    with_seeds,
)
from msrec.tools.experiment.sweep import Sweep, SweepDataset
from msrec.tools.experiment.trainings import SettingCells, load_cells, settings
from msrec.tools.experiment.tuning import START, search_space

LONG_TRAINING_S = 120


def benchmark_page(sweep: Sweep, everything: Sweep) -> str:
    """Returns the page as Markdown.

    Args:
        sweep: a tuned sweep without arms, with at least one evaluated training.
        everything: the whole benchmark; the page names the data sets that `sweep` leaves out.
    """
    loaded = [load_cells(setting) for setting in settings(sweep)]
    frame = results_frame(loaded)
    left_out = [d.title for name, d in everything.datasets.items() if name not in sweep.datasets]
    lines = list(_introduction(sweep, left_out, loaded))
    for name, dataset in sweep.datasets.items():
        of_dataset = [cells for cells in loaded if cells.setting.dataset == name]
        part = _DatasetTables(dataset, of_dataset, frame.filter(pl.col("dataset") == name))
        lines += ["", f"## {dataset.title}", "", dataset.about, *part.lines()]
    return "\n".join(lines) + "\n"


def _introduction(
    sweep: Sweep, left_out: Sequence[str], loaded: Sequence[SettingCells]
) -> Iterator[str]:
    only = "".join(f" --benchmark {name}" for name in sweep.datasets) if left_out else ""
    options = f"--trials {sweep.trials} --seeds {sweep.seeds} --jobs 2{only}"
    yield from ("# Benchmark", "", "```sh")
    yield f"msrec bench table RAW {options} --page docs/results/benchmark.md"
    yield from ("```", "")
    if left_out:
        yield from (f"**Not run for this page:** {'; '.join(left_out)}.", "")
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


@dataclass(frozen=True)
class _DatasetTables:
    dataset: SweepDataset
    loaded: Sequence[SettingCells]
    """One for each model."""
    frame: pl.DataFrame
    """Results on the data set, see `results_frame`."""

    def lines(self) -> Iterator[str]:
        """Yields the tables in Markdown."""
        evaluated = [cells for cells in self.loaded if cells.evaluated]
        if not evaluated:
            yield from ("", "No training is finished.")
            return
        of_scenarios = self.frame.filter(pl.col("kind") == "scenario")
        scenarios = of_scenarios["group"].unique(maintain_order=True).to_list()
        yield from self._model_table(scenarios)
        losses = [
            [cells.setting.model, *(self._spread(cells, "log_loss", name) for name in scenarios)]
            for cells in evaluated
        ]
        yield from ("", "Log loss per scenario:", *markdown_table(["model", *scenarios], losses))
        if self.dataset.published is not None:
            yield from self._published()
        head = ["model", *START, "best trial", "trials' AUC", "epochs"]
        yield from ("", "<details><summary>What was chosen, by validation AUC</summary>")
        yield from markdown_table(head, map(_tuned_row, evaluated))
        yield from ("", "</details>")

    def _model_table(self, scenarios: Sequence[str]) -> Iterator[str]:
        published = self.dataset.published
        rows = []
        for cells in self.loaded:
            model, evaluated = cells.setting.model, cells.evaluated
            if not evaluated:
                rows.append([model, "not run"])
                continue
            row = [with_seeds(model, len(evaluated), len(cells.seeds)), self._spread(cells, "auc")]
            if published is not None:
                row.append(f"{published.auc[model]:.4f}" if model in published.auc else "")
            row.append(self._spread(cells, "log_loss"))
            row += [self._spread(cells, "auc", scenario) for scenario in scenarios]
            row += [f"{evaluated[0].parameters:,}", f"{evaluated[0].table_parameters:,}"]
            row.append("".join(f"{cell.rows_per_s:,.0f}" for cell in cells.speed if cell))
            row.append(f"{sum(cell.seconds for cell in cells.finished) / 60:.1f}")
            rows.append(row)
        head = ["model", "AUC", *(["published"] if published else []), "log loss"]
        head += [f"AUC {scenario}" for scenario in scenarios]
        return markdown_table(
            [*head, "dense parameters", "table parameters", "rows/s", "minutes"], rows
        )

    def _spread(self, cells: SettingCells, metric: str, scenario: str | None = None) -> str:
        group = ("all", "all") if scenario is None else ("scenario", scenario)
        return spread(select(self.frame, cells.setting.model, cells.setting.arm, group)[metric])

    def _published(self) -> Iterator[str]:
        """Yields how many models reach their published AUC, and the names of the others."""
        published = self.dataset.published
        assert published is not None
        compared, below = 0, []
        for cells in self.loaded:
            if (model := cells.setting.model) in published.auc and cells.evaluated:
                auc = mean(select(self.frame, model, cells.setting.arm)["auc"])
                compared += 1
                if auc < published.auc[model]:
                    below.append(f"{model} ({auc:.4f} < {published.auc[model]:.4f})")
        names = f"; below it: {', '.join(below)}" if below else ""
        yield ""
        yield (
            f"Published: {published.source}. Of the {compared} models with a published AUC, "
            f"{compared - len(below)} reach it here{names}."
        )


def _tuned_row(cells: SettingCells) -> list[str]:
    choice = cells.choice or {}
    aucs = [cell.valid_auc for cell in cells.trials if cell and cell.valid_auc is not None]
    row = [cells.setting.model, *(f"{choice[name]:.3g}" for name in START)]
    row += [str(aucs.index(max(aucs))), f"{min(aucs):.4f} to {max(aucs):.4f}"]
    return [*row, f"{mean(cell.epochs for cell in cells.evaluated):.1f}"]
