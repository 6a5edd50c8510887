"""The commands of evaluation on a run with several labels, as a user calls them."""

import json
import logging
import sys

import pytest
from label_rows import LABELS, labelled_config, labelled_dataset, train_labelled
from ranks import run_ranks

from msrec.launch.evaluation.results import load_results
from msrec.tools.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    data = labelled_dataset(folder / "tiny", rows=900)
    config = labelled_config(data, folder, "run_id=joint")
    run_ranks(train_labelled, 1, config)
    return config.run_dir


@pytest.fixture
def output(monkeypatch, capsys):
    """Runs a command in this process and returns what it printed, with single spaces."""
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.delenv("RANK", raising=False)
    handlers = logging.getLogger().handlers[:]

    def run(*args, status=0):
        monkeypatch.setattr(sys, "argv", ["msrec", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = "\n".join(capsys.readouterr())
        assert (ended.value.code or 0) == status, printed
        return " ".join(printed.split())

    yield run
    logging.getLogger().handlers[:] = handlers


def test_evaluate_calibrate_and_compare_show_every_label(run, output):
    printed = output("evaluate", run, "--by", "user_history", "--resamples", 20)
    results = load_results(run)
    for label in LABELS:
        assert f"{label}: tiny, test, checkpoint step-" in printed
        assert f"{label} by user_history" in printed
    assert f"{results.labels['watch'].metrics.all.rmse:.4f}" in printed
    assert "like ranked by label^0.5 * watch + 2 * like" in printed

    printed = output("calibrate", run, "--method", "platt")
    assert "calibration error, platt, checkpoint step-" in printed
    assert "fewer than 1,000" in printed
    assert f"`msrec evaluate {run}` computes the new results" in printed.replace("\n", "")
    output("evaluate", run, "--resamples", 0)
    assert load_results(run).calibration == "platt"

    printed = output("compare", run, run)
    assert all(f"of {label}: tiny, test" in printed for label in LABELS)
    assert "NDCG@10 by impression by the combined score: tiny, test" in printed
    printed = output("compare", run, run, "--label", "watch", "--metric", "mae")
    assert "MAE of watch: tiny, test" in printed
    assert "AUC" not in printed
    found = json.loads(output("compare", run, run, "--json"))
    assert list(found["labels"]) == LABELS[1:]
    printed = output("compare", run, run, "--label", "share", status=2)
    assert "label must be one that both runs have (label, like, buy, watch); got 'share'" in printed


def test_watch_logs_every_label(run, output):
    printed = output("evaluate", run, "--watch")
    assert "label AUC 0." in printed
    assert "watch RMSE" in printed
    line = json.loads((run / "watched.jsonl").read_text().splitlines()[-1])
    assert {"auc/all", "auc/label=like/all", "rmse/label=watch/scenario=feed"} <= set(
        line["metrics"]
    )
