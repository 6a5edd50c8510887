"""Report of an experiment: mean AUC of every arm and paired differences between arms."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import polars as pl

from msrec.launch.evaluation.slices import HISTORIES, SLICE_TITLES, bucket_names
from msrec.launch.reporting.figures import Figure, difference_figure
from msrec.launch.reporting.page import Figures, Markdown, Section, render_page
from msrec.tools.experiment.differences import LEVEL, auc_difference
from msrec.tools.experiment.results import (
    markdown_table,
    results_frame,
    select,
    spread,
    with_seeds,
)
from msrec.tools.experiment.sweep import Sweep
from msrec.tools.experiment.trainings import load_cells, settings

SURE_P = 0.01
"""p-value below which the summary counts a difference as sure."""


def write_sweep_report(sweep: Sweep, path: Path) -> str:
    """Writes `results.parquet`, `report.md` and `report.html` to the sweep's folder.

    Args:
        sweep: with at least one evaluated training.
        path: file of the sweep, for the title.

    Returns:
        The text of `report.md`.
    """
    frame = results_frame(map(load_cells, settings(sweep)))
    frame.write_parquet(sweep.out / "results.parquet")
    datasets = [
        _DatasetReport(sweep, name, frame.filter(pl.col("dataset") == name))
        for name in sweep.datasets
    ]
    body = "\n".join([*_introduction(sweep, path), *(line for d in datasets for line in d.lines())])
    text = f"# {path.stem}\n{body}\n"
    (sweep.out / "report.md").write_text(text)
    figures = [figure for dataset in datasets for figure in dataset.figures()]
    sections = [Section("", [Markdown(body), Figures(figures, "wide")])]
    html = render_page(f"msrec experiment: {path.stem}", path.stem, sections)
    (sweep.out / "report.html").write_text(html)
    return text


def _introduction(sweep: Sweep, path: Path) -> Iterator[str]:
    yield ""
    yield (
        f"Made by `msrec experiment {path}`, evaluated on the {sweep.split} split, {sweep.seeds} "
        "seeds. AUC: mean ± standard deviation. Differences: mean over seeds ± half the "
        f"{LEVEL:.0%} interval, p of the paired t-test; the arms of a seed share the seed of the "
        "initialisation and the order of rows. p is not corrected for the number of comparisons."
    )
    yield ""
    for arm, options in sweep.arm_options.items():
        yield f"- **{arm}**: {' '.join(f'`{option}`' for option in options) or 'no overrides'}"


@dataclass(frozen=True)
class _DatasetReport:
    sweep: Sweep
    name: str
    frame: pl.DataFrame
    """Results on the data set, see `results_frame`."""

    @property
    def rows(self) -> Iterator[tuple[str, str]]:
        """Model and arm of each row of a table."""
        return product(self.sweep.models(self.name), self.sweep.arm_options)

    def lines(self) -> Iterator[str]:
        """Yields the section in Markdown."""
        yield from ("", f"## {self.name}")
        if self.frame.is_empty():
            yield from ("", "No training is finished.")
            return
        yield from self._arm_table()
        if summary := list(self._summary()):
            yield from ("", *summary)
        for kind in ("scenario", *HISTORIES):
            yield from self._group_table(kind)

    def figures(self) -> list[Figure]:
        """Returns a figure of the differences to the reference, or none without differences."""
        reference, points = self.sweep.reference, []
        for model, arm in self.rows:
            difference = auc_difference(self.frame, model, arm, reference)
            if arm != reference and difference is not None:
                points.append((model, arm, difference.mean, difference.half_width or 0.0))
        return [difference_figure(self.name, reference, points)] if points else []

    def _arm_table(self) -> Iterator[str]:
        comparisons = self.sweep.comparisons
        others = list(dict.fromkeys(other for _, other in comparisons))
        table = []
        for model, arm in self.rows:
            seeds = select(self.frame, model, arm)
            if seeds.is_empty():
                table.append([model, arm, "not run"])
                continue
            row = [model, with_seeds(arm, len(seeds), self.sweep.seeds)]
            row += [spread(seeds[metric]) for metric in ("auc", "log_loss", "gauc")]
            for other in others:
                is_compared = (arm, other) in comparisons
                difference = auc_difference(self.frame, model, arm, other) if is_compared else None
                row.append(str(difference or ""))
            table.append([*row, f"{seeds['seconds'].sum() / 60:.1f}"])
        head = ["backbone", "arm", "AUC", "log loss", "GAUC"]
        return markdown_table([*head, *(f"AUC − {other}" for other in others), "minutes"], table)

    def _summary(self) -> Iterator[str]:
        """Yields for each comparison the number of models on which the arm is better or worse."""
        for arm, other in self.sweep.comparisons:
            of_models = [
                auc_difference(self.frame, model, arm, other)
                for model in self.sweep.models(self.name)
            ]
            known = [difference for difference in of_models if difference is not None]
            sure = [d.mean for d in known if d.p is not None and d.p < SURE_P]
            if known:
                yield (
                    f"- {arm} above {other}: {sum(d.mean > 0 for d in known)} of {len(known)} "
                    f"backbones, {sum(mean > 0 for mean in sure)} with p < .01; below it with "
                    f"p < .01: {sum(mean < 0 for mean in sure)}"
                )

    def _group_table(self, kind: str) -> Iterator[str]:
        """Yields the AUC of the reference and the differences to it, for each group of rows."""
        reference, of_kind = self.sweep.reference, self.frame.filter(pl.col("kind") == kind)
        groups = {
            str(name): rows for (name,), rows in of_kind.group_by("group", maintain_order=True)
        }
        names = sorted(groups, key=bucket_names().index) if kind in HISTORIES else list(groups)
        if not names:
            return
        table = []
        for model, arm in self.rows:
            row = []
            for group in ((kind, name) for name in names):
                if arm == reference:
                    row.append(spread(select(self.frame, model, arm, group)["auc"]))
                else:
                    difference = auc_difference(self.frame, model, arm, reference, group)
                    row.append(str(difference or ""))
            if any(row):
                table.append([model, arm, *row])
        best = [groups[name]["best_auc"].drop_nulls() for name in names]
        if all(len(values) for values in best):
            table.append(["", "best possible", *(f"{values[0]:.4f}" for values in best)])
        yield from ("", f"AUC by {SLICE_TITLES.get(kind, kind)}, difference to {reference}:")
        # The number of rows is that of the first training.
        titles = [f"{name} ({groups[name]['rows'][0]:,} rows)" for name in names]
        yield from markdown_table(["backbone", "arm", *titles], table)
