"""Metrics against scikit-learn, and histograms against exact metrics."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss, ndcg_score, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.retrieval import RetrievalNormalizedDCG, RetrievalRecall

from msrec.model.metrics.definitions import metric_name, parse_metric_name
from msrec.model.metrics.exact import MetricOptions, exact_metrics
from msrec.model.metrics.streaming import HistogramMetrics

NAMES = ["search", "feed", "friends"]


def sample(rows=20_000, users=900, seed=0, digits=None, spread=1.5):
    """Scores, labels drawn from them, scenarios, users; `digits` rounds scores into ties."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.5, spread, rows).astype(np.float32)
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    label = (rng.random(rows) < score).astype(np.float32)
    if digits is not None:
        score = score.round(digits)
    return score, label, rng.integers(0, 3, rows), rng.integers(0, users, rows), logit


def slow_gauc(score, label, user, weight=None):
    """GAUC by its definition, one user at a time: by impressions, by user, users, left out."""
    weight = np.ones(len(score)) if weight is None else weight
    aucs, impressions, left_out = [], [], 0
    for one in np.unique(user):
        mine = user == one
        if label[mine].min() == label[mine].max():
            left_out += 1
            continue
        aucs.append(roc_auc_score(label[mine], score[mine], sample_weight=weight[mine]))
        impressions.append(weight[mine].sum())
    return np.average(aucs, weights=impressions), np.mean(aucs), len(aucs), left_out


@pytest.mark.parametrize("digits", [None, 2, 1], ids=["distinct", "ties", "many ties"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auc_and_log_loss_equal_scikit_learn(digits, dtype):
    score, label, scenario, user, _ = sample(digits=digits)
    score = score.astype(dtype)
    result = exact_metrics(score, label, scenario, user, NAMES)
    groups = {None: np.full(len(score), True)} | {n: scenario == s for s, n in enumerate(NAMES)}
    for name, mine in groups.items():
        ours = result.all if name is None else result.scenarios[name]
        truth, said = label[mine], score[mine].astype(np.float64)
        assert ours.auc == pytest.approx(roc_auc_score(truth, said), abs=1e-12)
        assert ours.log_loss == pytest.approx(log_loss(truth, said), abs=1e-12)
        precision = average_precision_score(truth, said)
        assert ours.average_precision == pytest.approx(precision, abs=1e-12)
        assert ours.rig == 1 - ours.ne
        assert (ours.rows, ours.positives) == (mine.sum(), truth.sum())


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "many ties"])
def test_gauc_equals_the_mean_over_users_one_by_one(digits):
    score, label, scenario, user, _ = sample(rows=3_000, users=400, digits=digits)
    result = exact_metrics(score, label, scenario, user, NAMES)
    feed = scenario == 1
    for ours, mine in ((result.all, slice(None)), (result.scenarios["feed"], feed)):
        expected = slow_gauc(score[mine], label[mine], user[mine])
        found = (ours.gauc, ours.gauc_by_user, ours.users, ours.users_left_out)
        assert found == pytest.approx(expected, abs=1e-12)


def test_weights_equal_sample_weights_of_scikit_learn():
    score, label, scenario, user, _ = sample(rows=5_000, users=300, digits=2)
    weight = np.random.default_rng(1).choice([0.0, 0.5, 1.3, 4.0], len(score))
    used, result = weight > 0, exact_metrics(score, label, scenario, user, NAMES, weight)
    truth, said, w = label[used], score[used].astype(np.float64), weight[used]
    ours = result.all
    assert ours.auc == pytest.approx(roc_auc_score(truth, said, sample_weight=w), abs=1e-9)
    assert ours.log_loss == pytest.approx(log_loss(truth, said, sample_weight=w), abs=1e-9)
    precision = average_precision_score(truth, said, sample_weight=w)
    assert ours.average_precision == pytest.approx(precision, abs=1e-9)
    expected = slow_gauc(said, truth, user[used], w)
    found = (ours.gauc, ours.gauc_by_user, ours.users, ours.users_left_out)
    assert found == pytest.approx(expected, abs=1e-9)
    assert ours.calibration == pytest.approx(np.average(said, weights=w) / (truth @ w / w.sum()))


def recall_over_orders(score, label, k):
    """The mean over orders of tied rows, drawn at random."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        first = np.lexsort((rng.random(len(score)), -score))[:k]
        found.append(label[first].sum() / label.sum())
    return np.mean(found)


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "many ties"])
def test_ndcg_equals_scikit_learn_user_by_user_also_with_ties(digits):
    score, label, scenario, user, _ = sample(rows=3_000, users=150, digits=digits)
    for k in (1, 5, 100):
        ours = exact_metrics(score, label, scenario, user, NAMES, options=MetricOptions(k, 0)).all
        each = [
            ndcg_score([label[user == one]], [score[user == one]], k=k)
            for one in np.unique(user)
            if label[user == one].any()
        ]
        assert (ours.ndcg, ours.users_ranked) == pytest.approx((np.mean(each), len(each)), abs=1e-9)


def test_recall_of_tied_rows_is_the_mean_over_their_orders():
    score = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1], np.float32)
    label, zeros = np.array([0, 1, 0, 1, 0, 1]), np.zeros(6, int)
    ours = exact_metrics(score, label, zeros, zeros, ["feed"], options=MetricOptions(3, 0)).all
    assert ours.recall == pytest.approx(2 * (2 / 4) / 3)
    assert ours.recall == pytest.approx(recall_over_orders(score, label, 3), abs=0.02)


def test_metrics_equal_torchmetrics():
    score, label, scenario, user, _ = sample(rows=4_000, users=200)
    ours = exact_metrics(score, label, scenario, user, NAMES, options=MetricOptions(5, 0)).all
    said, truth = torch.from_numpy(score.astype(np.float64)), torch.from_numpy(label).long()
    place = {"indexes": torch.from_numpy(user)}
    options = {"empty_target_action": "skip", "top_k": 5}
    assert ours.auc == pytest.approx(BinaryAUROC()(said, truth).item(), abs=1e-6)
    precision = BinaryAveragePrecision()(said, truth).item()
    assert ours.average_precision == pytest.approx(precision, abs=1e-6)
    ndcg = RetrievalNormalizedDCG(**options)(said, truth, **place).item()
    assert ours.ndcg == pytest.approx(ndcg, abs=1e-6)
    recall = RetrievalRecall(**options)(said, truth, **place).item()
    assert ours.recall == pytest.approx(recall, abs=1e-6)


def test_calibration_error_equals_scikit_learn_quantile_bins():
    score, label, scenario, user, _ = sample(rows=20_000)
    seen, said = calibration_curve(label, score, n_bins=10, strategy="quantile")
    ours = exact_metrics(score * 0.9, label, scenario, user, NAMES).all
    assert ours.calibration_error == pytest.approx(np.abs(0.9 * said - seen).mean(), abs=1e-5)


def test_tied_scores_are_in_one_bin_of_the_calibration_error():
    label = np.array([1, 0] * 50)
    one = exact_metrics(np.full(100, 0.4), label, label * 0, label * 0, ["feed"]).all
    assert one.calibration_error == pytest.approx(0.1)


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "many ties"])
def test_flipped_labels_and_scores_flip_the_rankings(digits):
    score, label, scenario, user, _ = sample(rows=4_000, users=200, digits=digits)
    score = score.astype(np.float64)
    ours = exact_metrics(score, label, scenario, user, NAMES).all
    flipped = exact_metrics(score, 1 - label, scenario, user, NAMES).all
    assert (flipped.auc, flipped.gauc) == pytest.approx((1 - ours.auc, 1 - ours.gauc), abs=1e-12)
    both = exact_metrics(1 - score, 1 - label, scenario, user, NAMES).all
    same = ("auc", "gauc", "gauc_by_user", "log_loss", "ne", "calibration_error")
    for name in same:
        assert getattr(both, name) == pytest.approx(getattr(ours, name), abs=1e-12), name


def test_a_rising_transform_changes_no_ranking():
    score, label, scenario, user, _ = sample(rows=4_000, users=200, digits=2)
    ours = exact_metrics(score, label, scenario, user, NAMES).all
    bent = exact_metrics(score**2 / 2, label, scenario, user, NAMES).all
    for name in ("auc", "average_precision", "gauc", "gauc_by_user", "ndcg", "recall"):
        assert getattr(bent, name) == getattr(ours, name), name
    assert bent.log_loss > ours.log_loss


def test_chunks_change_nothing(monkeypatch):
    score, label, scenario, user, _ = sample(rows=5_000, users=80, digits=2)
    weight = np.random.default_rng(1).choice([0.5, 1.3], len(score))
    whole = exact_metrics(score, label, scenario, user, NAMES, weight)
    monkeypatch.setattr("msrec.model.metrics.ranking.CHUNK", 64)
    parts = exact_metrics(score, label, scenario, user, NAMES, weight)
    assert parts.named() == pytest.approx(whole.named(), abs=1e-12)


def test_rows_of_weight_zero_do_not_count():
    score, label, scenario, user, _ = sample(rows=3_000)
    weight = np.ones(len(score))
    weight[::3] = 0
    kept = weight > 0
    without = exact_metrics(score[kept], label[kept], scenario[kept], user[kept], NAMES)
    assert exact_metrics(score, label, scenario, user, NAMES, weight) == without


def test_gauc_of_one_user_and_of_more_than_65536_users():
    score, label, scenario, _, _ = sample(rows=200_000)
    for user in (np.zeros(len(score), int), np.arange(len(score)) // 2 + 4_000_000_000):
        ours = exact_metrics(score, label, scenario, user, NAMES).all
        pairs = label[0::2] != label[1::2]
        wins = (score[0::2] > score[1::2]) == (label[0::2] > label[1::2])
        expected = ours.auc if not user.any() else wins[pairs].mean()
        assert ours.gauc == pytest.approx(expected, abs=1e-12)


def test_ne_of_the_mean_label_is_one_and_calibration_is_one():
    label = np.array([0, 0, 0, 1])
    ours = exact_metrics(np.full(4, 0.25), label, label * 0, label * 0, ["feed"]).all
    assert (ours.ne, ours.calibration, ours.auc) == pytest.approx((1, 1, 0.5))


def test_saturated_scores_are_clipped_as_scikit_learn_does():
    score, label = np.array([0.0, 1.0, 0.3], np.float32), np.array([1, 0, 1])
    ours = exact_metrics(score, label, label * 0, label * 0, ["feed"]).all
    assert ours.log_loss == pytest.approx(log_loss(label, score.astype(np.float64)), abs=1e-12)


def test_one_class_leaves_auc_ne_and_gauc_undefined():
    zeros = np.zeros(3, int)
    result = exact_metrics(np.array([0.1, 0.2, 0.3]), zeros, zeros, zeros, ["feed", "search"])
    for ours in (result.all, result.scenarios["feed"], result.scenarios["search"]):
        found = (ours.auc, ours.average_precision, ours.ne, ours.rig, ours.calibration)
        assert found == (None,) * 5
        assert (ours.gauc, ours.ndcg, ours.recall, ours.intervals) == (None, None, None, {})
    assert result.scenarios["search"].rows == 0
    assert "auc/all" not in result.named()


def test_no_rows_at_all_give_no_metrics():
    none = np.array([])
    assert exact_metrics(none, none, none, none, ["feed"]).all.auc is None


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, "score must be between 0 and 1; got nan at row 2"),
        ("score", 1.5, "got 1.5 at row 2"),
        ("label", 0.5, "label must be 0 or 1; got 0.5 at row 2"),
        ("scenario", 3, r"scenario must be 0..2; got 3 at row 2"),
        ("weight", -1, "weight must be at least 0"),
        ("user", -7, "user must be a code .* got -7 at row 2"),
    ],
)
def test_a_bad_value_is_named_with_its_row(column, value, message):
    columns = {"score": np.full(4, 0.5), "label": np.zeros(4), "scenario": np.zeros(4, int)}
    columns |= {"user": np.zeros(4, int), "weight": np.ones(4)}
    columns[column][2] = value
    with pytest.raises(ValueError, match=message):
        exact_metrics(**columns, names=NAMES)


def test_names_contain_metric_and_scenario():
    score, label, scenario, user, _ = sample(rows=500, users=10)
    named = exact_metrics(score, label, scenario, user, NAMES).named()
    assert {"auc/all", "auc/scenario=feed", "ne/scenario=friends", "rows/all"} <= set(named)
    assert metric_name("ne", "feed") == "ne/scenario=feed"


def tensors(*columns):
    return map(torch.from_numpy, columns)


def uniform(rng, rows):
    return rng.uniform(-4, 4, rows)


def narrow(rng, rows):
    return rng.normal(-2, 0.1, rows)


def rare(rng, rows):
    return rng.normal(-6, 1.5, rows)


def sharp(rng, rows):
    return np.where(rng.random(rows) < 0.3, rng.normal(6, 2, rows), rng.normal(-7, 3, rows))


@pytest.mark.parametrize("scores", [uniform, narrow, rare, sharp])
def test_histogram_agrees_with_exact_metrics(scores):
    rng = np.random.default_rng(3)
    logit = scores(rng, 200_000)
    score = 1 / (1 + np.exp(-logit))
    label, scenario = (rng.random(len(score)) < score), rng.integers(0, 3, len(score))
    weight = rng.integers(0, 3, len(score)).astype(np.float64)
    exact = exact_metrics(score, label, scenario, scenario, NAMES, weight)
    stream = HistogramMetrics(3)
    for part in np.array_split(np.arange(len(score)), 50):
        stream.update(*tensors(logit[part], label[part], scenario[part], weight[part]))
    result = stream.compute(NAMES)
    for ours, truth in zip(
        (result.all, *result.scenarios.values()),
        (exact.all, *exact.scenarios.values()),
        strict=True,
    ):
        assert ours.auc == pytest.approx(truth.auc, abs=1e-4)
        assert ours.log_loss == pytest.approx(truth.log_loss, abs=1e-9)
        assert (ours.ne, ours.calibration) == pytest.approx((truth.ne, truth.calibration), abs=1e-9)
        assert (ours.rows, ours.positives) == (truth.rows, truth.positives)


def test_merged_histograms_of_two_ranks_equal_one_rank():
    _, label, scenario, _, logit = sample(rows=4_000)
    whole, first, second = (HistogramMetrics(3) for _ in range(3))
    whole.update(*tensors(logit, label, scenario))
    first.update(*tensors(logit[::2], label[::2], scenario[::2]))
    second.update(*tensors(logit[1::2], label[1::2], scenario[1::2]))
    first.merge(second.counts)
    np.testing.assert_allclose(first.counts, whole.counts, rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"counts of the shape \(3, 2, 8196\), scenarios first; got \(4"
    ):
        first.merge(HistogramMetrics(4).counts)


def test_padding_rows_do_not_reach_the_histogram():
    stream = HistogramMetrics(1)
    values = np.array([np.nan, 0.0]), np.array([-1.0, 1.0]), np.array([7, 0])
    stream.update(*tensors(*values, np.array([0.0, 1.0])))
    assert stream.compute(["feed"]).all.rows == 1


@pytest.mark.parametrize(
    ("logit", "label", "scenario", "message"),
    [
        (np.nan, 0, 0, "logit must be a finite number in every row; it is not in 1 rows"),
        (0, 0.5, 0, "label must be 0 or 1 in every row; it is not in 1 rows"),
        (0, 0, 2, r"scenario must be 0\.\.1 in every row; it is not in 1 rows"),
    ],
)
def test_rows_with_invalid_values_are_refused_when_metrics_are_read(
    logit, label, scenario, message
):
    stream = HistogramMetrics(2)
    rows = np.array([0.0, logit]), np.array([1.0, label]), np.array([0, scenario])
    stream.update(*tensors(*rows))
    with pytest.raises(ValueError, match=message):
        stream.compute(["feed", "shop"])
    stream.reset()
    assert stream.compute(["feed", "shop"]).all.rows == 0


def numpy_histogram(logit, label, scenario, weight, bins):
    """The counts of `HistogramMetrics`, in NumPy."""
    counts = np.zeros((3, 2, bins + 4))
    used = (weight > 0) & ~np.isnan(label)
    z, label, scenario = (values[used] for values in (logit.astype(float), label, scenario))
    weight = weight[used].astype(float)
    group = scenario * 2 + (label == 1)
    place = np.clip((z + 16) * (bins / 32), 0, bins - 1).astype(int)
    np.add.at(counts.reshape(-1), group * (bins + 4) + place, weight)
    loss = np.logaddexp(0.0, z)
    score = np.exp(z - loss)
    loss -= np.where(label == 1, z, 0.0)
    for column, values in enumerate((None, weight, weight * loss, weight * score)):
        counts[:, :, bins + column] += np.bincount(group, values, minlength=6).reshape(3, 2)
    return counts


def test_counts_are_those_of_numpy():
    rng = np.random.default_rng(4)
    label = rng.choice([0.0, 1.0, np.nan], 5_000).astype(np.float32)
    logit = rng.normal(0, 9, len(label)).astype(np.float32)
    scenario = rng.integers(0, 3, len(label))
    weight = (rng.random(len(label)) * rng.integers(0, 2, len(label))).astype(np.float32)
    stream = HistogramMetrics(3)
    stream.update(*tensors(logit, label, scenario, weight))
    expected = numpy_histogram(logit, label, scenario, weight, stream.bins)
    counts = stream.counts.numpy()
    # The last two sums have exponentials, whose last digit depends on the processor.
    np.testing.assert_array_equal(counts[..., :-2], expected[..., :-2])
    np.testing.assert_allclose(counts[..., -2:], expected[..., -2:], rtol=1e-14)


def test_an_empty_histogram_has_no_metrics():
    result = HistogramMetrics(2).compute(["a", "b"])
    assert (result.all.auc, result.all.log_loss, result.all.rows) == (None, None, 0)


def test_metrics_import_without_torch():
    modules = (
        "msrec.model.metrics.exact, msrec.launch.evaluation.results, "
        "msrec.launch.reporting.comparison_tables"
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("metric", ["auc", "combined_ndcg"])
@pytest.mark.parametrize("scenario", [None, "feed", "a/b", "x/all", "label=y/all", ""])
@pytest.mark.parametrize("label", [None, "like", "rating>1", "a/b", "a/all", "x=y"])
def test_a_name_in_logs_has_the_parts_it_was_formed_of(metric, scenario, label):
    assert parse_metric_name(metric_name(metric, scenario, label)) == (metric, scenario, label)


def test_other_values_in_logs_are_no_metrics():
    assert [parse_metric_name(name) for name in ("loss", "rows_per_s", "auc", "/all")] == [None] * 4
