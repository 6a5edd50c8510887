"""The stream of drifting ids, and the bench that compares ways to give them table rows."""

import json
import sys

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from msrec.tools.bench.drift.command import bench_managed
from msrec.tools.bench.drift.stream import DriftingStream, drifting_tables
from msrec.tools.bench.harness import report

pytestmark = pytest.mark.slow


def test_users_and_items_are_replaced_every_day():
    raw = drifting_tables(DriftingStream(5, 4000, 50, 20, 0.2, 0.5), seed=1)
    rows = raw.interactions
    assert rows["time"].to_list() == list(range(20_000))
    user, item = (rows[f"{side}_key"].to_numpy().reshape(5, 4000) for side in ("user", "item"))
    for day in range(5):  # in 4,000 rows every present user and item occurs
        assert len(np.unique(user[day])) == 50
        assert len(np.unique(item[day])) == 20
    for day in range(1, 5):
        assert len(np.setdiff1d(user[day], user[:day])) == 10
        assert len(np.setdiff1d(item[day], item[:day])) == 10
    assert raw.users.height == user.max() + 1 == 50 + 4 * 10


def test_clicks_of_a_user_tell_of_later_clicks():
    rows = drifting_tables(DriftingStream(4, 20_000, 50, 20, 0.0, 0.0), seed=0).interactions
    first, second = rows[:40_000], rows[40_000:]
    rate = first.group_by("user_key").agg(rate=pl.col("label").mean())
    joined = second.join(rate, "user_key")
    assert roc_auc_score(joined["label"], joined["rate"]) > 0.6


def test_the_bench_compares_all_ways_to_give_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msrec", "bench", "managed"])
    turnover = {"user_turnover": 1.0, "item_turnover": 1.0}
    bench_managed(seeds=1, days=4, day_rows=2000, eviction_every=2, **turnover)
    content = json.loads((report.OUT / "managed.json").read_text())
    found = {each["what"]: each["rounds"][0] for each in content["findings"]}
    assert len(found) == 8
    assert found["hash"]["bytes"] == found["hash"]["rows"] * 9 * 4
    assert found["managed, lru"]["bytes"] > found["managed, lru"]["rows"] * (9 * 4 + 24)
    assert found["managed, lru"]["evicted"] > 0
    assert all(0.45 < each["auc"] < 0.9 for each in found.values())
    everything, first = (found[f"vocabulary of {n}"] for n in ("all days", "the first quarter"))
    assert everything["rows"] > first["rows"]
