"""Fitted maps against scikit-learn and against known distortions."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from msrec.launch.calibration.fitting import MIN_ROWS, fit_label, fit_map

NAMES = ["search", "feed", "friends"]


def distorted(rows=40_000, seed=0):
    """Scores, labels, weights and scenarios; each scenario distorts the logit in its way."""
    rng = np.random.default_rng(seed)
    scenario = rng.choice(3, rows, p=[0.49, 0.5, 0.01])
    z = rng.normal(-1, 1.5, rows)
    label = (rng.random(rows) < expit(z)).astype(np.float32)
    a, b = np.array([1.0, 2.0, 1.0])[scenario], np.array([0.7, -0.5, 0.0])[scenario]
    return expit(a * z + b).astype(np.float32), label, np.ones(rows, np.float32), scenario


def test_platt_finds_the_inverse_of_a_known_distortion():
    score, label, weight, scenario = distorted()
    found = fit_label(score, label, weight, scenario, NAMES, "platt").scenarios
    assert (found["search"].a, found["search"].b) == pytest.approx((1, -0.7), abs=0.08)
    assert (found["feed"].a, found["feed"].b) == pytest.approx((0.5, 0.25), abs=0.08)


def test_isotonic_maps_are_those_of_scikit_learn():
    score, label, weight, _ = distorted(rows=3_000)
    weight[::2] = 3
    found = fit_map(score, label, weight, "isotonic")
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score.astype(float), label, weight)
    lowest = 1 / (3_000 + 2)
    expected = theirs.predict(score.astype(float)).clip(lowest, 1 - lowest)
    np.testing.assert_allclose(np.interp(score, found.x, found.y), expected, atol=1e-9)
    assert 0 < min(found.y) < max(found.y) < 1
    assert (np.diff(found.x) > 0).all()


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_scenario_with_few_rows_or_one_class_has_the_map_of_all_rows(method):
    score, label, weight, scenario = distorted()
    label[scenario == 1] = 0
    found = fit_label(score, label, weight, scenario, NAMES, method)
    rows = int((scenario == 2).sum())
    assert rows < MIN_ROWS
    feed = int((scenario == 1).sum())
    assert found.fallbacks == {
        "feed": f"{feed:,} rows, all with label 0",
        "friends": f"{rows:,} rows, fewer than 1,000",
    }
    assert list(found.scenarios) == ["search"]
    assert found.all.rows == 40_000


def test_rows_without_label_or_weight_do_not_count():
    score, label, weight, scenario = distorted(rows=9_000)
    label[::3], weight[1::3] = np.nan, 0
    kept = slice(2, None, 3)
    found = fit_label(score, label, weight, scenario, NAMES, "platt")
    columns = (column[kept] for column in (score, label, weight, scenario))
    assert found == fit_label(*columns, NAMES, "platt")


def test_a_row_of_weight_two_counts_as_two_rows():
    score, label, weight, _ = distorted(rows=2_000)
    weight[::2] = 2
    found = fit_map(score, label, weight, "platt")
    often = [np.repeat(column, weight.astype(int)) for column in (score, label)]
    twice = fit_map(*often, np.ones(len(often[0])), "platt")
    assert (found.a, found.b) == pytest.approx((twice.a, twice.b), abs=1e-4)


def test_a_label_of_one_class_is_refused():
    score, label, weight, scenario = distorted(rows=50)
    with pytest.raises(ValueError, match="found 50 rows, all with label 0"):
        fit_label(score, 0 * label, weight, scenario, NAMES, "isotonic")


def test_platt_of_calibrated_scores_changes_nothing():
    rng = np.random.default_rng(0)
    score = rng.beta(1, 3, 200_000)
    label = (rng.random(200_000) < score).astype(float)
    found = fit_map(score, label, np.ones(200_000), "platt")
    z = logit(np.linspace(0.05, 0.9, 9))
    np.testing.assert_allclose(found.a * z + found.b, z, atol=0.06)
