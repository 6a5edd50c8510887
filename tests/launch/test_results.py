"""Tests of predictions and results: whole folders, metrics, tables, undefined values."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from terminal_text import shown

from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation.exact_results import evaluate_predictions
from msrec.launch.evaluation.results import load_results, save_results
from msrec.launch.evaluation.scored_rows.commit import Commit, write_commit
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.reporting.comparison_tables import comparison_table
from msrec.launch.reporting.result_tables import results_tables
from msrec.model.metrics.exact import MetricOptions, exact_metrics

SCHEMA = Schema(
    name="app",
    description="an app",
    scenarios=[Scenario(name=n, description=n) for n in ("search", "feed")],
    tables={"user": 10},
    sparse=[SparseFeature(name="user_id", table="user")],
    labels=["click"],
    split=SplitRecord(method="random"),
    num_users=9,
    num_items=1,
)


def columns(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.beta(1, 3, rows).astype(np.float32)
    noisy = np.clip(truth + rng.normal(0, 0.1, rows), 0.001, 0.999).astype(np.float32)
    return {
        "row_id": np.arange(rows),
        "scenario": rng.integers(0, 2, rows).astype(np.int32),
        "user": rng.integers(0, 9, rows),
        "label": (rng.random(rows) < truth).astype(np.float32),
        "weight": np.ones(rows, np.float32),
        "score": noisy,
        "p_click": truth,
    }


def write(folder, parts, rows=None, **commit):
    """Writes each dict of columns as a part, then the marker."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, part in enumerate(parts):
        pq.write_table(pa.table(part), folder / f"part-{rank}.parquet")
    total = sum(len(part["row_id"]) for part in parts) if rows is None else rows
    facts = {"split": "test", "checkpoint": "step-7", "dataset": "app"} | commit
    write_commit(folder, Commit(rows=total, **facts))
    return folder


def halves(table):
    """Returns the rows of rank 0 and of rank 1: every second row each."""
    return [{name: values[rank::2] for name, values in table.items()} for rank in (0, 1)]


def test_parts_of_two_ranks_give_the_metrics_of_all_rows(tmp_path):
    table = columns()
    results = evaluate_predictions(write(tmp_path, halves(table)), SCHEMA)
    data = [table[c] for c in ("score", "label", "scenario", "user")]
    expected = exact_metrics(*data, ["search", "feed"]).named()
    assert results.metrics.named() == pytest.approx(expected, abs=1e-12)
    assert results.best_possible.all.auc > results.metrics.all.auc
    assert (results.split, results.checkpoint, results.rows) == ("test", "step-7", 200)


@pytest.mark.parametrize("as_text", [False, True])
def test_results_do_not_depend_on_the_ranks_that_wrote_the_rows(tmp_path, as_text):
    """Bit for bit, intervals included."""
    table, rng = columns(rows=900), np.random.default_rng(5)
    table["user"] = rng.integers(0, 40, 900)
    if as_text:
        table["user"] = np.array([f"user {user}" for user in table["user"]])
    whole = write(tmp_path / "one", [table])
    order = rng.permutation(900)
    cuts = [order[:100], order[100:350], order[350:]]
    parts = [{name: values[rows] for name, values in table.items()} for rows in cuts]
    judging = MetricOptions(resamples=50)
    one = evaluate_predictions(whole, SCHEMA, judging)
    assert set(one.metrics.scenarios["feed"].intervals) >= {"auc", "gauc", "ndcg"}
    assert evaluate_predictions(write(tmp_path / "three", parts), SCHEMA, judging) == one


def test_a_scenario_that_the_schema_does_not_know_is_refused(tmp_path):
    table = columns()
    table["scenario"][7] = 2
    with pytest.raises(ValueError, match="scenario must be 0..1; got 2 at row 7"):
        evaluate_predictions(write(tmp_path, [table]), SCHEMA)


def test_results_of_an_older_version_are_read_with_a_note(tmp_path):
    older = ("rows", "positives", "auc", "log_loss", "ne", "calibration", "gauc")
    whole = dict.fromkeys(older, 0.5) | {"rows": 10, "positives": 4}
    old = {"dataset": "app", "split": "test", "checkpoint": "step-7", "rows": 10}
    old["metrics"] = {"all": whole, "scenarios": {"feed": whole}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    results = load_results(tmp_path)
    assert results.is_old
    text = shown(*results_tables(results))
    assert "evaluate again for intervals" in text
    assert "undefined" not in text


def test_intervals_are_shown_below_their_metric(tmp_path):
    table = columns(rows=600) | {"user": np.arange(600) % 60}
    results = evaluate_predictions(write(tmp_path, [table]), SCHEMA, MetricOptions(resamples=50))
    low, high = results.metrics.scenarios["feed"].intervals["auc"]
    assert f"{low:.4f}–{high:.4f}" in shown(*results_tables(results))
    assert load_results(save_results(results, tmp_path).parent) == results


def test_string_user_keys_give_the_same_gauc_as_integers(tmp_path):
    table = columns()
    named = table | {"user": [f"user {u}" for u in table["user"]]}
    one = evaluate_predictions(write(tmp_path / "a", halves(table)), SCHEMA)
    two = evaluate_predictions(
        write(tmp_path / "b", [{k: v[r::2] for k, v in named.items()} for r in (0, 1)]), SCHEMA
    )
    # Users are added up in another order.
    assert one.metrics.named() == pytest.approx(two.metrics.named(), abs=1e-12)


def test_results_round_trip_through_the_file(tmp_path):
    results = evaluate_predictions(write(tmp_path / "p", [columns()]), SCHEMA)
    path = save_results(results, tmp_path)
    assert load_results(tmp_path) == results
    assert json.loads(path.read_text())["metrics"]["scenarios"]["feed"]["rows"] > 0


def test_without_the_truth_there_is_no_best_possible(tmp_path):
    table = columns()
    del table["p_click"]
    results = evaluate_predictions(write(tmp_path, [table]), SCHEMA)
    assert results.best_possible is None
    assert "best possible" not in shown(*results_tables(results))


def test_auc_of_one_class_is_shown_as_undefined(tmp_path):
    table = columns()
    table["label"] = np.where(table["scenario"] == 1, 0, table["label"])
    results = evaluate_predictions(write(tmp_path, [table]), SCHEMA)
    line = next(line for line in shown(*results_tables(results)).splitlines() if "feed" in line)
    assert "undefined" in line
    assert "0.5000" not in line


def test_comparison_shows_difference_and_best_possible(tmp_path):
    table = columns(rows=500)
    better = table | {"score": table["p_click"]}
    bare = evaluate_predictions(write(tmp_path / "a", [table]), SCHEMA)
    llm = evaluate_predictions(write(tmp_path / "b", [better]), SCHEMA)
    text = shown(comparison_table({"bare": bare, "LLM4MSR": llm}, best=True))
    for row in (bare.metrics.all.auc, llm.metrics.all.auc):
        assert f"{row:.4f}" in text
    assert f"{llm.metrics.all.auc - bare.metrics.all.auc:+.4f}" in text
    assert text.count(f"{llm.best_possible.all.auc:.4f}") == 2


def test_runs_on_other_splits_are_not_compared(tmp_path):
    one = evaluate_predictions(write(tmp_path / "a", [columns()]), SCHEMA)
    two = evaluate_predictions(write(tmp_path / "b", [columns()], split="valid"), SCHEMA)
    with pytest.raises(ValueError, match="must agree in split; 'one' has test, 'two' has valid"):
        comparison_table({"one": one, "two": two})


def test_predictions_of_another_dataset_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of the dataset 'app'; these were made on 'shop'"):
        evaluate_predictions(write(tmp_path, [columns()], dataset="shop"), SCHEMA)


def test_predictions_without_the_marker_are_not_read(tmp_path):
    write(tmp_path, [columns()])
    (tmp_path / "_COMMIT").unlink()
    with pytest.raises(FileNotFoundError, match="_COMMIT must exist"):
        load_predictions(tmp_path)


def test_a_lost_part_is_reported(tmp_path):
    write(tmp_path, halves(columns()))
    (tmp_path / "part-1.parquet").unlink()
    with pytest.raises(ValueError, match="says 200 rows; found 100, the first missing row_id is 1"):
        load_predictions(tmp_path)


def test_a_row_in_two_parts_is_named(tmp_path):
    first, second = halves(columns())
    second["row_id"] = second["row_id"].copy()
    second["row_id"][3] = 4
    with pytest.raises(ValueError, match=r"the first is 4 in part-0.parquet, part-1.parquet"):
        load_predictions(write(tmp_path, [first, second]))


def test_a_part_of_another_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"part-0.parquet: row_id must be in 0..99, .* got 100"):
        load_predictions(write(tmp_path, [columns()], rows=100))


def test_a_truncated_part_is_named(tmp_path):
    write(tmp_path, halves(columns()))
    part = tmp_path / "part-1.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-1.parquet must be a whole Parquet file"):
        load_predictions(tmp_path)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("score", lambda v: v + np.nan, r"score .* NaN at row 0 \(row_id 1\)"),
        ("label", lambda v: [None, *v[1:]], r"label .* null at row 0 \(row_id 1\)"),
        ("score", lambda v: v.astype(str), "score must be a float column; found string"),
    ],
)
def test_a_bad_value_is_named_with_part_and_row(tmp_path, column, change, message):
    first, second = halves(columns())
    second[column] = change(second[column])
    with pytest.raises(ValueError, match=r"part-1.parquet: " + message):
        load_predictions(write(tmp_path, [first, second]))


def test_a_missing_column_is_named(tmp_path):
    table = columns()
    del table["weight"]
    with pytest.raises(ValueError, match=r"part-0.parquet must have .* missing: weight"):
        load_predictions(write(tmp_path, [table]))


def test_a_broken_results_file_names_its_field(tmp_path):
    (tmp_path / "results.json").write_text('{"dataset": "app"}')
    with pytest.raises(ValueError, match=r"results.json: split: Field required"):
        load_results(tmp_path)
