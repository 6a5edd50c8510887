"""Bootstrap intervals against differences, a true bootstrap and a simulated population."""

import numpy as np
import pytest
from simulated_clicks import clicks, coverage, simulated
from sklearn.metrics import average_precision_score, roc_auc_score

from msrec.model.metrics.bootstrap import MIN_USERS, Bootstrap
from msrec.model.metrics.exact import Grouping, MetricOptions, exact_metrics, sort_rows

pytestmark = pytest.mark.slow


def scored(users=80, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    user, label, logit = clicks(rng, users)
    noise = rng.normal(0, 0.7, users)[user] + rng.normal(0, 0.5, len(user))
    score = (1 / (1 + np.exp(-logit - noise))).astype(np.float32)
    return (score if digits is None else score.round(digits)), label, user


def repeated(score, label, user, counts):
    """Rows of a resample; a user who is drawn twice counts as two users."""
    rows, users = [], []
    for one, count in enumerate(counts):
        for copy in range(count):
            mine = np.flatnonzero(user == one)
            rows.append(mine)
            users.append(np.full(len(mine), one * 100 + copy))
    rows = np.concatenate(rows)
    return score[rows], label[rows], np.concatenate(users)


def test_a_resample_has_the_metrics_of_its_rows():
    """Except AUC and average precision, which are first-order approximations."""
    score, label, user = scored(users=40)
    rows = sort_rows(score, label, user)
    sums = rows.sums()
    counts = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40))
    found = sums.values(counts[np.argsort(rows.block_of)] @ sums.table, sums.table.sum(axis=0))
    again = sort_rows(*repeated(score, label, user, counts)).metrics()
    names = ("log_loss", "ne", "rig", "calibration", "gauc", "gauc_by_user", "ndcg", "recall")
    for name in names:
        assert found[name] == pytest.approx(getattr(again, name), abs=1e-12), name
    assert found["auc"] == pytest.approx(again.auc, abs=0.02)


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "many ties"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("auc", roc_auc_score), ("average_precision", average_precision_score)],
)
def test_derivatives_of_rankings_equal_differences(name, reference, digits):
    score, label, user = scored(users=30, digits=digits)
    rows = sort_rows(score, label, user)
    sums = rows.sums()
    total, step = sums.table.sum(axis=0), 1e-5
    for one in range(0, 30, 3):
        weight = np.where(user == one, 1 + step, 1.0)
        by_weight = reference(label, score, sample_weight=weight) - reference(label, score)
        ours = sums.values(total + step * sums.table[rows.block_of[one]], total)[name]
        ours = ours - sums.values(total, total)[name]
        assert ours / step == pytest.approx(by_weight / step, abs=1e-4)


def test_intervals_of_rankings_agree_with_a_true_bootstrap():
    score, label, user = scored(users=150)
    options = MetricOptions(resamples=300)
    rows = sort_rows(score, label, user, options=options)
    found = rows.metrics().intervals
    draws = Bootstrap.draw(150, 300, 0).counts
    for name, reference in (("auc", roc_auc_score), ("average_precision", average_precision_score)):
        drawn = [reference(label, score, sample_weight=counts[user]) for counts in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        width = high - low
        assert found[name] == pytest.approx((low, high), abs=0.12 * width), name


def test_intervals_cover_the_true_value_as_often_as_they_claim():
    truth = simulated(np.random.default_rng(0), 60_000).metrics()
    found = coverage(truth, users=200, samples=200, resamples=250)
    assert set(found) >= {"auc", "average_precision", "log_loss", "ne", "gauc", "ndcg", "recall"}
    assert found.pop("calibration_error") > 0.95  # conservative by construction
    for name, share in found.items():
        assert 0.90 <= share <= 0.985, (name, share)


def test_rows_of_a_user_are_not_taken_for_independent():
    """Eight copies of each row under the same user add no information."""
    score, label, user = scored(users=100)
    options = MetricOptions(resamples=200)
    once = sort_rows(score, label, user, options=options).metrics().intervals["log_loss"]
    often = [np.repeat(column, 8) for column in (score, label, user)]
    assert sort_rows(*often, options=options).metrics().intervals["log_loss"] == pytest.approx(once)


def test_many_users_in_random_groups_have_the_same_intervals(monkeypatch):
    score, label, user = scored(users=3_000)
    options = MetricOptions(resamples=1000)
    alone = sort_rows(score, label, user, options=options).metrics().intervals
    monkeypatch.setattr("msrec.model.metrics.bootstrap.MAX_BLOCKS", 1000)
    grouped = sort_rows(score, label, user, options=options)
    assert grouped.block_of.max() == 999
    for name, (low, high) in grouped.metrics().intervals.items():
        width = alone[name][1] - alone[name][0]
        assert high - low == pytest.approx(width, rel=0.15), name


def test_a_calibrated_model_may_have_no_calibration_error():
    rng = np.random.default_rng(0)
    user, _, logit = clicks(rng, 400)
    score = 1 / (1 + np.exp(-logit))
    label = rng.random(len(user)) < score
    found = sort_rows(score, label, user, options=MetricOptions(resamples=200)).metrics()
    assert found.calibration_error > 0
    assert found.intervals["calibration_error"][0] == 0


def test_few_users_or_one_class_have_no_interval():
    score, label, user = scored(users=60)
    options = MetricOptions(resamples=200)
    few = user < MIN_USERS - 1
    scenario = np.where(few, 0, 1)
    label = label & (few | (user > 58))  # of scenario 1 one user clicks
    found = exact_metrics(score, label, scenario, user, ["few", "one user"], options=options)
    assert found.scenarios["few"].intervals == {}
    intervals = found.scenarios["one user"].intervals
    assert "auc" not in intervals
    assert "log_loss" in intervals


def test_the_seed_decides_the_intervals():
    columns = scored(users=50)
    one, again, other = (
        sort_rows(*columns, options=MetricOptions(resamples=100, seed=seed)).metrics().intervals
        for seed in (0, 0, 1)
    )
    assert one == again
    assert one["auc"] != other["auc"]


def test_metrics_of_a_group_equal_those_of_its_rows_alone():
    score, label, user = scored(users=60)
    scenario = np.random.default_rng(3).integers(0, 2, len(user))
    rows = sort_rows(score, label, user, options=MetricOptions(resamples=0))
    found = rows.metrics_by(Grouping(["a", "b"], scenario))
    for at, name in enumerate("ab"):
        mine = scenario == at
        assert found[name] == sort_rows(score[mine], label[mine], user[mine]).metrics()
