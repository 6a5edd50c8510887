"""The calibration of a run: fitted, measured, applied, and refused when it is stale."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from label_rows import LABELS, labelled_config, labelled_dataset, train_labelled
from ranks import run_ranks
from terminal_text import shown

from msrec.launch.calibration import fitting
from msrec.launch.calibration.calibration_file import read_calibration
from msrec.launch.calibration.checkpoint_calibration import calibration_module
from msrec.launch.distributed import Process
from msrec.launch.evaluation.calibrate import calibrate
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.reporting.report import write_report
from msrec.launch.reporting.result_tables import calibration_table, results_tables
from msrec.launch.trained_run import open_run

pytestmark = pytest.mark.slow


def process_of(rank, world_size):
    return Process(rank, world_size, world_size, torch.device("cpu"))


def calibrated(rank, world_size, run_dir, method="isotonic"):
    fitting.MIN_ROWS = 100
    return calibrate(run_dir, process_of(rank, world_size), method)


def evaluated(rank, world_size, run_dir, checkpoint=None):
    return evaluate(run_dir, process_of(rank, world_size), "test", checkpoint)


def refusal(rank, world_size, run_dir):
    with pytest.raises(ValueError, match=r"calibration\.json must belong") as error:
        open_run(run_dir, process_of(rank, world_size))
    return str(error.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of all labels; three epochs without a new best one keep several checkpoints."""
    folder = tmp_path_factory.mktemp("calibrate")
    data = labelled_dataset(folder / "tiny")
    options = ["run_id=joint", "trainer.keep=5", "trainer.checkpoint_every_steps=5"]
    config = labelled_config(data, folder, *options)
    run_ranks(train_labelled, 1, config)
    return config.run_dir


@pytest.fixture(params=["isotonic", "platt"])
def calibration(run, request):
    found = run_ranks(calibrated, 1, run, request.param)[0]
    yield found
    (run / "calibration.json").unlink(missing_ok=True)


def test_the_error_of_every_binary_label_is_measured_before_and_after(run, calibration):
    assert list(calibration.labels) == LABELS[:3]
    assert set(calibration.errors) == {"valid", "test"}
    raw = load_predictions(run / "predictions/uncalibrated/valid")
    click = raw.labels[0]
    order = np.argsort(click.score, kind="stable")
    total = click.weight.sum(dtype=float)
    gap = (click.weight * (click.score.astype(float) - click.label))[order]
    middle = np.cumsum(click.weight[order], dtype=float) - click.weight[order] / 2
    bins = np.minimum((middle / total * 10).astype(int), 9)
    expected = sum(abs(gap[bins == number].sum()) for number in range(10)) / total
    before, after = calibration.errors["valid"]["label"]["all"]
    assert before == pytest.approx(expected, abs=1e-3)  # up to ties at the bins' edges
    assert after < before


def test_evaluate_and_predict_apply_the_maps(run, calibration, tmp_path):
    raw = load_predictions(run / "predictions/uncalibrated/test")
    results = run_ranks(evaluated, 1, run)[0]
    found = load_predictions(run / "predictions/test")
    module = calibration_module(calibration, LABELS)
    scores = torch.from_numpy(np.stack([rows.score for rows in raw.labels], axis=1))
    expected = module(scores, torch.from_numpy(raw.scenario)).numpy()
    for number, rows in enumerate(found.labels):
        np.testing.assert_allclose(rows.score, expected[:, number], atol=1e-6)
    np.testing.assert_array_equal(found.labels[3].score, raw.labels[3].score)  # seconds
    formula = np.sqrt(found.labels[0].score) * found.labels[3].score + 2 * found.labels[1].score
    np.testing.assert_allclose(found.combined, formula, rtol=1e-4)
    for label in LABELS[:3]:
        after = calibration.errors["test"][label]["feed"][1]
        metrics = results.by_label[label].metrics.scenarios["feed"]
        assert metrics.calibration_error == pytest.approx(after, abs=1e-5)
    assert (results.calibration, found.commit.calibration) == (calibration.method,) * 2
    assert f"calibrated on validation by {calibration.method}" in shown(*results_tables(results))
    run_ranks(predicted, 1, run, tmp_path / "out")
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    np.testing.assert_allclose(table["score_1"].to_numpy(), found.labels[1].score, atol=1e-6)


def predicted(rank, world_size, run_dir, out):
    process = process_of(rank, world_size)
    data = [run_dir.parent / "tiny/test"]
    return predict_files(open_run(run_dir, process), process, data, out)


def test_the_table_and_the_report_show_the_errors(run, calibration, tmp_path):
    run_ranks(evaluated, 1, run)
    error = f"{calibration.errors['test']['like']['shop'][1]:.4f}"
    assert error in shown(calibration_table(calibration))
    page = write_report(tmp_path / "report.html", {"joint": run}).read_text()
    assert "Calibration of joint" in page
    assert error in page


def test_two_ranks_fit_the_maps_of_one(run):
    one = run_ranks(calibrated, 1, run, "platt")[0]
    two, nothing = run_ranks(calibrated, 2, run, "platt")
    (run / "calibration.json").unlink()
    assert nothing is None
    for label, maps in one.labels.items():
        assert two.labels[label].all.a == pytest.approx(maps.all.a, abs=1e-3)
        assert two.labels[label].fallbacks == maps.fallbacks


def test_a_calibration_of_other_weights_is_refused(run, calibration):
    """Training on may write another best checkpoint of the same step."""
    path = run / "calibration.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"commit_crc32": tree["commit_crc32"] + 1}))
    message = run_ranks(refusal, 1, run)[0]
    assert "Run `msrec calibrate` again, or delete it." in message
    run_ranks(calibrated, 1, run)  # reads no old calibration
    assert read_calibration(run).commit_crc32 == tree["commit_crc32"]


def test_a_checkpoint_named_by_hand_is_scored_without_the_calibration_of_another(run, calibration):
    others = [
        path
        for path in sorted((run / "checkpoints").iterdir())
        if path.name != calibration.checkpoint
    ]
    assert others
    results = run_ranks(evaluated, 1, run, others[0])[0]
    assert results.calibration is None


def test_a_broken_file_names_its_field(run, calibration):
    (run / "calibration.json").write_text('{"method": "magic"}')
    with pytest.raises(ValueError, match=r"calibration.json: method: Input should be 'isotonic'"):
        read_calibration(run)
