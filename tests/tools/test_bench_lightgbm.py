"""`msrec bench lightgbm`: each feature against a slow search, and a run to its end."""

import sys

import numpy as np
import polars as pl
import pytest
from history_rows import rows_of, slow_history, with_ties
from llm_data import whole

from msrec.data.histories.build import build_histories
from msrec.data.histories.index import HistoryIndex
from msrec.data.llm.item_vectors import ItemVectors
from msrec.launch.evaluation.results import load_results
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.model.metrics.exact import exact_metrics
from msrec.tools.bench.boosting.history_features import HistoryFeatures
from msrec.tools.cli.main import main

MAX_LEN = 6
LABELS = {"all": (0, 1), "positive": (1,)}


@pytest.fixture(scope="module", params=[("stream", "all"), ("frozen", "positive")], ids=str)
def made(request, tmp_path_factory):
    """The features of a tiny dataset, its rows by split, and the events that a row may see."""
    protocol, events = request.param
    dataset = with_ties(tmp_path_factory.mktemp("boosting") / "tiny", rows=600, valid_rows=120)
    build_histories(dataset, [protocol], events=events)
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, random = np.arange(60), vectors.astype(np.float32)
    source = ItemVectors("made", 5, store=None, projection=None, store_rows=rows, random=random)
    index = HistoryIndex.open(dataset, protocol)
    features = HistoryFeatures(dataset, index, [source], MAX_LEN, popularity=True)
    names = ("train", "valid", "test") if protocol == "stream" else ("train",)
    seen = [row for name in names for row in rows_of(dataset, name)]
    seen = [row for row in seen if row["label"] in LABELS[events]]
    return features, rows_of(dataset, "test"), seen, whole(source).astype(np.float32)


def column(made, name):
    table = made[0].table("test")
    return table.values[:, table.names.index(name)]


def expected(made, of_row):
    """Returns a value per test row; None becomes NaN."""
    _, rows, seen, _ = made
    values = [of_row(row, seen) for row in rows]
    return np.array([np.nan if value is None else value for value in values], np.float32)


def check(made, name, of_row):
    np.testing.assert_allclose(column(made, name), expected(made, of_row), atol=1e-5, err_msg=name)


def test_similarities_equal_a_slow_search(made):
    vectors = made[3]

    def products(row, seen, keep=lambda scenario, label: True):
        return [
            float(vectors[row["item"]] @ vectors[item])
            for item, scenario, label, _ in slow_history(row, seen, MAX_LEN)
            if keep(scenario, label)
        ]

    def recency(row, seen):
        values = products(row, seen)[::-1]
        weights = [0.5 ** (age / 2) for age in range(len(values))]
        return np.dot(values, weights) / sum(weights) if values else None

    def same(row, seen):
        return max(
            products(row, seen, lambda scenario, _: scenario == row["scenario"]), default=None
        )

    name = "similarity made"
    check(made, f"{name}, max", lambda *of: max(products(*of), default=None))
    check(made, f"{name}, mean", lambda *of: np.mean(products(*of)) if products(*of) else None)
    check(made, f"{name}, last", lambda *of: products(*of)[-1] if products(*of) else None)
    check(made, f"{name}, recency 2", recency)
    check(made, f"{name}, same scenario, max", same)


def test_words_overlap_by_the_share_of_common_words(made):
    def largest(row, seen):
        """Titles are `Film number N`, so that two of three words are always shared."""
        overlaps = [
            1.0 if item == row["item"] else 2 / 4 for item, *_ in slow_history(row, seen, MAX_LEN)
        ]
        return max(overlaps, default=None)

    check(made, "words title, max", largest)


def test_counts_read_all_strictly_earlier_events(made):
    def earlier(row, seen, *same):
        before = [event for event in seen if event["timestamp"] < row["timestamp"]]
        return [event for event in before if all(event[name] == row[name] for name in same)]

    check(made, "user events", lambda *of: len(earlier(*of, "user")))
    check(
        made, "user events in the row's scenario", lambda *of: len(earlier(*of, "user", "scenario"))
    )
    check(made, "item events", lambda *of: len(earlier(*of, "item")))
    check(
        made, "item events in the row's scenario", lambda *of: len(earlier(*of, "item", "scenario"))
    )
    shop = [event for event in made[2] if event["scenario"] == 2]
    check(made, "user events in shop", lambda row, seen: len(earlier(row, shop, "user")))
    if "item rate" in made[0].table("test").names:

        def rate(row, seen):
            labels = [event["label"] for event in earlier(row, seen, "item")]
            return np.mean(labels) if labels else None

        check(made, "item rate", rate)


def test_the_command_evaluates_the_test_split(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightgbm")
    dataset = with_ties(tmp_path / "tiny")
    build_histories(dataset)

    def msrec(*args):
        monkeypatch.setattr(sys, "argv", ["msrec", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    out = tmp_path / "out"
    options = ["--protocol", "stream", "--rounds", 20, "--threads", 1, "--out", out]
    status, text, error = msrec("bench", "lightgbm", dataset, *options)
    assert status == 0, error
    predictions, results = load_predictions(out), load_results(out)
    group = np.zeros(len(predictions.label), np.int64)
    exact = exact_metrics(predictions.score, predictions.label, group, predictions.user, ["all"])
    assert f"test AUC {exact.all.auc:.4f}, GAUC {exact.all.gauc:.4f}" in text
    assert results.history.protocol == "stream"
    assert exact.all.auc > 0.55
    assert "item events" in text or "item rate" in text
    _, text, _ = msrec("bench", "lightgbm", dataset, *options, "--no-popularity")
    assert "item events" not in text
    assert "item rate" not in text
    labels = pl.read_parquet(dataset / "test")["label"].to_numpy()
    np.testing.assert_array_equal(predictions.label, labels)
