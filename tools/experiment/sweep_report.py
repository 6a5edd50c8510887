"""Report of an experiment: metrics of every arm and paired differences, label by label."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from msrec.data.io.outputs import PAGE, FileKind, check_output, contains
from msrec.data.labels import LabelKind
from msrec.launch.evaluation.slices import HISTORIES, SLICE_TITLES, bucket_names
from msrec.launch.reporting.figures import Figure, difference_figure
from msrec.launch.reporting.page import Figures, Markdown, Section, render_page
from msrec.launch.reporting.result_tables import TITLES
from msrec.model.metrics.definitions import DIRECTION, MAIN_METRIC
from msrec.tools.experiment.results import (
    ALL,
    LEVEL,
    Group,
    PairedDifference,
    best_metrics,
    group_metrics,
    label_kinds,
    markdown_table,
    metric_difference,
    results_frame,
    spread,
    with_seeds,
)
from msrec.tools.experiment.sweep import Sweep
from msrec.tools.experiment.trainings import SettingCells, load_cells, settings

MADE_BY = "Made by `msrec experiment"
ARM_METRICS: dict[LabelKind, tuple[str, ...]] = {
    "binary": ("auc", "log_loss", "gauc"),
    "regression": ("rmse", "mae", "spearman"),
}
"""Kind of a label -> metrics in the table of the arms."""
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
    loaded = [load_cells(setting) for setting in settings(sweep)]
    check_sweep_report(sweep)
    results_frame(loaded).write_parquet(sweep.out / "results.parquet")
    datasets = [_DatasetReport(sweep, name, loaded) for name in sweep.datasets]
    body = "\n".join([*_introduction(sweep, path), *(line for d in datasets for line in d.lines())])
    text = f"# {path.stem}\n{body}\n"
    (sweep.out / "report.md").write_text(text)
    figures = [figure for dataset in datasets for figure in dataset.figures()]
    sections = [Section("", [Markdown(body), Figures(figures, "wide")])]
    html = render_page(f"msrec experiment: {path.stem}", path.stem, sections)
    (sweep.out / "report.html").write_text(html)
    return text


def check_sweep_report(sweep: Sweep) -> None:
    """Refuses files of others in place of the sweep's report.

    Raises:
        ValueError: names the file.
    """
    check_output(sweep.out / "report.md", FileKind("a report of a sweep", contains(MADE_BY)))
    check_output(sweep.out / "report.html", PAGE)


def _introduction(sweep: Sweep, path: Path) -> Iterator[str]:
    yield ""
    yield (
        f"{MADE_BY} {path}`, evaluated on the {sweep.split} split, {sweep.seeds} "
        "seeds. AUC: mean ± standard deviation. Differences: mean over seeds ± half the "
        f"{LEVEL:.0%} interval, p of the paired t-test; the arms of a seed share the seed of the "
        "initialisation and the order of rows. p is not corrected for the number of comparisons."
    )
    yield ""
    for arm, options in sweep.arm_options.items():
        yield f"- **{arm}**: {' '.join(f'`{option}`' for option in options) or 'no overrides'}"


class _DatasetReport:
    """Section of a data set: tables and a figure of each label."""

    def __init__(self, sweep: Sweep, name: str, loaded: Sequence[SettingCells]) -> None:
        self.sweep, self.name = sweep, name
        own = [cells for cells in loaded if cells.setting.dataset == name]
        self.cells = {(cells.setting.model, cells.setting.arm): cells for cells in own}
        evaluated = [cell for cells in own for cell in cells.evaluated.values()]
        kinds = label_kinds(evaluated)
        has_names = len(kinds) > 1
        self.labels = [
            _LabelReport(sweep, name, label if has_names else None, kind, self.cells)
            for label, kind in kinds.items()
        ]

    def lines(self) -> Iterator[str]:
        """Yields the section in Markdown."""
        yield from ("", f"## {self.name}")
        if not self.labels:
            yield from ("", "No training is finished.")
        for label in self.labels:
            yield from label.lines()

    def figures(self) -> list[Figure]:
        """Returns a figure of each label with differences to the reference."""
        return [figure for label in self.labels for figure in label.figures()]


class _LabelReport:
    """Tables and a figure of a label; its name is None if the data set has only one."""

    def __init__(
        self,
        sweep: Sweep,
        dataset: str,
        label: str | None,
        kind: LabelKind,
        cells: dict[tuple[str, str], SettingCells],
    ) -> None:
        self.sweep, self.label, self.kind, self.cells = sweep, label, kind, cells
        self.name = dataset if label is None else f"{dataset}, {label}"
        self.metric = MAIN_METRIC[kind]
        self.title = TITLES[self.metric]

    def difference(
        self, model: str, arm: str, other: str, group: Group = ALL
    ) -> PairedDifference | None:
        """Returns the metric of an arm minus that of another arm, if both have a seed in common."""
        pair = self.cells[model, arm], self.cells[model, other]
        return metric_difference(*pair, self.metric, group, self.label)

    def lines(self) -> Iterator[str]:
        """Yields the tables in Markdown."""
        if self.label is not None:
            yield from ("", f"### {self.label}")
        yield from self._arm_table()
        if summary := list(self._summary()):
            yield from ("", *summary)
        for kind in ("scenario", *HISTORIES):
            yield from self._group_table(kind)

    def figures(self) -> list[Figure]:
        """Returns a figure of the differences to the reference, or none without differences."""
        reference, points = self.sweep.reference, []
        for model, arm in self.cells:
            difference = self.difference(model, arm, reference)
            if arm != reference and difference is not None:
                points.append((model, arm, difference.mean, difference.half_width or 0.0))
        return [difference_figure(self.name, reference, points, self.title)] if points else []

    def _arm_table(self) -> Iterator[str]:
        comparisons = self.sweep.comparisons
        others = list(dict.fromkeys(other for _, other in comparisons))
        metrics = ARM_METRICS[self.kind]
        table = []
        for (model, arm), cells in self.cells.items():
            if not cells.evaluated:
                table.append([model, arm, "not run"])
                continue
            row = [model, with_seeds(arm, cells)]
            row += [spread(cells, metric, label=self.label) for metric in metrics]
            for other in others:
                is_compared = (arm, other) in comparisons
                difference = self.difference(model, arm, other) if is_compared else None
                row.append(str(difference or ""))
            seconds = sum(cell.seconds for cell in cells.evaluated.values())
            table.append([*row, f"{seconds / 60:.1f}"])
        head = ["backbone", "arm", *(TITLES[metric] for metric in metrics)]
        differences = [f"{self.title} − {other}" for other in others]
        return markdown_table([*head, *differences, "minutes"], table)

    def _summary(self) -> Iterator[str]:
        """Yields for each comparison the number of models on which the arm is better or worse."""
        models = self.sweep.models(next(iter(self.cells.values())).setting.dataset)
        above, below = (
            ("above", "below") if DIRECTION[self.metric] > 0 else ("better than", "worse")
        )
        for arm, other in self.sweep.comparisons:
            known = [d for model in models if (d := self.difference(model, arm, other))]
            gains = [DIRECTION[self.metric] * d.mean for d in known]
            pairs = zip(gains, known, strict=True)
            sure = [gain for gain, d in pairs if d.p is not None and d.p < SURE_P]
            if known:
                yield (
                    f"- {arm} {above} {other}: {sum(gain > 0 for gain in gains)} of {len(known)} "
                    f"backbones, {sum(gain > 0 for gain in sure)} with p < .01; {below} it with "
                    f"p < .01: {sum(gain < 0 for gain in sure)}"
                )

    def _group_table(self, kind: str) -> Iterator[str]:
        """Yields the metric of the reference and the differences to it, for each group of rows."""
        # All trainings are evaluated on the same rows, so the first one names all groups.
        evaluated = [cell for cells in self.cells.values() for cell in cells.evaluated.values()]
        first = next(cell for cell in evaluated if group_metrics(cell, self.label))
        of_first, reference = group_metrics(first, self.label), self.sweep.reference
        rows = {name: of.rows for (of_kind, name), of in of_first.items() if of_kind == kind}
        names = sorted(rows, key=bucket_names().index) if kind in HISTORIES else list(rows)
        groups = [(kind, name) for name in names]
        if not groups:
            return
        table = []
        for (model, arm), cells in self.cells.items():
            if arm == reference:
                row = [spread(cells, self.metric, group, self.label) for group in groups]
            else:
                of_groups = [self.difference(model, arm, reference, group) for group in groups]
                row = [str(difference or "") for difference in of_groups]
            if any(row):
                table.append([model, arm, *row])
        best = best_metrics(first, self.label)
        values = [getattr(best[group], self.metric) for group in groups if group in best]
        known = [f"{value:.4f}" for value in values if value is not None]
        if len(known) == len(groups):
            table.append(["", "best possible", *known])
        by = SLICE_TITLES.get(kind, kind)
        yield from ("", f"{self.title} by {by}, difference to {reference}:")
        titles = [f"{name} ({rows[name]:,} rows)" for name in names]
        yield from markdown_table(["backbone", "arm", *titles], table)
