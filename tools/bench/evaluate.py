"""Time and memory of judging many predictions, beside scikit-learn and polars by scenario."""

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import write_json
from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation.predictions import Commit, load_predictions, write_commit
from msrec.launch.evaluation.results import compute_results
from msrec.model.metrics.exact import MetricOptions
from msrec.model.metrics.user_sums import EPS
from msrec.tools.bench.harness.own_process import in_own_process, peak_rss

PART_ROWS = 1 << 20
SAMPLED_USERS = 5_000
"""Whose AUCs scikit-learn computes, one by one; the time of all is told from theirs."""


class Measured(NamedTuple):
    """Seconds on the clock to read and to judge, those of the processor, and peak memory."""

    read_s: float
    judge_s: float
    judge_cpu_s: float
    peak_bytes: int


def bench_evaluate(
    rows: int, users: int, scenarios: int, resamples: int, repeats: int, out: Path
) -> None:
    """Write made-up predictions, then judge them in turn by msrec, scikit-learn and polars.

    Each runs in a process of its own on one thread, whose largest memory is told. msrec does all
    that `msrec evaluate` does after scoring. scikit-learn does the least of it, of all rows and of
    each scenario: roc_auc_score, average_precision_score and log_loss; once more with each user's
    own roc_auc_score, for GAUC. polars does what one writes by hand: see `judged_by_polars`.

    Args:
        rows: predictions.
        users: whose rows they are; some have many more than others.
        scenarios: how many.
        resamples: for the intervals.
        repeats: the fastest counts.
        out: folder for the predictions, emptied; `bench.json` stays in it.
    """
    console = Console(width=120)
    shutil.rmtree(out, ignore_errors=True)
    folder = out / "predictions"
    schema = _write(folder, rows, users, scenarios)
    os.environ["POLARS_MAX_THREADS"] = "1"  # read when a process imports polars
    runs: dict[str, list[Measured]] = {}
    for _ in range(repeats):  # in turn, so that a busy moment hits all of them
        for name, job in (
            ("msrec", (_judge, folder, schema, MetricOptions(resamples=resamples))),
            ("msrec, no intervals", (_judge, folder, schema, MetricOptions(resamples=0))),
            ("scikit-learn", (_by_scikit_learn, folder, scenarios, 0)),
            ("scikit-learn, with GAUC", (_by_scikit_learn, folder, scenarios, users)),
            ("polars", (_by_polars, folder, False)),
            ("polars, with GAUC", (_by_polars, folder, True)),
        ):
            console.print(f"{name} ...", highlight=False)
            runs.setdefault(name, []).append(in_own_process(*job))
    best = {name: min(found, key=lambda one: one.judge_cpu_s) for name, found in runs.items()}
    table = Table(title=f"{rows:,} predictions, {users:,} users, {scenarios} scenarios, one thread")
    table.add_column("")
    for head in ("read, s", "judge, s", "judge, CPU s", "CPU of msrec's", "peak GiB"):
        table.add_column(head, justify="right")
    for name, one in best.items():
        ratio = one.judge_cpu_s / best["msrec"].judge_cpu_s
        seconds = [f"{value:,.1f}" for value in one[:3]]
        table.add_row(name, *seconds, f"{ratio:,.1f} x", f"{one.peak_bytes / 2**30:.2f}")
    table.caption = f"GAUC by scikit-learn: told from {SAMPLED_USERS:,} users"
    console.print(table)
    facts = {"rows": rows, "users": users, "scenarios": scenarios, "resamples": resamples}
    measured = {name: one._asdict() for name, one in best.items()}
    console.print(f"wrote {write_json(out / 'bench.json', facts | {'fastest': measured})}")


def _write(out: Path, rows: int, users: int, scenarios: int) -> Schema:
    """Clicks of users who differ, in parts as ranks write them."""
    out.mkdir(parents=True)
    rng = np.random.default_rng(0)
    own = rng.normal(0, 1, users).astype(np.float32)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        size = min(PART_ROWS, rows - start)
        user = (users * rng.random(size) ** 2).astype(np.int64)
        logit = -2 + own[user] + rng.normal(0, 1, size).astype(np.float32)
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
    write_commit(out, Commit(rows=rows, split="test", checkpoint="made-up", dataset="made-up"))
    return Schema(
        name="made-up",
        description="no app",
        scenarios=[Scenario(name=f"s{at}", description="") for at in range(scenarios)],
        tables={"user": 1},
        sparse=[SparseFeature(name="user", table="user")],
        labels=["click"],
        split=SplitRecord(method="random"),
        num_users=users,
        num_items=1,
    )


def _judge(folder: Path, schema: Schema, judging: MetricOptions) -> Measured:
    started = time.perf_counter()
    predictions = load_predictions(folder)
    read, cpu = time.perf_counter(), time.process_time()
    compute_results(predictions, schema, judging)
    judged, spent = time.perf_counter() - read, time.process_time() - cpu
    return Measured(read - started, judged, spent, peak_rss())


def _by_scikit_learn(folder: Path, scenarios: int, users: int) -> Measured:
    """`users` is their number where GAUC is to be computed too, of all rows."""
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    started = time.perf_counter()
    table = pq.read_table(folder, columns=["scenario", "label", "score", "user"])
    scenario, label, score, user = (table[name].to_numpy() for name in table.column_names)
    read, cpu = time.perf_counter(), time.process_time()
    for number in (None, *range(scenarios)):
        mine = slice(None) if number is None else scenario == number
        for metric in (roc_auc_score, average_precision_score, log_loss):
            metric(label[mine], score[mine])
    done = np.array([time.perf_counter() - read, time.process_time() - cpu])
    if users:
        every = max(1, users // SAMPLED_USERS)
        sampled = np.flatnonzero(user % every == 0)
        order = sampled[np.argsort(user[sampled], kind="stable")]
        sizes = np.unique(user[order], return_counts=True)[1]
        read_on, cpu = time.perf_counter(), time.process_time()
        for own in np.split(order, np.cumsum(sizes)[:-1]):
            if 0 < label[own].sum() < len(own):
                roc_auc_score(label[own], score[own])
        spent = np.array([time.perf_counter() - read_on, time.process_time() - cpu])
        # Once for all rows; the users of each scenario are left out, to its advantage.
        done += spent * every
    return Measured(read - started, float(done[0]), float(done[1]), peak_rss())


def _by_polars(folder: Path, by_user: bool) -> Measured:
    started = time.perf_counter()
    columns = ["scenario", "label", "score", "user"]
    frame = pl.read_parquet(folder / "*.parquet", columns=columns)
    read, cpu = time.perf_counter(), time.process_time()
    judged_by_polars(frame.with_columns(scenario=pl.lit(-1)), by_user)
    judged_by_polars(frame, by_user)
    judged, spent = time.perf_counter() - read, time.process_time() - cpu
    return Measured(read - started, judged, spent, peak_rss())


def judged_by_polars(frame: pl.DataFrame, by_user: bool) -> pl.DataFrame:
    """AUC, average precision and log loss of each scenario, and GAUC where users count too.

    Args:
        frame: scenario, user, label (0 or 1) and score of each row.
        by_user: each user's AUC, weighted by rows.
    """
    rows, score = frame.lazy(), pl.col("score").cast(pl.Float64)
    label = pl.col("label").cast(pl.Float64)
    clicks, misses = label.sum(), (1 - label).sum()
    auc = ((score.rank() * label).sum() - clicks * (clicks + 1) / 2) / (clicks * misses)
    said = score.clip(EPS, 1 - EPS)
    loss = -(label * said.log() + (1 - label) * (1 - said).log()).mean()
    ties = rows.group_by("scenario", "score").agg(clicks=clicks, rows=pl.len())
    precision = pl.col("clicks").cum_sum() / pl.col("rows").cum_sum()
    parts = [
        rows.group_by("scenario").agg(auc=auc, log_loss=loss),
        ties.sort("score", descending=True)
        .group_by("scenario", maintain_order=True)
        .agg(
            average_precision=(pl.col("clicks") * precision).sum() / pl.col("clicks").sum(),
        ),
    ]
    if by_user:
        users = rows.group_by("scenario", "user").agg(auc=auc, rows=pl.len())
        weighted = (pl.col("auc") * pl.col("rows")).sum() / pl.col("rows").sum()
        ranked = users.filter(pl.col("auc").is_finite())
        parts.append(ranked.group_by("scenario").agg(gauc=weighted))
    found = parts[0]
    for part in parts[1:]:
        found = found.join(part, on="scenario", how="left")
    return found.sort("scenario").collect()
