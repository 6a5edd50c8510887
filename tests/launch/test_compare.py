"""Tests of the comparison of two runs: formulas, error rates, refusals, the verdict."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from simulated_clicks import two_models

from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation import exact_results
from msrec.launch.evaluation.compare import compare, find_predictions
from msrec.launch.evaluation.exact_results import evaluate_predictions
from msrec.launch.evaluation.results import ResultHistory, load_results, save_results
from msrec.launch.evaluation.scored_rows import partitioned
from msrec.launch.evaluation.scored_rows.commit import Commit, write_commit
from msrec.launch.reporting.difference_table import differences_table, history_note, verdict
from msrec.model.metrics.differences import holm

NAMES = ("search", "feed", "friends")
SCHEMA = Schema(
    name="app",
    description="an app",
    scenarios=[Scenario(name=name, description="") for name in NAMES],
    tables={"user": 10},
    sparse=[SparseFeature(name="user_id", table="user")],
    labels=["click"],
    split=SplitRecord(method="random"),
    num_users=9,
    num_items=1,
)


def write(folder, score, label, user, scenario, with_results=True, **commit):
    folder.mkdir(parents=True)
    rows = len(label)
    table = {"row_id": np.arange(rows), "scenario": scenario.astype(np.int32), "user": user}
    table |= {"label": label.astype(np.float32), "weight": np.ones(rows, np.float32)}
    pq.write_table(pa.table(table | {"score": score}), folder / "part-0.parquet")
    facts = {"split": "test", "checkpoint": "step-7", "dataset": "app"} | commit
    write_commit(folder, Commit(rows=rows, **facts))
    if with_results:
        save_results(
            evaluate_predictions(folder, SCHEMA.model_copy(update={"name": facts["dataset"]})),
            folder,
        )
    return folder


@pytest.fixture
def rows():
    label, user, scores = two_models(users=300, noise=(1.6, 0.4))
    scenario = np.random.default_rng(9).choice(3, len(label), p=[0.6, 0.38, 0.02])
    return {"label": label, "user": user, "scenario": scenario, "scores": scores}


def folders(tmp_path, rows, **changes):
    first, second = rows.pop("scores")
    one = write(tmp_path / "one", first, **rows)
    return one, write(tmp_path / "two", second, **(rows | changes))


def test_the_verdict_is_one_sentence_with_place_and_certainty(tmp_path, rows):
    found = compare(*folders(tmp_path, rows), ("bare", "llm"))
    whole = found.metrics["auc"]["all"]
    text = verdict(found)
    assert text.startswith("llm is better than bare in AUC on app, test: +0.")
    assert f"95 % interval {whole.interval[0]:+.4f} to {whole.interval[1]:+.4f}" in text
    assert "with Holm's correction for 3: better in search, feed" in text
    assert text.count(".  ") == 0
    assert text.endswith(".")
    turned = verdict(compare(tmp_path / "two", tmp_path / "one", ("llm", "bare")), "log_loss")
    assert turned.startswith("bare is worse than llm in log loss on app, test: +0.")


def test_p_values_of_scenarios_are_corrected_and_all_is_not(tmp_path, rows):
    found = compare(*folders(tmp_path, rows), ("a", "b"))
    for of_metric in found.metrics.values():
        whole, *parts = of_metric.values()
        assert whole.p_holm is None
        assert [one.p_holm for one in parts] == holm([one.p for one in parts])


def test_an_undefined_metric_stays_undecided(tmp_path, rows):
    rows["label"] = rows["label"] & (rows["scenario"] != 1)
    found = compare(*folders(tmp_path, rows), ("a", "b"))
    feed = found.metrics["auc"]["feed"]
    assert (feed.first, feed.difference, feed.p, feed.interval) == (None,) * 4
    assert feed.users > 100
    console = Console(width=160)
    with console.capture() as shown:
        console.print(differences_table(found))
    line = next(line for line in shown.get().splitlines() if "feed" in line)
    assert line.count("undefined") == 5
    assert "Holm's correction for 2: better in search" in verdict(found)


def test_a_comparison_round_trips_through_json(tmp_path, rows):
    found = compare(*folders(tmp_path, rows), ("a", "b"))
    assert type(found).model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "shop"}, "the dataset differs: app and shop"),
        ({"split": "valid"}, "the split differs: test and valid"),
    ],
)
def test_predictions_of_another_kind_are_refused(tmp_path, rows, changes, sentence):
    with pytest.raises(ValueError, match=f"a and b must have scored the same rows; {sentence}"):
        compare(*folders(tmp_path, rows, **changes), ("a", "b"))


@pytest.mark.parametrize("column", ["label", "user", "scenario"])
def test_other_labels_users_or_scenarios_are_refused_with_the_row(tmp_path, rows, column):
    other = rows[column].copy()
    other[5] = {"label": not other[5], "user": 7_000, "scenario": (other[5] + 1) % 3}[column]
    with pytest.raises(ValueError, match=rf"column {column} differs in [\d,]+ rows, first in row"):
        compare(*folders(tmp_path, rows, **{column: other}), ("a", "b"))


def split_up(folder, parts):
    """The same rows in another order and in several parts."""
    table = pq.read_table(folder / "part-0.parquet")
    table = table.take(np.random.default_rng(1).permutation(len(table)))
    (folder / "part-0.parquet").unlink()
    for number, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        pq.write_table(table.take(rows), folder / f"part-{number}.parquet")


def test_rows_on_disk_have_the_differences_of_rows_in_memory(tmp_path, rows, monkeypatch):
    one, two = folders(tmp_path, rows)
    in_memory = compare(one, two, ("a", "b"))
    split_up(two, 3)
    monkeypatch.setattr(exact_results, "ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(partitioned, "ROWS_PER_FILE", 300)
    monkeypatch.setattr(partitioned, "GROUPS_AT_ONCE", 2)
    on_disk = compare(one, two, ("a", "b"))
    assert on_disk.metrics.keys() == in_memory.metrics.keys()
    for metric, groups in in_memory.metrics.items():
        for group, want in groups.items():
            got = on_disk.metrics[metric][group]
            assert (got.rows, got.users) == (want.rows, want.users)
            for field in ("first", "second", "difference", "interval", "p", "p_holm"):
                a, b = getattr(got, field), getattr(want, field)
                if b is None:
                    assert a is None
                else:
                    assert a == pytest.approx(b, rel=1e-7, abs=1e-9), (metric, group, field)


def test_other_row_ids_and_weights_are_refused(tmp_path, rows):
    one, two = folders(tmp_path, rows)
    split_up(two, 2)
    table = pq.read_table(two / "part-1.parquet")
    weight = table["weight"].to_numpy().copy()
    weight[3], row = 2, table["row_id"][3].as_py()
    at = table.column_names.index("weight")
    pq.write_table(table.set_column(at, "weight", pa.array(weight)), two / "part-1.parquet")
    found = rf"column weight differs in 1 rows, first in row_id {row}: 1.0 and 2.0\."
    with pytest.raises(ValueError, match=found):
        compare(one, two, ("a", "b"))
    for folder, lost in ((one, 4), (two, 9)):
        for path in folder.glob("part-*"):
            part = pq.read_table(path)
            pq.write_table(part.filter(pa.array(part["row_id"].to_numpy() != lost)), path)
        size = len(rows["label"])
        facts = {"split": "test", "checkpoint": "step-7", "dataset": "app", "left_out": 1}
        write_commit(folder, Commit(rows=size, **facts))
    with pytest.raises(ValueError, match="row_id differs: only one of them has row_id 4"):
        compare(one, two, ("a", "b"))


def with_history(folder, protocol, events="all", max_len=20):
    history = ResultHistory(protocol=protocol, events=events, max_len=max_len)
    save_results(load_results(folder).model_copy(update={"history": history}), folder)


@pytest.mark.parametrize("other", [("frozen", "all"), ("stream", "positive")])
def test_other_protocols_of_histories_are_refused_unless_asked_for(tmp_path, rows, other):
    one, two = folders(tmp_path, rows)
    with_history(one, "stream")
    with_history(two, *other)
    found = f"found stream of all events and {other[0]} of {other[1]} events"
    with pytest.raises(ValueError, match=f"{found}.*--any-protocol"):
        compare(one, two, ("a", "b"))
    note = history_note(compare(one, two, ("a", "b"), any_protocol=True))
    assert note == (
        "Note: the runs scored the rows a with the 20 newest of all events, protocol stream and b "
        f"with the 20 newest of {other[1]} events, protocol {other[0]}."
    )


def test_a_run_without_histories_can_be_compared_with_one_that_has_them(tmp_path, rows):
    one, two = folders(tmp_path, rows)
    assert history_note(compare(one, two, ("a", "b"))) == ""
    with_history(two, "frozen")
    assert "a without histories and b with the 20 newest" in history_note(
        compare(one, two, ("a", "b"))
    )
    with_history(one, "frozen", max_len=5)
    assert "the 5 newest" in history_note(compare(one, two, ("a", "b")))


def test_fewer_rows_are_refused(tmp_path, rows):
    first, second = rows.pop("scores")
    one = write(tmp_path / "one", first, **rows)
    two = write(tmp_path / "two", second[:-1], **{name: c[:-1] for name, c in rows.items()})
    with pytest.raises(ValueError, match="the number of rows differs"):
        compare(one, two, ("a", "b"))


def test_a_run_without_evaluation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a run folder; it has no config.yaml"):
        find_predictions(tmp_path, "test")
    (tmp_path / "config.yaml").write_text("dataset: a\n")
    folder = find_predictions(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="_COMMIT must exist.*msrec evaluate"):
        compare(folder, folder, ("a", "b"))
