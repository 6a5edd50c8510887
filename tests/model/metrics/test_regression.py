"""Metrics of a regression label against scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from msrec.model.metrics.bootstrap import Bootstrap
from msrec.model.metrics.definitions import Metrics
from msrec.model.metrics.exact import Grouping, MetricOptions, sort_rows
from msrec.model.metrics.streaming import RegressionTotals

NAMES = ["search", "feed"]


def watched(rows=4_000, users=150, seed=0, digits=None):
    """Watch times, a quarter of them 0, with scores; users differ in the model's error."""
    rng = np.random.default_rng(seed)
    user, scenario = rng.integers(0, users, rows), rng.integers(0, 2, rows)
    mean = rng.gamma(2, 5, rows)
    label = np.where(rng.random(rows) < 0.25, 0, mean * rng.gamma(3, 1 / 3, rows))
    score = (mean + rng.normal(0, 2, users)[user] - 2).astype(np.float32)
    if digits is not None:
        score, label = score.round(digits), label.round(digits)
    return score, label.astype(np.float32), user, scenario


def metrics(score, label, user, weight=None, **options):
    options = MetricOptions(**{"resamples": 0} | options)
    return sort_rows(score, label, user, weight, options, kind="regression").metrics()


@pytest.mark.parametrize("digits", [None, 0, -1], ids=["distinct", "ties", "many ties"])
def test_errors_and_spearman_equal_scikit_learn_and_scipy(digits):
    score, label, user, scenario = watched(digits=digits)
    rows = sort_rows(score, label, user, kind="regression")
    by_name = rows.metrics_by(Grouping(NAMES, scenario))
    for ours, mine in ((rows.metrics(), slice(None)), (by_name["feed"], scenario == 1)):
        y, p = label[mine].astype(float), score[mine].astype(float)
        assert ours.mae == pytest.approx(mean_absolute_error(y, p), abs=1e-12)
        assert ours.rmse == pytest.approx(root_mean_squared_error(y, p), abs=1e-12)
        assert ours.spearman == pytest.approx(spearmanr(y, p).statistic, abs=1e-12)
        assert ours.calibration == pytest.approx(p.mean() / y.mean(), abs=1e-12)
        assert (ours.rows, ours.users) == (len(y), len(np.unique(user[mine])))
        assert (ours.positives, ours.auc, ours.log_loss, ours.intervals) == (None, None, None, {})


def test_a_row_of_weight_two_counts_as_two_rows():
    score, label, user, _ = watched(rows=900, digits=0)
    weight = np.random.default_rng(1).integers(0, 4, len(score))
    ours = metrics(score, label, user, weight)
    often = metrics(*(np.repeat(column, weight) for column in (score, label, user)))
    for name in ("mae", "rmse", "spearman", "calibration"):
        assert getattr(ours, name) == pytest.approx(getattr(often, name), abs=1e-12), name


def test_quantile_calibration_error_is_the_mean_gap_of_ten_bins():
    score, label, user, _ = watched(rows=4_000)
    bins = np.array_split(np.argsort(score, kind="stable"), 10)
    gaps = [abs(score[rows].mean(dtype=float) - label[rows].mean(dtype=float)) for rows in bins]
    assert metrics(score, label, user).quantile_calibration_error == pytest.approx(np.mean(gaps))


def test_a_resample_has_the_errors_of_its_rows():
    score, label, user, _ = watched(rows=2_000, users=60)
    rows = sort_rows(score, label, user, kind="regression")
    sums = rows.sums()
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60))
    found = sums.values(counts[np.argsort(rows.block_of)] @ sums.table, sums.table.sum(axis=0))
    again = metrics(score, label, user, counts[user])
    for name in ("mae", "rmse", "calibration"):
        assert found[name] == pytest.approx(getattr(again, name), abs=1e-12), name
    assert found["spearman"] == pytest.approx(again.spearman, abs=0.01)


@pytest.mark.parametrize("digits", [None, -1], ids=["distinct", "many ties"])
def test_the_derivative_of_spearman_equals_differences(digits):
    score, label, user, _ = watched(rows=600, users=30, digits=digits)
    rows = sort_rows(score, label, user, kind="regression")
    sums = rows.sums()
    total, step = sums.table.sum(axis=0), 1e-5
    for one in range(0, 30, 3):
        weight = np.where(user == one, 1 + step, 1.0)
        expected = (
            metrics(score, label, user, weight).spearman - metrics(score, label, user).spearman
        )
        ours = sums.values(total + step * sums.table[rows.block_of[one]], total)["spearman"]
        ours = ours - sums.values(total, total)["spearman"]
        assert ours / step == pytest.approx(expected / step, abs=1e-5)


def test_the_interval_of_spearman_agrees_with_a_true_bootstrap():
    score, label, user, _ = watched(rows=2_000, users=100)
    ours = metrics(score, label, user, resamples=300)
    draws = Bootstrap.draw(100, 300, 0).counts
    drawn = [metrics(score, label, user, counts[user]).spearman for counts in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert ours.intervals["spearman"] == pytest.approx((low, high), abs=0.12 * (high - low))
    assert set(ours.intervals) == {
        *("mae", "rmse", "spearman", "calibration", "quantile_calibration_error")
    }


def population(rng, users):
    """Watch times with a long tail; users differ in activity and in the error of the model."""
    user = np.repeat(np.arange(users), rng.geometric(1 / 12, users))
    mean = rng.gamma(2, 5, len(user)) * np.exp(rng.normal(0, 0.4, users))[user]
    label = np.where(rng.random(len(user)) < 0.25, 0, mean * rng.gamma(3, 1 / 3, len(user)))
    return mean * 0.75 * np.exp(rng.normal(0, 0.3, users))[user], label, user


@pytest.mark.slow
def test_intervals_cover_the_true_value_about_as_often_as_they_claim():
    """Except those of RMSE, which a few large errors decide."""
    truth = metrics(*population(np.random.default_rng(0), 60_000))
    hits = {"mae": 0, "rmse": 0, "spearman": 0, "calibration": 0, "quantile_calibration_error": 0}
    for seed in range(300):
        rows = population(np.random.default_rng([1, seed]), 200)
        for name, (low, high) in metrics(*rows, resamples=250, seed=seed).intervals.items():
            hits[name] += low <= getattr(truth, name) <= high
    shares = {name: count / 300 for name, count in hits.items()}
    assert shares.pop("quantile_calibration_error") > 0.95  # conservative by construction
    assert 0.84 <= shares.pop("rmse") <= 0.95
    assert all(0.90 <= share <= 0.985 for share in shares.values()), shares


def test_equal_labels_have_no_spearman():
    ours = metrics(np.array([1.0, 2.0, 3.0]), np.full(3, 4.0), np.arange(3))
    assert (ours.spearman, ours.mae) == (None, 2.0)


def test_a_scenario_without_a_label_has_no_metrics():
    score, label, user, scenario = watched(rows=300)
    label[scenario == 1] = np.nan
    rows = sort_rows(score, label, user, options=MetricOptions(resamples=20), kind="regression")
    found = rows.metrics_by(Grouping([*NAMES, "shop"], scenario))
    missing = int((scenario == 1).sum())
    assert found["feed"] == Metrics(0, missing=missing)
    assert found["shop"] == Metrics(0)
    assert found["search"].rows == 300 - missing


def test_missing_labels_are_left_out_and_counted_by_group():
    score, label, user, scenario = watched()
    label[::3] = np.nan
    weight = np.ones(len(label))
    weight[:30] = 0  # ten of them without a label
    kept = ~np.isnan(label) & (weight > 0)
    rows = sort_rows(score, label, user, weight, kind="regression")
    found = rows.metrics_by(Grouping(NAMES, scenario))
    alone = metrics(score[kept], label[kept], user[kept])
    assert rows.metrics().mae == pytest.approx(alone.mae, abs=1e-12)
    assert (rows.metrics().rows, rows.metrics().missing) == (kept.sum(), (~kept).sum() - 30)
    feed = scenario == 1
    assert found["feed"].missing == (np.isnan(label) & (weight > 0) & feed).sum()
    assert alone.missing is None


def test_an_infinite_label_is_named_with_its_row():
    score, label, user, _ = watched(rows=9)
    label[4] = np.inf
    with pytest.raises(ValueError, match="label must be a finite number; got inf at row 4"):
        sort_rows(score, label, user, kind="regression")


def test_totals_of_two_ranks_equal_the_exact_metrics():
    score, label, user, scenario = watched()
    label[::7] = np.nan
    weight = np.random.default_rng(1).integers(0, 3, len(score)).astype(float)
    first, second = RegressionTotals(2), RegressionTotals(2)
    for rank, totals in enumerate((first, second)):
        columns = (score, label, scenario, weight)
        totals.update(*(torch.from_numpy(column[rank::2]) for column in columns))
    first.merge(second.counts)
    result = first.compute(NAMES)
    exact = sort_rows(score, label, user, weight, kind="regression")
    pairs = [(result.all, exact.metrics())]
    pairs += zip(
        result.scenarios.values(), exact.metrics_by(Grouping(NAMES, scenario)).values(), strict=True
    )
    for ours, truth in pairs:
        assert ours.rows == truth.rows
        for name in ("mae", "rmse", "calibration"):
            assert getattr(ours, name) == pytest.approx(getattr(truth, name), abs=1e-9), name
    assert result.named("watch")["rmse/label=watch/scenario=feed"] == result.scenarios["feed"].rmse


def test_totals_without_rows_have_no_metrics():
    result = RegressionTotals(1).compute(["feed"])
    assert (result.all.rows, result.all.mae, result.all.calibration) == (0, None, None)
