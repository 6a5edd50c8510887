"""Tests of the report: one offline page with the values of the runs' files."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from evaluated_runs import NAMES, make_run, write_line
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc
from tiny import tiny_dataset, tiny_store

from msrec.data.schema import (
    load_schema,
    save_schema,
)
from msrec.launch.evaluation.results import load_results, save_results
from msrec.launch.reporting.figures import MAX_SCENARIOS, scenario_figures
from msrec.launch.reporting.report import write_report
from msrec.launch.training.metric_log import MetricLog, load_metric_log
from msrec.model.metrics.curves import reliability_curve, roc_curve, score_distribution
from msrec.model.metrics.exact import exact_metrics

VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "bare": make_run(root / "bare", noise=1.0, meta=False),
        "LLM4MSR": make_run(root / "llm4msr", noise=0.5, meta=True),
    }


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("page") / "report.html", runs)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Checks that tags nest, and keeps addresses, text and the cells of each row."""

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.text, self.rows = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_the_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    assert reader.addresses == ["data:,"]
    styles = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "Plotly" in page


def test_the_table_has_each_scenario_with_difference_and_best_possible(page, runs):
    bare, llm = (load_results(folder) for folder in runs.values())
    rows = Reader(page).rows
    assert ["scenario", "bare", "LLM4MSR", "difference", "best possible", "rows"] in rows
    for name in NAMES:
        one, two = (result.metrics.scenarios[name].auc for result in (bare, llm))
        best = bare.best_possible.scenarios[name].auc
        count = f"{bare.metrics.scenarios[name].rows:,}"
        expected = [name, f"{one:.4f}", f"{two:.4f}", f"{two - one:+.4f}", f"{best:.4f}", count]
        assert expected in rows


def test_the_page_shows_config_differences_and_versions(page):
    rows = Reader(page).rows
    assert ["meta.user", "False", "True"] in rows
    assert "meta.rank" not in [row[0] for row in rows]
    assert ["torch", "2.13.0+cpu"] in rows


def test_figures_hold_the_logged_values(page, runs):
    figures = json.loads(re.search(r"const figures = (\[.*\]);", page).group(1))
    names = {trace["name"] for figure in figures for trace in figure["data"]}
    steps, losses = load_metric_log(runs["bare"]).curve("valid", "log_loss/all")
    traces = (trace for figure in figures for trace in figure["data"])
    drawn = next(trace for trace in traces if trace["name"] == "bare, validation")  # the loss
    assert drawn["x"] == steps
    assert drawn["y"] == pytest.approx(losses, abs=1e-6)
    assert {"best possible", "perfect", "bare", "LLM4MSR"} <= names


def test_each_scenario_has_its_curve_and_many_scenarios_are_counted(page):
    assert all(f"<h3>{name}</h3>" in page for name in NAMES)
    metrics = {f"auc/scenario={n}": 0.5 for n in range(MAX_SCENARIOS + 3)}
    log = MetricLog({"valid": {10: metrics}})
    figures, left_out = scenario_figures({"bare": log})
    assert (len(figures), left_out) == (MAX_SCENARIOS, 3)


def test_names_from_outside_cannot_become_markup(runs, tmp_path):
    name = "<script>alert(1)</script>"
    page = write_report(tmp_path / "report.html", {name: runs["bare"]}).read_text()
    assert name not in page
    assert name in "".join(Reader(page).text)


def test_a_page_notes_what_a_run_does_not_have(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text("seed: 0\n")
    text = "".join(
        Reader(write_report(tmp_path / "r.html", {"new": tmp_path / "new"}).read_text()).text
    )
    assert "new: not evaluated" in text
    assert "new: no training log" in text


def test_runs_evaluated_on_different_rows_are_refused(runs, tmp_path):
    other = make_run(tmp_path / "other", noise=1.0, meta=False, rows=500)
    with pytest.raises(ValueError, match="must agree in rows"):
        write_report(tmp_path / "report.html", {"bare": runs["bare"], "other": other})


def test_a_missing_run_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be the run folder of 'bare'"):
        write_report(tmp_path / "report.html", {"bare": tmp_path / "nothing"})


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a run folder; it has none of config.yaml"):
        write_report(tmp_path / "report.html", {"bare": tmp_path})


def test_a_resumed_and_cut_log_keeps_the_last_line_of_a_step_and_counts_the_rest(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for value, step in enumerate([10, 20, 20, 30]):
            write_line(file, step, "train", {"loss": value})
        file.write('{"step": 40, "spl')
    log = load_metric_log(tmp_path)
    assert log.curve("train", "loss") == ([10, 20, 30], [0, 2, 3])
    assert (log.again, log.unreadable) == (1, 1)


def test_roc_has_the_area_of_the_exact_auc_and_leaves_out_weight_zero():
    rng = np.random.default_rng(0)
    score = rng.random(20_000).astype(np.float32).round(3)
    label = (rng.random(len(score)) < score).astype(np.float32)
    weight = rng.integers(0, 3, len(score)).astype(np.float32)
    zeros = np.zeros(len(score), int)
    exact = exact_metrics(score, label, zeros, zeros, ["feed"], weight).all.auc
    assert auc(*roc_curve(score, label, weight)) == pytest.approx(exact, abs=2e-4)
    assert roc_curve(score, label * 0, weight) == ([], [])


def test_reliability_equals_scikit_learn_quantile_bins():
    rng = np.random.default_rng(0)
    score = rng.random(10_000)
    label = (rng.random(len(score)) < score).astype(float)
    seen, said = calibration_curve(label, score, n_bins=10, strategy="quantile")
    ours = reliability_curve(score, label, np.ones(len(score)))
    np.testing.assert_allclose(ours, (said, seen), atol=1e-3)


def test_a_page_shows_the_setup_of_a_run(tmp_path):
    """Data, knowledge, plan and slices of a run with a local dataset and store."""
    data = tiny_dataset(tmp_path / "tiny", rows=200)
    counts = {
        "rows": {split: {"all": 10, "search": 4} for split in ("train", "valid", "test")},
        "positives": {split: {"all": 5, "search": 1} for split in ("train", "valid", "test")},
    }
    save_schema(load_schema(data).model_copy(update={"counts": counts}), data)
    store = tiny_store(data, tmp_path / "store")
    run = make_run(tmp_path / "run", 0.5, meta=True)
    config = {"dataset": str(data), "llm": {"store": str(store)}, "meta": {"user": True}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shards = [{"offsets": [0, 0], "sizes": [30, 8]}, {"offsets": [30, 0], "sizes": [11, 8]}]
    table = {"sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]}
    (run / "plan.json").write_text(
        json.dumps({"modules": {"ebc": {"user_id": table | {"shards": shards}}}})
    )
    results = load_results(run)
    of_days = {"2026-01-01": results.metrics.all}
    save_results(results.model_copy(update={"slices": {"day": of_days}}), run)
    reader = Reader(write_report(tmp_path / "r.html", {"mine": run}).read_text())
    text = "".join(reader.text)
    assert "tiny: 40 users, 60 items, 3 tables of 109 rows in all; split random." in text
    assert ["search", *["4", "25.0%"] * 3] in reader.rows
    assert "user: 39 of 40 users" in text
    assert ["user_id", "row_wise", "fused", "0, 1", "41", "8"] in reader.rows
    auc, loss = results.metrics.all.auc, results.metrics.all.log_loss
    assert ["2026-01-01", "3,000", f"{auc:.4f}", f"{loss:.4f}"] in reader.rows


def test_score_shares_add_up_to_one_for_each_label():
    rng = np.random.default_rng(0)
    score, label = rng.random(500), rng.integers(0, 2, 500)
    edges, shares = score_distribution(score, label)
    assert edges[-1] == score.max()
    for name, wanted in (("positive", 1), ("negative", 0)):
        assert shares[name].sum() == pytest.approx(1)
        below = (score[label == wanted] < edges[10]).mean()
        assert shares[name][:10].sum() == pytest.approx(below)
