"""Tests of drift: PSI against its formula, noise by simulation, refusals."""

import json

import numpy as np
import polars as pl
import pytest

from msrec.launch.evaluation.drift import measure_drift
from msrec.launch.reporting.drift_table import print_drift


def write(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def drifts(before, now):
    return {drift.column: drift for drift in measure_drift(before, now)[0]}


def test_values_by_the_formula(tmp_path):
    before = write(tmp_path / "a.parquet", city=["x"] * 60 + ["y"] * 40)
    now = write(tmp_path / "b.parquet", city=["x"] * 10 + ["y"] * 20 + ["z"] * 20)
    found = drifts(before, now)["city"]
    p = np.array([60, 40, 0]) + 0.5
    q = np.array([10, 20, 20]) + 0.5
    p, q = p / p.sum(), q / q.sum()
    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)
    assert (found.bins, found.unseen, found.verdict) == (3, pytest.approx(0.4), "large")


def test_numbers_by_quantiles_of_the_reference(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=5000), rng.normal(0.5, 1, size=3000)
    found = drifts(write(tmp_path / "a.parquet", x=a), write(tmp_path / "b.parquet", x=b))["x"]
    edges = np.quantile(a, np.arange(1, 10) / 10)
    p, q = ((np.histogram(x, [-np.inf, *edges, np.inf])[0] + 0.5) for x in (a, b))
    p, q = p / p.sum(), q / q.sum()
    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-9)
    assert found.verdict == "moderate"


def test_a_rare_label_has_a_bin_for_each_of_its_values(tmp_path):
    before = write(tmp_path / "a.parquet", like=[0.0] * 94 + [1.0] * 6, seen=[1] * 94 + [0] * 6)
    now = write(tmp_path / "b.parquet", like=[0.0] * 70 + [1.0] * 30, seen=[1] * 70 + [0] * 30)
    p, q = np.array([94.5, 6.5]) / 101, np.array([70.5, 30.5]) / 101
    for found in drifts(before, now).values():
        assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-12)
        assert (found.bins, found.verdict) == (2, "large")


def test_rows_without_drift_stay_below_the_noise_in_95_percent(tmp_path):
    rng = np.random.default_rng(1)
    columns = {f"x{i}": rng.normal(size=4000) for i in range(300)}
    columns |= {f"v{i}": rng.integers(0, 8, size=4000) for i in range(300)}
    frame = pl.DataFrame(columns)
    frame.head(3000).write_parquet(tmp_path / "a.parquet")
    frame.tail(1000).write_parquet(tmp_path / "b.parquet")
    found = drifts(tmp_path / "a.parquet", tmp_path / "b.parquet").values()
    above = np.mean([drift.psi > drift.noise for drift in found])
    assert 0.02 < above < 0.08


def test_empty_values_have_a_separate_bin(tmp_path):
    before = write(tmp_path / "a.parquet", x=[1.0, 2.0, 3.0, None], tags=[[1], [1, 2], [], [3]])
    now = write(tmp_path / "b.parquet", x=[None, float("nan"), 1.0, 2.0], tags=[[], [], [], [9]])
    found = drifts(before, now)
    assert found["x"].empty == (0.25, 0.5)
    assert found["tags"].empty == (0.25, 0.75)
    assert found["tags"].unseen == 1.0
    assert found["tags"].psi > 0.25


def test_columns_of_different_types_are_reported_and_ids_ignored(tmp_path):
    before = write(tmp_path / "a.parquet", score=[0.1, 0.2], user=[1, 2], row_id=[0, 1])
    now = write(tmp_path / "b.parquet", score=[0.9, 0.8], user=["a", "b"], row_id=[7, 8])
    found, left_out = measure_drift(before, now)
    assert [drift.column for drift in found] == ["score"]
    assert left_out == ["user is not compared: it is Int64 before and String now"]


def test_the_exit_status_and_the_json(tmp_path, capsys):
    before = write(tmp_path / "a.parquet", city=["x"] * 50 + ["y"] * 50)
    now = write(tmp_path / "b.parquet", city=["x"] * 90 + ["y"] * 10)
    assert print_drift(before, now, None, as_json=True) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert (entry["column"], entry["shift"]) == ("city", "large")
    assert print_drift(before, now, entry["psi"] - 0.01, as_json=False) == 1
    assert print_drift(before, now, entry["psi"] + 0.01, as_json=False) == 0


def test_rows_that_cannot_be_compared_give_a_clear_error(tmp_path):
    a = write(tmp_path / "a.parquet", x=[1.0])
    with pytest.raises(FileNotFoundError, match="must be a Parquet file or a folder of some"):
        measure_drift(a, tmp_path / "none")
    with pytest.raises(ValueError, match="share columns of one type; they have x Float64 and y"):
        measure_drift(a, write(tmp_path / "b.parquet", y=[1.0]))
    empty = tmp_path / "empty.parquet"
    pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)}).write_parquet(empty)
    with pytest.raises(ValueError, match=r"empty.parquet must have rows; it has none"):
        measure_drift(a, empty)


def test_files_that_are_merged_one_by_one_give_the_drift_of_all_rows(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    rows = pl.DataFrame(
        {
            "user": [None if u == 7 else f"u{u}" for u in rng.zipf(1.3, size=900) % 60],
            "tags": [list(range(n)) for n in rng.integers(0, 4, size=900)],
            "x": rng.normal(size=900),
        }
    )
    now = rows.tail(300).with_columns(user=pl.lit("new"))
    now.write_parquet(tmp_path / "now.parquet")
    rows.write_parquet(tmp_path / "whole.parquet")
    whole = drifts(tmp_path / "whole.parquet", tmp_path / "now.parquet")
    assert (whole["user"].unseen, whole["tags"].unseen) == (1.0, 0.0)
    monkeypatch.setattr("msrec.launch.evaluation.drift.MAX_WAITING", 3)
    (tmp_path / "parts").mkdir()
    for part in range(9):
        rows[part * 100 : (part + 1) * 100].write_parquet(tmp_path / f"parts/{part}.parquet")
    assert drifts(tmp_path / "parts", tmp_path / "now.parquet") == whole
