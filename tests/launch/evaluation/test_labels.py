"""Predictions and results of a run with several labels, from training to the report."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from label_rows import FORMULA, LABELS, labelled_config, labelled_dataset, train_labelled
from ranks import run_ranks
from scipy.stats import spearmanr
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error

from msrec.launch.distributed import Process
from msrec.launch.evaluation.compare import compare
from msrec.launch.evaluation.drift import measure_drift
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.evaluation.results import load_results
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.reporting.difference_table import calibration_note, verdict
from msrec.launch.reporting.report import write_report
from msrec.launch.trained_run import open_run

pytestmark = pytest.mark.slow


def evaluated(rank, world_size, run_dir):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    return evaluate(run_dir, process, "test", by=["user_history"])


def trained(rank, world_size, config):
    train_labelled(rank, world_size, config)
    evaluated(rank, world_size, config.run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The dataset, a run of all labels, and one of `like` alone."""
    folder = tmp_path_factory.mktemp("labels")
    data = labelled_dataset(folder / "tiny")
    run_ranks(trained, 1, labelled_config(data, folder, "run_id=joint"))
    alone = ["run_id=alone", "objective.labels=[like]"]
    run_ranks(trained, 1, labelled_config(data, folder, *alone, score="null"))
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """The test rows, in the order of their files."""
    files = sorted((folder / "tiny/test").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


@pytest.fixture(scope="module")
def predictions(folder):
    return load_predictions(folder / "joint/predictions/test")


def test_predictions_hold_the_labels_weights_and_impressions_of_the_data(rows, predictions):
    assert predictions.commit.labels == LABELS
    weight = rows["row_weight"].to_numpy()
    of_like = weight * rows["like_weight"].to_numpy()
    for name, label in zip(LABELS, predictions.labels, strict=True):
        np.testing.assert_array_equal(label.label, rows[name].to_numpy())
        np.testing.assert_array_equal(label.weight, of_like if name == "like" else weight)
    np.testing.assert_array_equal(predictions.impression, rows["page"].to_numpy())


def test_scores_are_probabilities_and_seconds_and_the_formula_joins_them(predictions):
    click, like, buy, watch = (label.score for label in predictions.labels)
    for score in (click, like, buy):
        assert 0 < score.min() < score.max() < 1
    assert 2 < np.median(watch) < 40
    expected = np.sqrt(click, dtype=np.float64) * watch + 2 * like
    np.testing.assert_allclose(predictions.combined, expected, rtol=1e-5)


def test_results_equal_scikit_learn_label_by_label(folder, rows, predictions):
    results = load_results(folder / "joint")
    assert (results.label, list(results.labels)) == ("label", LABELS[1:])
    feed = rows["scenario"].to_numpy() == 1
    for label, (y, w, score, _) in zip(LABELS, predictions.labels, strict=True):
        of_label = results.by_label[label].metrics
        for ours, mine in ((of_label.all, True), (of_label.scenarios["feed"], feed)):
            used = ~np.isnan(y) & (w > 0) & mine
            columns = (y[used].astype(float), score[used].astype(float))
            missing = int((np.isnan(y) & (w > 0) & mine).sum())
            assert (ours.rows, ours.missing or 0) == (used.sum(), missing)
            if label == "watch":
                rmse = root_mean_squared_error(*columns, sample_weight=w[used])
                assert ours.rmse == pytest.approx(rmse, abs=1e-6)
                assert (ours.auc, results.by_label[label].kind) == (None, "regression")
            else:
                auc = roc_auc_score(*columns, sample_weight=w[used])
                assert ours.auc == pytest.approx(auc, abs=1e-6)
                loss = log_loss(*columns, sample_weight=w[used])
                assert ours.log_loss == pytest.approx(loss, abs=1e-6)
    whole = results.labels["watch"].metrics.all
    assert whole.spearman == pytest.approx(
        spearmanr(*_known(predictions.labels[3])).statistic, abs=0.05
    )
    assert set(results.labels["watch"].slices["user_history"]) == set(
        results.slices["user_history"]
    )


def test_the_best_possible_scores_of_a_label_are_judged_too(folder, rows, predictions):
    watch = load_results(folder / "joint").labels["watch"]
    truth = rows["truth_watch"].to_numpy()
    y, weight = predictions.labels[3].label, predictions.labels[3].weight
    used = ~np.isnan(y)
    best = root_mean_squared_error(y[used], truth[used], sample_weight=weight[used])
    assert watch.best_possible.all.rmse == pytest.approx(best, abs=1e-5)
    assert best < watch.metrics.all.rmse
    assert load_results(folder / "joint").best_possible is None


def test_drift_leaves_out_ids_of_impressions_and_true_values(folder):
    drifts, skipped = measure_drift(folder / "tiny/train", folder / "tiny/test")
    columns = {drift.column: drift for drift in drifts}
    assert {"like", "watch", "row_weight"} <= set(columns)
    assert not {"page", "timestamp", "truth_watch"} & set(columns)
    assert columns["like"].empty[0] == pytest.approx(0.2, abs=0.05)  # missing labels
    scores, _ = measure_drift(folder / "joint/predictions/test", folder / "joint/predictions/test")
    assert {"score_1", "label_3", "combined"} <= {drift.column for drift in scores}


def _known(label):
    used = ~np.isnan(label.label)
    return label.label[used], label.score[used]


def test_the_combined_score_is_judged_by_every_binary_label(folder):
    combined = load_results(folder / "joint").combined
    assert (combined.score, list(combined.labels)) == (FORMULA, LABELS[:3])
    whole = combined.labels["like"].metrics.all
    assert 0 < whole.ndcg_by_impression <= 1
    assert whole.impressions > 10
    assert (whole.log_loss, whole.calibration) == (None, None)
    groups = combined.labels["like"].slices["user_history"]
    assert sum(group.positives for group in groups.values()) == whole.positives


def test_logs_name_every_label(folder):
    named = load_results(folder / "joint").named()
    assert {
        *("auc/all", "auc/label=like/scenario=feed", "rmse/label=watch/all"),
        *("missing/label=like/all", "combined_ndcg/all", "combined_gauc/label=buy/all"),
    } <= set(named)


def test_a_label_is_compared_with_its_single_task_model(folder):
    folders = [folder / run / "predictions/test" for run in ("alone", "joint")]
    found = compare(*folders, ("alone", "joint"))
    assert (found.label, found.labels, found.combined) == ("like", {}, {})
    joint = load_results(folder / "joint").labels["like"].metrics
    assert found.metrics["auc"]["feed"].second == pytest.approx(joint.scenarios["feed"].auc)
    assert "in AUC of like on tiny, test" in verdict(found)
    assert calibration_note(found) == ""
    other = found.model_copy(update={"calibrations": (None, "platt")})
    assert calibration_note(other).endswith("differently: alone not at all, joint by platt.")


def test_holm_corrects_over_all_labels_and_scenarios(folder):
    test = folder / "joint/predictions/test"
    found = compare(test, test, ("one", "two"))
    assert list(found.by_label) == LABELS
    cells = [
        found.by_label[label]["rmse" if label == "watch" else "auc"][scenario]
        for label in LABELS
        for scenario in ("search", "feed", "shop")
    ]
    assert all(cell.p == cell.p_holm == 1 for cell in cells)
    assert f"Holm's correction for {sum(cell.p is not None for cell in cells)}" in verdict(
        found, label="watch"
    )
    assert set(found.combined) == set(LABELS[:3])


def test_two_ranks_give_the_results_of_one(folder):
    one = load_results(folder / "joint/predictions/test")
    two = run_ranks(evaluated, 2, folder / "joint")[0]
    for name, value in one.named().items():
        assert two.named()[name] == pytest.approx(value, abs=1e-5), name


def test_files_get_a_score_of_every_label(folder, tmp_path, predictions):
    run_ranks(predicted, 1, folder / "joint", folder / "tiny/test", tmp_path / "out")
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    assert table.column_names[3:] == ["score", "score_1", "score_2", "score_3", "combined"]
    for name, label in zip(table.column_names[3:], predictions.labels, strict=False):
        np.testing.assert_allclose(table[name].to_numpy(), label.score, rtol=1e-4)
    np.testing.assert_allclose(table["combined"].to_numpy(), predictions.combined, rtol=1e-4)
    assert json.loads((tmp_path / "out/_COMMIT").read_text())["labels"] == LABELS


def predicted(rank, world_size, run_dir, data, out):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    return predict_files(open_run(run_dir, process), process, [data], out)


def test_a_report_has_a_section_for_each_label(folder, tmp_path):
    page = write_report(
        tmp_path / "report.html", {"joint": folder / "joint", "alone": folder / "alone"}
    ).read_text()
    for label in LABELS:
        assert f"Results of {label} by scenario" in page
        assert f"Scores of {label}" in page
    results = load_results(folder / "joint")
    assert f"{results.labels['watch'].metrics.all.rmse:.2f}" in page
    assert "Combined score" in page
