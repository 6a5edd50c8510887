"""`msrec bench evaluate`: metrics of many predictions, against scikit-learn and polars."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from msrec.data.io.outputs import FolderKind, emptied_folder
from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation.exact_results import compute_results, evaluate_predictions
from msrec.launch.evaluation.scored_rows.commit import Commit, write_commit
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.model.metrics.exact import MetricOptions
from msrec.model.metrics.user_sums import EPS
from msrec.tools.bench.harness.measure import (
    Seconds,
    compare_all,
    compare_values,
    interleaved,
    now,
    timed,
)
from msrec.tools.bench.harness.options import Repeats
from msrec.tools.bench.harness.processes import in_own_process, peak_rss

PART_ROWS = 1 << 20
SAMPLED_USERS = 5_000
"""Users whose AUCs scikit-learn computes one by one; the time for all users is extrapolated."""
BENCH_PREDICTIONS = FolderKind(
    "a folder of msrec bench evaluate", ".msrec-bench", (".msrec-bench", "predictions/**")
)
ON_DISK, TENTH = "msrec, rows on disk", "a tenth of the rows"
T = TypeVar("T")
Array = npt.NDArray[Any]
COLUMNS = ["scenario", "label", "score", "user"]


class Measured(NamedTuple):
    """Time to read the predictions, time to compute the metrics, and peak memory in bytes."""

    read: Seconds
    compute: Seconds
    peak_bytes: int


def bench_evaluate(
    rows: Annotated[float, typer.Option(min=1000, help="predictions")] = 1e7,
    users: Annotated[float, typer.Option(min=10, help="users; some have many more rows")] = 1e6,
    scenarios: Annotated[int, typer.Option(min=1, help="number of scenarios")] = 10,
    resamples: Annotated[int, typer.Option(min=1, help="bootstrap samples of msrec")] = 1000,
    repeats: Repeats = 1,
    on_disk_only: Annotated[
        bool, typer.Option(help="only msrec with the rows on disk, against a tenth of the rows")
    ] = False,
    out: Annotated[Path, typer.Option(help="folder for random predictions; emptied first")] = Path(
        "runs/bench_evaluate"
    ),
) -> None:
    """Metrics of many predictions, against scikit-learn and polars.

    Each runs in a process with one thread. msrec computes all that `msrec evaluate` does after
    scoring. scikit-learn computes AUC, average precision and log loss of all rows and of each
    scenario, and once more with the AUC of each user, for GAUC. polars computes the same with
    hand-written expressions.
    """
    # Not imported above: the measured processes import this module, and must do without torch.
    from msrec.tools.bench.harness.report import prepare, report

    on = prepare()
    emptied_folder(out, BENCH_PREDICTIONS)
    folder = out / "predictions"
    schema = _write_predictions(folder, int(rows), int(users), scenarios)
    os.environ["POLARS_MAX_THREADS"] = "1"  # read when a process imports polars
    ways = {
        "msrec": partial(measure_msrec, folder, schema, MetricOptions(resamples=resamples)),
        ON_DISK: partial(measure_on_disk, folder, schema, MetricOptions(resamples=resamples)),
        "msrec without intervals": partial(
            measure_msrec, folder, schema, MetricOptions(resamples=0)
        ),
        "scikit-learn": partial(measure_scikit_learn, folder, scenarios, 0),
        "scikit-learn with GAUC": partial(measure_scikit_learn, folder, scenarios, int(users)),
        "polars": partial(measure_polars, folder, False),
        "polars with GAUC": partial(measure_polars, folder, True),
    }
    if on_disk_only:
        tenth = out / "predictions" / "tenth"
        _write_predictions(tenth, int(rows / 10), int(users / 10), scenarios)
        ways = {
            ON_DISK: ways[ON_DISK],
            TENTH: partial(measure_on_disk, tenth, schema, MetricOptions(resamples=resamples)),
        }
    measured: dict[str, list[Measured]] = {name: [] for name in ways}

    def case(name: str) -> Seconds:
        measured[name].append(in_own_process(ways[name]))
        return measured[name][-1].compute

    rounds = interleaved({name: partial(case, name) for name in ways}, repeats, warm_up=0)
    peak_gib = {name: median(m.peak_bytes for m in measured[name]) / 2**30 for name in ways}
    if on_disk_only:
        million = {
            name: median(each.processor for each in rounds[name]) * 1e6 / size
            for name, size in ((ON_DISK, rows), (TENTH, rows / 10))
        }
        findings = [
            compare_values(f"{figure}: against {TENTH}", of[ON_DISK], of[TENTH], unit)
            for figure, of, unit in (
                ("CPU time of a million rows", million, "s"),
                ("peak memory", peak_gib, "GiB"),
            )
        ]
    else:
        findings = compare_all("metrics", rounds, rows)
        read = {name: [m.read for m in measured[name]] for name in ("msrec", "scikit-learn")}
        findings += compare_all("reading", read, rows)
        findings += [
            compare_values(f"peak memory: against {name}", peak_gib["msrec"], peak_gib[name], "GiB")
            for name in list(ways)[1:]
        ]
    title = f"{rows:,.0f} predictions, {users:,.0f} users, {scenarios} scenarios, one thread"
    details = {name: [m._asdict() for m in of_way] for name, of_way in measured.items()}
    report("evaluate", title, findings, on, {"resamples": resamples, "measured": details})


def _write_predictions(out: Path, rows: int, users: int, scenarios: int) -> Schema:
    """Writes predictions in parts, as ranks do; users differ in activity and click rate."""
    out.mkdir(parents=True)
    rng = np.random.default_rng(0)
    user_logit = rng.normal(0, 1, users).astype(np.float32)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        size = min(PART_ROWS, rows - start)
        user = (users * rng.random(size) ** 2).astype(np.int64)
        logit = -2 + user_logit[user] + rng.normal(0, 1, size).astype(np.float32)
        label = rng.random(size) < 1 / (1 + np.exp(-logit))
        score = 1 / (1 + np.exp(-logit - rng.normal(0, 0.7, size).astype(np.float32)))
        columns = {
            "row_id": np.arange(start, start + size),
            "scenario": rng.integers(0, scenarios, size, dtype=np.int32),
            "user": user,
            "label": label.astype(np.float32),
            "weight": np.ones(size, np.float32),
            "score": score.astype(np.float32),
        }
        pq.write_table(pa.table(columns), out / f"part-{number:05d}.parquet")
    write_commit(out, Commit(rows=rows, split="test", checkpoint="random", dataset="random"))
    return Schema(
        name="random",
        description="random predictions",
        scenarios=[Scenario(name=f"s{number}", description="") for number in range(scenarios)],
        tables={"user": 1},
        sparse=[SparseFeature(name="user", table="user")],
        labels=["click"],
        split=SplitRecord(method="random"),
        num_users=users,
        num_items=1,
    )


def _measure(read: Callable[[], T], compute: Callable[[T], object]) -> Measured:
    start = now()
    predictions = read()
    read_time = now() - start
    return Measured(read_time, timed(lambda: compute(predictions)), peak_rss())


def measure_msrec(folder: Path, schema: Schema, options: MetricOptions) -> Measured:
    """Computes all metrics and their intervals, as `msrec evaluate` does."""
    return _measure(lambda: load_predictions(folder), lambda p: compute_results(p, schema, options))


def measure_on_disk(folder: Path, schema: Schema, options: MetricOptions) -> Measured:
    """Computes the same metrics, reading the rows as often as needed."""
    nothing = Seconds(0.0, 0.0)
    compute = timed(lambda: evaluate_predictions(folder, schema, options, rows_in_memory=0))
    return Measured(nothing, compute, peak_rss())


def measure_polars(folder: Path, by_user: bool) -> Measured:
    """Computes `polars_metrics` of all rows and of each scenario."""

    def compute(frame: pl.DataFrame) -> None:
        polars_metrics(frame.with_columns(scenario=pl.lit(-1)), by_user)
        polars_metrics(frame, by_user)

    return _measure(lambda: pl.read_parquet(folder / "*.parquet", columns=COLUMNS), compute)


def measure_scikit_learn(folder: Path, scenarios: int, users: int) -> Measured:
    """Computes AUC, average precision and log loss of all rows and of each scenario.

    If `users` is not 0, also the AUC of each user over all rows. Its time is extrapolated from a
    sample of users. Leaving out the users of each scenario is to scikit-learn's advantage.
    """
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    every = max(1, users // SAMPLED_USERS)

    def metrics(scenario: Array, label: Array, score: Array) -> None:
        for number in (None, *range(scenarios)):
            rows = slice(None) if number is None else scenario == number
            for metric in (roc_auc_score, average_precision_score, log_loss):
                metric(label[rows], score[rows])

    def sampled_gauc(user: Array, label: Array, score: Array) -> None:
        sampled = np.flatnonzero(user % every == 0)
        order = sampled[np.argsort(user[sampled], kind="stable")]
        sizes = np.unique(user[order], return_counts=True)[1]
        for rows in np.split(order, np.cumsum(sizes)[:-1]):
            if 0 < label[rows].sum() < len(rows):
                roc_auc_score(label[rows], score[rows])

    def compute(table: pa.Table) -> Seconds:
        scenario, label, score, user = (table[name].to_numpy() for name in COLUMNS)
        total = timed(lambda: metrics(scenario, label, score))
        if users:
            sample = timed(lambda: sampled_gauc(user, label, score))
            total = Seconds(*(a + every * b for a, b in zip(total, sample, strict=True)))
        return total

    return _measure(lambda: pq.read_table(folder, columns=COLUMNS), compute)


def polars_metrics(frame: pl.DataFrame, by_user: bool) -> pl.DataFrame:
    """Returns AUC, average precision and log loss of each scenario, and GAUC if asked for.

    Args:
        frame: scenario, user, label (0 or 1) and score of each row.
        by_user: adds GAUC, the AUC of each user weighted by its rows.
    """
    rows, score = frame.lazy(), pl.col("score").cast(pl.Float64)
    label = pl.col("label").cast(pl.Float64)
    positives, negatives = label.sum(), (1 - label).sum()
    # The rank sum of the positives gives the AUC (Mann-Whitney); ties get their mean rank.
    auc = ((score.rank() * label).sum() - positives * (positives + 1) / 2) / (positives * negatives)
    p = score.clip(EPS, 1 - EPS)
    log_loss = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    ties = rows.group_by("scenario", "score").agg(clicks=positives, rows=pl.len())
    clicks = pl.col("clicks")
    precision = clicks.cum_sum() / pl.col("rows").cum_sum()
    metrics = rows.group_by("scenario").agg(auc=auc, log_loss=log_loss)
    average_precision = (
        ties.sort("score", descending=True)
        .group_by("scenario", maintain_order=True)
        .agg(average_precision=(clicks * precision).sum() / clicks.sum())
    )
    metrics = metrics.join(average_precision, on="scenario", how="left")
    if by_user:
        users = rows.group_by("scenario", "user").agg(auc=auc, rows=pl.len())
        weighted = (pl.col("auc") * pl.col("rows")).sum() / pl.col("rows").sum()
        gauc = users.filter(pl.col("auc").is_finite()).group_by("scenario").agg(gauc=weighted)
        metrics = metrics.join(gauc, on="scenario", how="left")
    return metrics.sort("scenario").collect()
