"""Calibration maps against numpy and scikit-learn, row by row."""

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from msrec.model.calibration import IsotonicCalibration, PlattCalibration


def batch(rows=4_000, labels=3, scenarios=5):
    rng = np.random.default_rng(0)
    score = rng.beta(1, 3, (rows, labels)).astype(np.float32)
    score[:4] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 1]]
    score[:, 1] = 300 * score[:, 1] - 50  # a regression label, whose scores stay
    return score, rng.integers(0, scenarios, rows)


def fitted(seed):
    """A fitted isotonic regression, and its knots."""
    rng = np.random.default_rng(seed)
    x = rng.random(2_000)
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(x, rng.random(2_000) < x**2)
    return model, (model.X_thresholds_.tolist(), model.y_thresholds_.tolist())


def test_isotonic_maps_equal_scikit_learn_for_every_scenario_and_label():
    score, scenario = batch()
    models = [[fitted(10 * s + t) for t in range(3)] for s in range(5)]
    maps = [[knots if t != 1 else None for t, (_, knots) in enumerate(row)] for row in models]
    found = IsotonicCalibration(maps)(torch.from_numpy(score), torch.from_numpy(scenario))
    expected = score.astype(np.float64)
    for s in range(5):
        for t in (0, 2):
            mine = scenario == s
            expected[mine, t] = models[s][t][0].predict(expected[mine, t])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy()[:, 1], score[:, 1])


def test_platt_maps_are_logistic_in_the_logit():
    score, scenario = batch()
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 0.3, (5, 3)), rng.normal(0, 1, (5, 3))
    maps = [[(a[s, t], b[s, t]) if t != 1 else None for t in range(3)] for s in range(5)]
    found = PlattCalibration(maps)(torch.from_numpy(score), torch.from_numpy(scenario)).numpy()
    for row in range(0, len(score), 7):
        for t in (0, 2):
            s, p = scenario[row], np.clip(float(score[row, t]), 1e-7, 1 - 1e-7)
            assert found[row, t] == pytest.approx(expit(a[s, t] * logit(p) + b[s, t]), abs=1e-6)
    np.testing.assert_array_equal(found[:, 1], score[:, 1])


@pytest.mark.parametrize("kind", [IsotonicCalibration, PlattCalibration])
def test_a_calibration_can_be_exported(kind):
    """For any number of rows, to the last bit."""
    score, scenario = map(torch.from_numpy, batch(rows=50))
    pair = fitted(0)[1] if kind is IsotonicCalibration else (1.2, -0.3)
    module = kind([[pair, None, pair]] * 5)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(
        module, (score, scenario), dynamic_shapes=({0: rows}, {0: rows})
    ).module()
    for count in (2, 50):
        args = score[:count], scenario[:count]
        assert torch.equal(exported(*args), module(*args))
