"""Is one run better than another on the same rows? Paired differences over users, corrected."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from scipy.special import stdtr, stdtrit

from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split
from msrec.launch.evaluation.evaluate import predictions_folder
from msrec.launch.evaluation.predictions import COMMIT_FILE, Predictions, load_predictions
from msrec.launch.evaluation.results import UNDEFINED, cell, load_results, title_of
from msrec.launch.trained_run import run_of
from msrec.model.metrics.bootstrap import CONFIDENCE, MIN_USERS, jackknife_error
from msrec.model.metrics.exact import Grouping, MetricOptions, sort_rows
from msrec.model.metrics.user_sums import SUMS, UserSums, metric_values

IS_BETTER = {
    **dict.fromkeys(("auc", "average_precision", "rig", "gauc", "gauc_by_user"), 1),
    **dict.fromkeys(("ndcg", "recall"), 1),
    **dict.fromkeys(("log_loss", "ne"), -1),
}
"""Metrics that can be compared; 1 where more is better."""
ALL = "all"
NAMED = 5
"""Scenarios that a verdict names; of more it tells the number."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Part):
    """A metric of two runs on the same rows; what is None is undefined.

    `p` is of the two-sided t-test that the difference is 0; `p_holm` the same, corrected for the
    number of scenarios.
    """

    rows: int
    users: int
    first: float | None
    second: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None


class Comparison(_Part):
    """Two runs on one split: metric -> "all" or a scenario -> difference."""

    dataset: str
    split: str
    names: tuple[str, str]
    checkpoints: tuple[str, str]
    k: int
    metrics: dict[str, dict[str, Difference]]


def predictions_of(path: Path, split: Split, data: AnyPath | None = None) -> Path:
    """The predictions of a run folder or a checkpoint, or the folder itself if it holds some.

    Raises:
        FileNotFoundError: it is none of these.
    """
    if (path / COMMIT_FILE).is_file():
        return path
    run, checkpoint = run_of(path)
    return predictions_folder(run, split, checkpoint, data)


def compare(
    first: Path, second: Path, names: tuple[str, str], k: int = MetricOptions().k
) -> Comparison:
    """Compare two folders of predictions, row by row the same.

    The difference of each metric is taken without each user in turn (the jackknife; above 10,000
    users, without each of as many random groups); its t-interval and p-value follow. p-values of
    scenarios are corrected by Holm's method, which holds whatever their dependence: scenarios share
    users. "all" is no part of that family.

    Raises:
        FileNotFoundError: there are no predictions, or they were not judged.
        ValueError: they are not of the same rows.

    Source:
        AUC: clustered DeLong (DeLong et al., Biometrics 1988; Obuchowski, Biometrics 1997) to order
        1 / users. Holm, Scandinavian Journal of Statistics 1979.
    """
    one, two = load_predictions(first), load_predictions(second)
    results = load_results(first), load_results(second)
    scenarios = [list(found.metrics.scenarios) for found in results]
    _check_same(names, one, two, scenarios)
    judging = MetricOptions(k=k, resamples=0)
    groups = Grouping(scenarios[0], one.scenario)
    sums = []
    for p in (one, two):
        rows = sort_rows(p.score, p.label, p.user, p.weight, judging)
        sums.append([rows.sums(part) for part in (None, *rows.rows_of(groups))])
    found = [differences(*pair) for pair in zip(*sums, strict=True)]
    metrics = {}
    for metric in IS_BETTER:
        whole, *parts = (of_group[metric] for of_group in found)
        corrected = holm([part.p for part in parts])
        each = [
            part.model_copy(update={"p_holm": p}) for part, p in zip(parts, corrected, strict=True)
        ]
        metrics[metric] = {ALL: whole, **dict(zip(scenarios[0], each, strict=True))}
    return Comparison(
        dataset=one.commit.dataset,
        split=one.commit.split,
        names=names,
        checkpoints=(one.commit.checkpoint, two.commit.checkpoint),
        k=k,
        metrics=metrics,
    )


def differences(first: UserSums, second: UserSums) -> dict[str, Difference]:
    """Each metric's difference over one group of rows, from the sums of both runs."""
    totals = [sums.table.sum(axis=0) for sums in (first, second)]
    values = [metric_values(total, total) for total in totals]
    without = [
        metric_values(total - sums.table, total)
        for total, sums in zip(totals, (first, second), strict=True)
    ]
    count = {name: int(totals[0][SUMS.index(name)]) for name in ("negatives", "positives")}
    users = sum(int(totals[0][SUMS.index(name)]) for name in ("users", "left_out"))
    num = len(first.blocks)
    found = {}
    for metric in IS_BETTER:
        one, two = (float(value[metric]) for value in values)
        facts: dict[str, Any] = {
            "rows": sum(count.values()),
            "users": users,
            "first": one if np.isfinite(one) else None,
            "second": two if np.isfinite(two) else None,
        }
        apart = without[1][metric] - without[0][metric]
        if num >= MIN_USERS and np.isfinite(one) and np.isfinite(apart).all():
            facts |= _tested(two - one, jackknife_error(apart), num - 1)
        elif np.isfinite(two - one):
            facts["difference"] = two - one
        found[metric] = Difference(**facts)
    return found


def _tested(difference: float, error: float, freedom: int) -> dict[str, Any]:
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * error
    is_zero = abs(difference) <= 1e-12 and error <= 1e-12  # scores that rank alike
    p = 1.0 if is_zero else float(2 * stdtr(freedom, -abs(difference) / error)) if error else 0.0
    return {
        "difference": difference,
        "interval": (difference - half, difference + half),
        "p": p,
    }


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number; undefined ones are no tests.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, (p, at) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[at] = least
    return corrected


def verdict(found: Comparison, metric: str = "auc") -> str:
    """One sentence that may be quoted."""
    whole, *_ = found.metrics[metric].values()
    title, (first, second) = title_of(metric, found.k), found.names
    where = f"{found.dataset}, {found.split}"
    if whole.p is None or whole.difference is None or whole.interval is None:
        return (
            f"{second} and {first} cannot be compared in {title} on {where}: it is undefined, or "
            f"there are fewer than {MIN_USERS} users."
        )
    low, high = whole.interval
    told = (
        f"{whole.difference:+.4f} over {whole.rows:,} rows of {whole.users:,} users "
        f"(95 % interval {low:+.4f} to {high:+.4f}, p {_p(whole.p)})"
    )
    is_sure = whole.p < 1 - CONFIDENCE
    better = IS_BETTER[metric] * whole.difference > 0
    head = (
        f"{second} is {'better' if better else 'worse'} than {first} in {title} on {where}"
        if is_sure
        else f"{second} and {first} do not differ measurably in {title} on {where}"
    )
    scenarios = {name: part for name, part in found.metrics[metric].items() if name != ALL}
    return f"{head}: {told}; {_by_scenario(scenarios, metric)}."


def _by_scenario(scenarios: Mapping[str, Difference], metric: str) -> str:
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, part in scenarios.items():
        kinds[_kind(part, metric)].append(name)
    told = ", ".join(f"{kind} in {_names(names)}" for kind, names in kinds.items() if names)
    tests = sum(part.p is not None for part in scenarios.values())
    return f"by scenario, with Holm's correction for {tests}: {told}"


def _kind(part: Difference, metric: str) -> str:
    p = part.p if part.p_holm is None else part.p_holm
    if p is None or part.difference is None or p >= 1 - CONFIDENCE:
        return "undecided"
    return "better" if IS_BETTER[metric] * part.difference > 0 else "worse"


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= NAMED else f"{len(names)} scenarios"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def differences_table(found: Comparison, metric: str = "auc") -> Table:
    """A row for all rows and one for each scenario."""
    title = f"{title_of(metric, found.k)}: {found.dataset}, {found.split}"
    table = Table(title=title)
    table.add_column("scenario")
    for head in (*found.names, "difference", "95 % interval", "p", "p, Holm", "rows", "users"):
        table.add_column(head, justify="right")
    table.add_column(found.names[1])
    for name, part in found.metrics[metric].items():
        interval = part.interval
        cells = [
            cell(part.first),
            cell(part.second),
            UNDEFINED if part.difference is None else f"{part.difference:+.4f}",
            UNDEFINED if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}",
            UNDEFINED if part.p is None else _p(part.p).removeprefix("= "),
            "" if part.p_holm is None else _p(part.p_holm).removeprefix("= "),
            cell(part.rows),
            cell(part.users),
            _kind(part, metric),
        ]
        table.add_row(name, *cells, end_section=name == ALL)
    table.caption = (
        "Paired over users. It tells of these two trained models; another seed is another model."
    )
    return table


def _check_same(
    names: tuple[str, str], one: Predictions, two: Predictions, scenarios: list[list[str]]
) -> None:
    """Both must be of the same rows.

    Raises:
        ValueError: they are not; names what differs.
    """
    start = f"{names[0]} and {names[1]} must have scored the same rows"
    advice = "Evaluate both on the same data and split."
    for what, first, second in (
        ("the dataset", one.commit.dataset, two.commit.dataset),
        ("the split", one.commit.split, two.commit.split),
        ("the number of rows", len(one.row_id), len(two.row_id)),
        ("the scenarios", ", ".join(scenarios[0]), ", ".join(scenarios[1])),
    ):
        if first != second:
            raise ValueError(f"{start}; {what} differs: {first} and {second}. {advice}")
    for column in ("row_id", "label", "user", "scenario", "weight"):
        values: tuple[NDArray[np.generic], NDArray[np.generic]]
        values = getattr(one, column), getattr(two, column)
        differs = values[0] != values[1]
        if differs.any():
            at = int(np.argmax(differs))
            told = "" if column in ("user", "row_id") else f": {values[0][at]} and {values[1][at]}"
            raise ValueError(
                f"{start}; column {column} differs in {int(differs.sum()):,} rows, first in row_id "
                f"{one.row_id[at]}{told}. {advice}"
            )
