"""The results of a sweep: every figure as Parquet, means and paired differences as pages."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
from scipy import stats

from msrec.launch.evaluation.slices import EDGES, HISTORIES
from msrec.launch.reporting.figures import Figure, difference_figure
from msrec.launch.reporting.page import Figures, Markdown, Section, render_page
from msrec.model.metrics.definitions import METRIC_NAMES, Metrics, ScenarioMetrics
from msrec.tools.experiment.published import spread
from msrec.tools.experiment.sweep import Arm, Sweep

ALL = ("all", "all")
LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference over seeds, its interval and p-value (two-sided t-test).

    Fields are None where they are undefined: with one seed, or when all differences are equal.
    """

    mean: float
    half_width: float | None
    p: float | None

    def __str__(self) -> str:
        """As the tables show it.

        Example:
            >>> str(paired([0.81, 0.82, 0.83], [0.80, 0.80, 0.80]))
            '+0.0200 ± 0.0248 (p = .074)'
        """
        if self.half_width is None:
            return f"{self.mean:+.4f}"
        p = "" if self.p is None else f" ({_p_value(self.p)})"
        return f"{self.mean:+.4f} ± {self.half_width:.4f}{p}"


def paired(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Differences of runs that share seed, data and order of rows.

    Source:
        scipy.stats.ttest_rel.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    average, number = mean(differences), len(differences)
    if number < 2:
        return Difference(average, None, None)
    error = stdev(differences) / math.sqrt(number)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * error
    p = float(stats.ttest_rel(values, reference).pvalue) if error else None
    return Difference(average, half_width, p)


def write_reports(sweep: Sweep, every: Sequence[Arm], path: Path) -> str:
    """`results.parquet`, `report.md` and `report.html` in the sweep's folder; the Markdown."""
    frame = results_frame(every)
    frame.write_parquet(sweep.out / "results.parquet")
    text = "\n".join(_page(sweep, frame, path)) + "\n"
    (sweep.out / "report.md").write_text(text)
    (sweep.out / "report.html").write_text(_html(sweep, frame, text))
    return text


def results_frame(every: Sequence[Arm]) -> pl.DataFrame:
    """One row for each training and group of rows: names, seed, and the fields of `Metrics`.

    `kind` is all, scenario, or a slice; `group` its scenario or bucket. Intervals over users are
    left out: what is told here is how trainings differ.
    """
    rows: list[dict[str, Any]] = []
    for one in every:
        cell = one.cell()
        if cell is None or cell.results is None:
            continue
        results = cell.results
        groups = _all_groups(results.metrics, results.slices)
        best: dict[tuple[str, str], Metrics] = {}
        if results.best_possible is not None:
            best = _all_groups(results.best_possible, results.best_slices)
        for (kind, group), metrics in groups.items():
            names = {"dataset": one.dataset, "backbone": one.backbone, "arm": one.arm}
            where = {"seed": one.seed, "split": results.split, "kind": kind, "group": group}
            about = {
                "parameters": cell.parameters,
                "seconds": cell.seconds,
                "best_auc": best[kind, group].auc if (kind, group) in best else None,
            }
            values = {name: getattr(metrics, name) for name in METRIC_NAMES}
            rows.append(names | where | values | about)
    if not rows:
        raise ValueError("a report must have at least one judged training; there is none.")
    return pl.DataFrame(rows, infer_schema_length=None)


def _all_groups(
    metrics: ScenarioMetrics, slices: dict[str, dict[str, Metrics]]
) -> dict[tuple[str, str], Metrics]:
    """(kind, group) -> metrics."""
    groups = {ALL: metrics.all}
    groups |= {("scenario", name): found for name, found in metrics.scenarios.items()}
    for kind, buckets in slices.items():
        groups |= {(kind, bucket): found for bucket, found in buckets.items()}
    return groups


def _page(sweep: Sweep, frame: pl.DataFrame, path: Path) -> Iterator[str]:
    yield f"# {path.stem}"
    yield ""
    yield (
        f"Made by `msrec experiment {path}`: judged on the {sweep.split} split, {sweep.seeds} "
        f"seeds. AUC: mean ± standard deviation. Differences: mean over seeds ± half the "
        f"{LEVEL:.0%} interval, p of the paired t-test; arms of a seed share initialisation seed "
        "and order of rows. p is not corrected for the number of comparisons."
    )
    yield ""
    for arm, options in sweep.arm_options.items():
        yield f"- **{arm}**: {' '.join(f'`{option}`' for option in options) or 'nothing added'}"
    for dataset in sweep.datasets:
        part = frame.filter(pl.col("dataset") == dataset)
        yield from _dataset(sweep, dataset, part)


def _dataset(sweep: Sweep, dataset: str, frame: pl.DataFrame) -> Iterator[str]:
    yield ""
    yield f"## {dataset}"
    if frame.is_empty():
        yield ""
        yield "No training is finished."
        return
    pairs = sweep.comparisons
    head = ["backbone", "arm", "AUC", "log loss", "GAUC"]
    head += [f"AUC − {name}" for name in dict.fromkeys(other for _, other in pairs)]
    head += ["minutes"]
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for backbone in sweep.datasets[dataset].backbones:
        for arm in sweep.arm_options:
            found = _of(frame, backbone, arm, *ALL)
            if found.is_empty():
                yield f"| {backbone} | {arm} | not run |{' |' * (len(head) - 3)}"
                continue
            row = [backbone, arm + _seeds(found, sweep)]
            row += [_spread(found[m]) for m in ("auc", "log_loss", "gauc")]
            for other in dict.fromkeys(other for _, other in pairs):
                told = ""
                if (arm, other) in pairs:
                    told = _told(difference(frame, backbone, arm, other, *ALL))
                row.append(told)
            row.append(f"{found['seconds'].sum() / 60:.1f}")
            yield f"| {' | '.join(row)} |"
    yield from _verdict(sweep, dataset, frame)
    for kind in ("scenario", *HISTORIES):
        yield from _groups(sweep, dataset, frame, kind)


def _verdict(sweep: Sweep, dataset: str, frame: pl.DataFrame) -> Iterator[str]:
    """On how many backbones an arm is above another, and on how many surely so."""
    backbones = sweep.datasets[dataset].backbones
    lines = []
    for arm, other in sweep.comparisons:
        found = [difference(frame, backbone, arm, other, *ALL) for backbone in backbones]
        known = [d for d in found if d is not None]
        above = sum(d.mean > 0 for d in known)
        sure = sum(d.mean > 0 and d.p is not None and d.p < 0.01 for d in known)
        below = sum(d.mean < 0 and d.p is not None and d.p < 0.01 for d in known)
        if known:
            lines.append(
                f"- {arm} above {other}: {above} of {len(known)} backbones, {sure} with p < .01; "
                f"below it with p < .01: {below}"
            )
    if lines:
        yield ""
        yield from lines


def _groups(sweep: Sweep, dataset: str, frame: pl.DataFrame, kind: str) -> Iterator[str]:
    """Differences of each group of rows, with as many rows as the first training counted."""
    of_kind = frame.filter(pl.col("kind") == kind)
    counted = dict(of_kind.group_by("group").agg(pl.col("rows").first()).iter_rows())
    names = of_kind["group"].unique(maintain_order=True).to_list()
    if kind in HISTORIES:
        names.sort(key=_bucket_order)
    if not names:
        return
    title = "scenario" if kind == "scenario" else f"training rows of the {kind.split('_')[0]}"
    yield ""
    yield f"AUC by {title}, difference to {sweep.reference}:"
    yield ""
    yield f"| backbone | arm | {' | '.join(f'{n} ({counted[n]:,} rows)' for n in names)} |"
    yield f"|{'---|' * (len(names) + 2)}"
    for backbone in sweep.datasets[dataset].backbones:
        for arm in sweep.arm_options:
            if arm == sweep.reference:
                cells = [_spread(_of(frame, backbone, arm, kind, name)["auc"]) for name in names]
            else:
                cells = [
                    _told(difference(frame, backbone, arm, sweep.reference, kind, name))
                    for name in names
                ]
            if any(cells):
                yield f"| {backbone} | {arm} | {' | '.join(cells)} |"
    best = [of_kind.filter(pl.col("group") == name)["best_auc"].drop_nulls() for name in names]
    if all(len(found) for found in best):
        shown = " | ".join(f"{found[0]:.4f}" for found in best)
        yield f"| | best possible | {shown} |"


def difference(
    frame: pl.DataFrame, backbone: str, arm: str, other: str, kind: str, group: str
) -> Difference | None:
    """AUC of an arm less that of another, over the seeds that both have; None without any."""
    one, two = (_of(frame, backbone, name, kind, group) for name in (arm, other))
    both = one.join(two, on="seed", suffix="_other").drop_nulls(["auc", "auc_other"]).sort("seed")
    return None if both.is_empty() else paired(both["auc"].to_list(), both["auc_other"].to_list())


def _of(frame: pl.DataFrame, backbone: str, arm: str, kind: str, group: str) -> pl.DataFrame:
    wanted = {"backbone": backbone, "arm": arm, "kind": kind, "group": group}
    return frame.filter(*(pl.col(name) == value for name, value in wanted.items()))


def _seeds(found: pl.DataFrame, sweep: Sweep) -> str:
    return "" if len(found) == sweep.seeds else f" ({len(found)} of {sweep.seeds} seeds)"


def _spread(values: pl.Series) -> str:
    known = values.drop_nulls().to_list()
    return spread(known) if known else ("undefined" if len(values) else "")


def _told(found: Difference | None) -> str:
    return "" if found is None else str(found)


def _p_value(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _bucket_order(name: str) -> int:
    return next(at for at, low in enumerate(EDGES) if name.rstrip("+").split("-")[0] == str(low))


def _html(sweep: Sweep, frame: pl.DataFrame, text: str) -> str:
    figures: list[Figure] = []
    for dataset in sweep.datasets:
        part = frame.filter(pl.col("dataset") == dataset)
        points = []
        for backbone in sweep.datasets[dataset].backbones:
            for arm in sweep.arm_options:
                if arm == sweep.reference or part.is_empty():
                    continue
                found = difference(part, backbone, arm, sweep.reference, *ALL)
                if found is not None:
                    points.append((backbone, arm, found.mean, found.half_width or 0.0))
        if points:
            figures.append(difference_figure(dataset, sweep.reference, points))
    heading, _, body = text.partition("\n")
    title = heading.removeprefix("# ")
    section = Section("", [Markdown(body), Figures(figures, "wide")])
    return render_page(f"msrec experiment: {title}", title, [section])
