"""Rankings by impression, rankings by a score that is no probability, and missing labels."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from msrec.model.metrics.exact import Grouping, MetricOptions, sort_rows


def shown(rows=3_000, users=60, seed=0, digits=None):
    """Scores, labels, users, and impressions whose numbers start at 7 for every user."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-0.5, 1.5, rows)
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    label = (rng.random(rows) < score).astype(np.float32)
    score = score if digits is None else score.round(digits)
    return score, label, rng.integers(0, users, rows), rng.integers(7, 17, rows) * 10**12


def by_impression(score, label, user, impression, k, weight=None):
    """GAUC, NDCG, impressions with both labels and with one, one impression at a time."""
    weight = np.ones(len(score)) if weight is None else weight
    aucs, weights, gains, left_out = [], [], [], 0
    for pair in set(zip(user, impression, strict=True)):
        mine = (user == pair[0]) & (impression == pair[1])
        y, p = label[mine], score[mine]
        if y.any():
            gains.append(ndcg_score([y], [p], k=k) if len(y) > 1 else 1.0)
        if y.min() == y.max():
            left_out += 1
            continue
        aucs.append(roc_auc_score(y, p, sample_weight=weight[mine]))
        weights.append(weight[mine].sum())
    return np.average(aucs, weights=weights), np.mean(gains), len(aucs), left_out


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "many ties"])
def test_rankings_by_impression_equal_scikit_learn_one_by_one(digits):
    score, label, user, impression = shown(digits=digits)
    scenario = user % 2
    rows = sort_rows(score, label, user, options=MetricOptions(3, 0), impression=impression)
    of_odd = rows.metrics_by(Grouping(["even", "odd"], scenario))["odd"]
    for ours, mine in ((rows.metrics(), slice(None)), (of_odd, scenario == 1)):
        columns = (column[mine] for column in (score, label, user, impression))
        found = (ours.gauc_by_impression, ours.ndcg_by_impression)
        found += (ours.impressions, ours.impressions_left_out)
        assert found == pytest.approx(by_impression(*columns, 3), abs=1e-9)


def test_weights_count_in_the_gauc_of_impressions():
    score, label, user, impression = shown(rows=1_000)
    weight = np.random.default_rng(1).choice([0.5, 1.3, 4.0], len(score))
    ours = sort_rows(score, label, user, weight, impression=impression).metrics()
    expected = by_impression(score, label, user, impression, 10, weight)
    assert ours.gauc_by_impression == pytest.approx(expected[0], abs=1e-9)


def test_one_impression_per_user_has_the_rankings_of_users():
    score, label, user, _ = shown()
    options = MetricOptions(resamples=50)
    rows = sort_rows(score, label, user, options=options, impression=np.zeros(len(user), int))
    ours = rows.metrics()
    assert (ours.gauc_by_impression, ours.ndcg_by_impression) == (ours.gauc, ours.ndcg)
    assert (ours.impressions, ours.impressions_left_out) == (ours.users, ours.users_left_out)
    assert ours.intervals["gauc_by_impression"] == ours.intervals["gauc"]


def test_without_impressions_nothing_is_said_of_them():
    score, label, user, _ = shown(rows=100)
    ours = sort_rows(score, label, user).metrics()
    found = (ours.gauc_by_impression, ours.ndcg_by_impression, ours.impressions)
    assert found == (None, None, None)


def test_any_score_ranks_as_its_rank_does():
    score, label, user, impression = shown(digits=2)
    combined = 20 * score - 33  # negative, far from probabilities
    options = MetricOptions(k=5, resamples=50)
    ours = sort_rows(combined, label, user, options=options, kind="ranking", impression=impression)
    truth = sort_rows(score, label, user, options=options, impression=impression).metrics()
    found = ours.metrics()
    for name in ("auc", "average_precision", "gauc", "ndcg", "recall", "ndcg_by_impression"):
        assert getattr(found, name) == getattr(truth, name), name
        assert found.intervals[name] == truth.intervals[name], name
    assert (found.log_loss, found.calibration, found.calibration_error) == (None, None, None)
    assert "log_loss" not in found.intervals


def test_rows_without_the_label_are_left_out_and_counted():
    score, label, user, impression = shown()
    label[::4] = np.nan
    kept = ~np.isnan(label)
    rows = sort_rows(score, label, user, impression=impression)
    ours = rows.metrics()
    columns = (column[kept] for column in (score, label, user))
    alone = sort_rows(*columns, impression=impression[kept]).metrics()
    assert (ours.auc, ours.gauc_by_impression) == (alone.auc, alone.gauc_by_impression)
    assert (ours.rows, ours.missing, alone.missing) == (kept.sum(), (~kept).sum(), None)


def test_a_group_with_missing_labels_only_has_no_metrics():
    score, label, user, _ = shown(rows=100)
    label[:30] = np.nan
    groups = Grouping(["no labels", "labels"], (np.arange(100) >= 30).astype(int))
    found = sort_rows(score, label, user).metrics_by(groups)
    assert (found["no labels"].rows, found["no labels"].missing) == (0, 30)
    assert (found["labels"].rows, found["labels"].missing) == (70, None)
