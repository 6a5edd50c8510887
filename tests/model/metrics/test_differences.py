"""Paired differences against formulas and scipy, and their error rates."""

import numpy as np
import pytest
from scipy.stats import ttest_rel
from simulated_clicks import two_models

from msrec.model.metrics.definitions import DIRECTION
from msrec.model.metrics.differences import Difference, correct, differences, holm
from msrec.model.metrics.exact import sort_rows

pytestmark = pytest.mark.slow


def paired(label, user, scores):
    return differences(*(sort_rows(score, label, user).sums() for score in scores))


def obuchowski(label, user, scores):
    """AUC difference and its variance by the formula of the paper, users as clusters."""
    components = []
    for score in scores:
        positive, negative = score[label], score[~label]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        components.append((wins.mean(axis=1), wins.mean(axis=0), wins.mean()))
    users, m, n = np.unique(user), label.sum(), (~label).sum()
    v10 = components[1][0] - components[0][0]
    v01 = components[1][1] - components[0][1]
    difference = components[1][2] - components[0][2]
    of_user = [user[label][:, None] == users, user[~label][:, None] == users]
    first = (v10[:, None] * of_user[0]).sum(axis=0) - of_user[0].sum(axis=0) * difference
    second = (v01[:, None] * of_user[1]).sum(axis=0) - of_user[1].sum(axis=0) * difference
    clusters = len(users) / (len(users) - 1)
    s10 = clusters * (first**2).sum() / m**2
    s01 = clusters * (second**2).sum() / n**2
    return difference, s10 + s01 + 2 * clusters * (first * second).sum() / (m * n)


@pytest.mark.parametrize("digits", [7, 1], ids=["distinct", "many ties"])
def test_auc_differences_are_clustered_delong(digits):
    label, user, scores = two_models(users=400)
    scores = [score.round(digits) for score in scores]
    found = paired(label, user, scores)["auc"]
    difference, variance = obuchowski(label, user, scores)
    low, high = found.interval
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert (high - low) / 2 == pytest.approx(1.966 * np.sqrt(variance), rel=0.02)


def test_users_with_one_row_each_give_the_paired_t_test_of_their_losses():
    rng = np.random.default_rng(0)
    label, user = rng.random(500) < 0.3, np.arange(500)
    scores = [rng.uniform(0.05, 0.95, 500) for _ in range(2)]
    losses = [-np.log(np.where(label, score, 1 - score)) for score in scores]
    expected = ttest_rel(losses[1], losses[0])
    found = paired(label, user, scores)["log_loss"]
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)


def test_equal_models_differ_significantly_as_rarely_as_by_chance():
    found = [paired(*two_models(users=60, seed=seed)) for seed in range(300)]
    for metric in found[0]:
        share = np.mean([one[metric].p < 0.05 for one in found])
        assert 0.015 <= share <= 0.095, (metric, share)


def test_a_better_model_is_found_in_every_metric():
    found = paired(*two_models(users=800, noise=(1.5, 0.3)))
    for metric, one in found.items():
        assert DIRECTION[metric] * one.difference > 0, metric
        assert found[metric].p < 0.01, metric


def test_a_model_and_itself_do_not_differ():
    label, user, [score, _] = two_models()
    for metric, one in paired(label, user, [score, score]).items():
        assert (one.difference, one.p, one.interval) == (0, 1, (0, 0)), metric


def test_holm_corrects_for_the_number_of_defined_tests():
    ps = [0.001, 0.04, None, 0.03, 0.2]
    assert holm(ps) == pytest.approx([0.004, 0.09, None, 0.09, 0.2])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def cells(*p_values, whole=0.5):
    """Differences of all rows and of some scenarios with these p-values."""
    numbers = {"all": whole} | {f"s{n}": p for n, p in enumerate(p_values)}
    return {n: Difference(rows=9, users=3, first=0, second=1, p=p) for n, p in numbers.items()}


def test_a_family_of_tests_is_a_metric_in_all_scenarios_of_all_labels():
    found = correct(
        {
            "click": {"auc": cells(0.01, 0.2, whole=0.03), "log_loss": cells(0.01, None)},
            "watch": {"rmse": cells(0.02, 0.004, whole=0.01), "mae": cells(0.03, 0.04)},
        }
    )

    def corrected(label, metric):
        return [cell.p_holm for cell in found[label][metric].values()]

    # AUC and RMSE: 0.004 * 4, 0.01 * 3, 0.02 * 2, 0.2; all rows: 0.01 * 2, 0.03.
    assert corrected("click", "auc") == pytest.approx([0.03, 0.03, 0.2])
    assert corrected("watch", "rmse") == pytest.approx([0.02, 0.04, 0.016])
    assert corrected("click", "log_loss") == [None, 0.01, None]
    assert corrected("watch", "mae") == pytest.approx([None, 0.06, 0.06])


def test_with_one_label_the_p_value_of_all_rows_is_not_corrected():
    found = correct({"click": {"auc": cells(0.01, 0.04, whole=0.03)}})["click"]["auc"]
    assert [cell.p_holm for cell in found.values()] == pytest.approx([None, 0.02, 0.04])
