"""Metrics of rows on disk against those of the same rows in memory."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrec.data.labels import LabelOptions, LabelScale
from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation.exact_results import evaluate_predictions
from msrec.launch.evaluation.scored_rows import partitioned, predictions
from msrec.launch.evaluation.scored_rows.commit import Commit, write_commit
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.evaluation.scored_rows.row_groups import RowGroups
from msrec.model.metrics.exact import MetricOptions

OPTIONS = MetricOptions(k=3, resamples=50)
SCALE = LabelScale(low=0, high=99, mean=2, std=1)
NAMES = [*(f"tab {n}" for n in range(4)), "no rows"]
PARITY = RowGroups(["even", "odd"], lambda row_id: row_id % 2)


@pytest.fixture
def schema():
    return Schema(
        name="app",
        description="an app",
        scenarios=[Scenario(name=n, description=n) for n in NAMES],
        tables={"user": 10},
        sparse=[SparseFeature(name="user_id", table="user")],
        labels=["click", "watch", "like"],
        label_options={"watch": LabelOptions(kind="regression", scale=SCALE)},
        split=SplitRecord(method="random"),
        num_users=9,
        num_items=1,
    )


def write(folder, *, rows, users, digits, weighted, impressions=True, keys=np.int64):
    """Writes predictions of three labels in three parts, rows in any order."""
    rng = np.random.default_rng(3)
    truth = rng.beta(1, 3, rows)
    user = (users * rng.random(rows) ** 2).astype(np.int64)  # some have many more rows
    label = (rng.random(rows) < truth).astype(np.float32)
    label[rng.random(rows) < 0.05] = np.nan
    score = np.clip(truth + rng.normal(0, 0.2, rows), 0, 1)
    table = {
        "row_id": rng.permutation(rows),
        "scenario": rng.choice(4, rows, p=[0.6, 0.3, 0.098, 0.002]),
        "user": user if keys is np.int64 else np.char.add("u", user.astype(str)),
        "label": label,
        "weight": np.float32(rng.integers(0, 4, rows) / 2 if weighted else np.ones(rows)),
        "score": score.round(digits).astype(np.float32),
        "p_click": truth.astype(np.float32),
        "label_1": rng.gamma(2, 5, rows).astype(np.float32),
        "score_1": rng.gamma(2, 5, rows).astype(np.float32),
        "label_2": (rng.random(rows) < 0.02).astype(np.float32),
        "score_2": rng.random(rows).astype(np.float32),
        "combined": (score - 0.5).round(digits).astype(np.float32),
    }
    if weighted:
        table["label_weight_2"] = np.float32(rng.random(rows))
    if impressions:
        table["impression"] = rng.integers(0, 40, rows)
    folder.mkdir()
    for part, at in enumerate(np.array_split(np.arange(rows), 3)):
        columns = {name: values[at] for name, values in table.items()}
        pq.write_table(pa.table(columns), folder / f"part-{part}.parquet", row_group_size=999)
    facts = {"split": "test", "checkpoint": "step-7", "dataset": "app", "combined": "click - 0.5"}
    write_commit(folder, Commit(rows=rows, labels=["click", "watch", "like"], **facts))
    return folder


def flat(value):
    """Yields each number of results with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ((f"{key}/{path}", number) for path, number in flat(inner))
    elif isinstance(value, list | tuple):
        yield from flat(dict(enumerate(value)))
    else:
        yield "", value


@pytest.mark.parametrize("groups_at_once", [64, 3])
@pytest.mark.parametrize(
    "data",
    [
        {"rows": 6_000, "users": 300, "digits": 7, "weighted": False},
        {"rows": 6_000, "users": 300, "digits": 2, "weighted": True, "keys": str},
        {"rows": 60_000, "users": 14_000, "digits": 3, "weighted": True, "impressions": False},
        {"rows": 4_000, "users": 5, "digits": 0, "weighted": False},
    ],
    ids=["few ties", "weights", "many users", "scores 0 and 1"],
)
def test_rows_on_disk_have_the_metrics_and_intervals_of_rows_in_memory(
    tmp_path, monkeypatch, schema, data, groups_at_once
):
    folder = write(tmp_path / "predictions", **data)
    slices = {"parity": PARITY}
    expected = evaluate_predictions(folder, schema, OPTIONS, slices).model_dump()
    monkeypatch.setattr(partitioned, "ROWS_PER_FILE", data["rows"] // 7)
    monkeypatch.setattr(partitioned, "GROUPS_AT_ONCE", groups_at_once)
    on_disk = evaluate_predictions(folder, schema, OPTIONS, slices, rows_in_memory=0)
    found = dict(flat(on_disk.model_dump()))
    for path, value in flat(expected):
        assert found.pop(path) == pytest.approx(value, abs=1e-9), path
    assert not found
    few = data["users"] < 10
    assert bool(expected["metrics"]["scenarios"]["tab 0"]["intervals"]) != few


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_id": [0, 1, 1]}, "each row_id must exist once; 1 exist more than once"),
        ({"row_id": [0, 1, 5]}, r"part-1.parquet: row_id must be in 0..2, as _COMMIT says; got 5"),
        ({"score": [0.5, np.nan, 0.5]}, r"part-1.parquet: score must be a value .* NaN at row 1"),
        ({"score": [0.5, 1.5, 0.5]}, "score must be between 0 and 1; got 1.5"),
        ({"scenario": [0, 5, 1]}, r"scenario must be 0..4; got 5 at row 1"),
        ({"scenario": [0, 1, -1]}, r"scenario must be 0..4; got -1 at row "),
    ],
)
def test_broken_rows_on_disk_are_refused(tmp_path, monkeypatch, schema, change, message):
    monkeypatch.setattr(partitioned, "ROWS_PER_FILE", 8)
    one = {"scenario": 0, "user": 1, "label": 1.0, "weight": 1.0, "score": 0.5}
    table = {name: np.full(3, value) for name, value in one.items()} | {"row_id": np.arange(3)}
    pq.write_table(pa.table(table | change), tmp_path / "part-1.parquet")
    write_commit(tmp_path, Commit(rows=3, split="test", checkpoint="step-1", dataset="app"))
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(tmp_path, schema, rows_in_memory=0)


def test_a_sample_has_every_so_manyth_row(tmp_path, monkeypatch):
    folder = write(tmp_path / "predictions", rows=1000, users=50, digits=3, weighted=True)
    every = load_predictions(folder)
    monkeypatch.setattr(predictions, "ROWS_IN_MEMORY", 400)
    step = predictions.sampling_step(folder)
    some = load_predictions(folder, step)
    assert some.row_id.tolist() == list(range(0, 1000, 3))
    for name in ("score", "label", "scenario", "impression"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[::3])
    np.testing.assert_array_equal(some.user_ids[some.user], every.user_ids[every.user][::3])
