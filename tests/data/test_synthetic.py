"""The simulated app: its recorded facts are true, and the size of chunks does not matter."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import kstest
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from msrec.data.schema import load_schema
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.data.synthetic.simulator import STRENGTH, WATCH_BIAS, App
from msrec.data.synthetic.streamed_counts import binned_auc

ROWS = 120_000
OLD_COLUMNS = ("user", "item", "scenario", "timestamp", "click")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "app"
    synthesize(out, ROWS, users=400, items=800, seed=5)
    return out


def rows_of(dataset, split):
    return pl.read_parquet(dataset / split / "*.parquet")


def digest(folder: Path):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_another_chunk_size_gives_the_same_bytes(tmp_path):
    sizes = {"rows": 90_000, "users": 50, "items": 70}
    synthesize(tmp_path / "one", **sizes, chunk_rows=90_000)
    synthesize(tmp_path / "many", **sizes, chunk_rows=7_919)
    assert digest(tmp_path / "one") == digest(tmp_path / "many")


def test_a_chunk_depends_on_nothing_but_its_place():
    whole = App(rows=5_000, users=40, items=30).generate(0, 5_000)
    part = App(rows=5_000, users=40, items=30).generate(1_234, 1_241)
    for name in (*OLD_COLUMNS, "p_click", "p_like", "like", "e_watch", "watch"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[1_234:1_241])


def test_another_seed_gives_another_app():
    one, two = (App(rows=1_000, users=20, seed=s).generate(0, 1_000) for s in (0, 1))
    assert (one.user != two.user).any()


def test_clicks_happen_as_often_as_the_known_probability_says():
    log = App(rows=400_000).generate(0, 400_000)
    tenth = np.minimum((log.p_click * 10).astype(int), 9)
    count = np.bincount(tenth, minlength=10)
    expected = np.bincount(tenth, weights=log.p_click) / count
    rate = np.bincount(tenth, weights=log.click) / count
    assert (np.abs(rate - expected) < 4.5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_users_videos_and_clicks_are_those_that_had_no_other_labels():
    log = App(rows=20_000, users=60, items=90, seed=3).generate(0, 20_000)
    columns = (getattr(log, name).astype(np.int64).tobytes() for name in OLD_COLUMNS)
    found = hashlib.sha256(b"".join(columns)).hexdigest()
    assert found == "05e1a52b1428b3adc294c2033b7a5039268132ba2db41eb2c69fdca70b84cb89"


def test_likes_follow_clicks_as_often_as_the_known_probability_says():
    log = App(rows=400_000).generate(0, 400_000)
    assert set(np.unique(log.like)) == {0, 1}
    assert (log.like <= log.click).all()
    assert (log.p_like < log.p_click).all()
    tenth = np.searchsorted(np.quantile(log.p_like, np.arange(1, 10) / 10), log.p_like)
    count = np.bincount(tenth)
    expected = np.bincount(tenth, weights=log.p_like) / count
    rate = np.bincount(tenth, weights=log.like) / count
    assert (np.abs(rate - expected) < 4.5 * np.sqrt(expected * (1 - expected) / count)).all()
    assert log.like.mean() < 0.25 * log.click.mean()


def test_the_logarithm_of_a_watch_time_is_normal_around_that_of_its_median():
    log = App(rows=200_000).generate(0, 200_000)
    np.testing.assert_array_equal(np.isnan(log.watch), log.click == 0)
    rows = log.click == 1
    watch, mean = log.watch[rows].astype(np.float64), log.e_watch[rows].astype(np.float64)
    noise = (np.log(watch) - (np.log(mean) - 0.5**2 / 2)) / 0.5
    assert kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise, np.log(mean))[0, 1]) < 4.5 / np.sqrt(rows.sum())
    error = watch - mean  # the variance of such a time is mean^2 (exp(0.5^2) - 1)
    assert abs(error.mean()) < 4.5 * np.sqrt((mean**2).mean() * np.expm1(0.25) / rows.sum())
    assert (watch * 64 == np.rint(watch * 64)).all()


def test_a_watch_time_follows_the_length_of_the_video_and_the_interest():
    app = App(rows=50_000)
    log = app.generate(0, app.rows)
    category = app.category[log.item]
    interest = app.interest[log.user, log.scenario, category]
    interest = interest + app.watch_taste[log.user, category]
    expected = (
        WATCH_BIAS[log.scenario]
        + 0.8 * np.log(app.seconds[log.item])
        + 0.3 * STRENGTH[log.scenario] * interest
        + app.patience[log.user]
        + 0.125
    )
    np.testing.assert_allclose(np.log(log.e_watch), expected, atol=1e-5)
    standardised = (np.log(app.seconds) - np.log(app.seconds).mean()) / np.log(app.seconds).std()
    np.testing.assert_allclose(app.log_duration, standardised, atol=1e-12)


def test_labels_share_most_taste_but_not_all():
    app = App(rows=200_000)
    log = app.generate(0, app.rows)
    for own in (app.like_taste, app.watch_taste):
        shared = app.interest[:, 1].ravel()
        assert 0.8 < np.corrcoef(shared, shared + own.ravel())[0, 1] < 0.95
    best, by_click = (roc_auc_score(log.like, p) for p in (log.p_like, log.p_click))
    assert 0.015 < best - by_click < 0.04


def test_the_recorded_best_values_of_like_and_watch_are_those_of_the_truth(dataset):
    schema, test = load_schema(dataset), rows_of(dataset, "test")
    feed = test.filter(scenario=1)
    best = schema.counts["best"]
    for name, rows in (("all", test), ("feed", feed)):
        exact = roc_auc_score(rows["like"], rows["truth_like"])
        assert best["like"]["auc"][name] == pytest.approx(exact, abs=1e-4)
        rows = rows.filter(click=1)
        watch, mean = rows["watch"], rows["truth_watch"].cast(pl.Float64)
        rmse, mae = root_mean_squared_error(watch, mean), mean_absolute_error(watch, mean)
        median = mean * np.exp(-0.125)
        assert best["watch"]["rmse"][name] == pytest.approx(rmse, rel=1e-4)
        assert best["watch"]["mae"][name] == pytest.approx(
            mean_absolute_error(watch, median), rel=1e-3
        )
        assert best["watch"]["mae"][name] < mae
        assert rmse < root_mean_squared_error(watch, median)
    assert best["watch"]["rmse"].keys() == schema.counts["best_auc"].keys()


def test_labels_are_counted_and_the_scale_is_that_of_the_training_rows(dataset):
    schema = load_schema(dataset)
    assert schema.labels == ["click", "like", "watch"]
    options = schema.label("watch")
    assert (options.kind, options.exists_where, options.transform) == ("regression", "click", "log")
    train = rows_of(dataset, "train").filter(click=1)["watch"].to_numpy().astype(np.float64)
    scale = options.scale
    assert (scale.mean, scale.std) == pytest.approx((np.log1p(train).mean(), np.log1p(train).std()))
    assert (scale.low, scale.high) == (train.min(), train.max())
    counts = schema.counts["labels"]
    for split in ("train", "valid", "test"):
        rows = rows_of(dataset, split)
        assert counts["like"][split]["positives"] == rows["like"].sum()
        assert counts["watch"][split]["missing"] == len(rows) - rows["click"].sum()
    assert counts["watch"]["train"]["mean"] == pytest.approx(train.mean())


def test_the_recorded_best_auc_is_that_of_the_known_probability(dataset):
    schema, test = load_schema(dataset), rows_of(dataset, "test")
    cold = pl.read_parquet(dataset / "users.parquet")["is_cold"].gather(test["user"])
    groups = {
        "all": test,
        "cold users": test.filter(cold == 1),
        "warm users": test.filter(cold == 0),
    }
    for number, scenario in enumerate(schema.scenarios):
        groups[scenario.name] = test.filter(pl.col("scenario") == number)
    assert groups.keys() == schema.counts["best_auc"].keys()
    for name, rows in groups.items():
        exact = roc_auc_score(rows["click"], rows["p_click"])
        assert schema.counts["best_auc"][name] == pytest.approx(exact, abs=1e-4)


def test_the_best_auc_is_where_a_good_click_model_could_be(dataset):
    assert 0.78 < load_schema(dataset).counts["best_auc"]["all"] < 0.83


def test_cold_users_have_few_training_rows_and_many_test_rows(dataset):
    cold = pl.read_parquet(dataset / "users.parquet")["is_cold"].to_numpy() == 1
    assert cold.mean() == 0.25
    train = np.bincount(rows_of(dataset, "train")["user"], minlength=400)
    test = np.bincount(rows_of(dataset, "test")["user"], minlength=400)
    assert (train[cold].min(), train[cold].max()) == (3, 8)
    assert test[cold].mean() == pytest.approx(test[~cold].mean(), rel=0.15)


def test_counting_past_clicks_ranks_warm_users_better_than_cold_ones():
    """What a model of ids alone can learn: a user's rate in a category, an item's rate."""
    app = App(rows=200_000)
    log = app.generate(0, app.rows)
    train, test = np.arange(app.rows) < app.bounds[0], np.arange(app.rows) >= app.bounds[1]
    pair = log.user * app.num_categories + app.category[log.item]
    score = sum(
        smoothed_log_odds(key, log.click, train, prior)
        for key, prior in ((pair, 4), (log.item, 10))
    )
    cold = app.is_cold[log.user]
    auc = {
        c: roc_auc_score(log.click[m], score[m]) for c in (0, 1) if (m := test & (cold == c)).any()
    }
    best = roc_auc_score(log.click[test], log.p_click[test])
    assert auc[0] < best - 0.02
    assert auc[1] < auc[0] - 0.08


def smoothed_log_odds(key, click, train, prior):
    shown = np.bincount(key[train], minlength=key.max() + 1) + prior
    mean = click[train].mean()
    clicked = np.bincount(key[train], weights=click[train], minlength=key.max() + 1) + prior * mean
    return np.log(clicked / (shown - clicked))[key]


def test_interests_carry_over_between_scenarios():
    interest = App(rows=1_000, users=30).interest
    search, feed = interest[:, 0].ravel(), interest[:, 1].ravel()
    assert 0.85 < np.corrcoef(search, feed)[0, 1] < 1


@pytest.mark.parametrize("rows", [1_000, 9_999_999])
def test_no_second_is_on_both_sides_of_a_cut(rows):
    app = App(rows=rows, users=20)
    for cut in app.bounds:
        before, after = app.generate(cut - 1, cut + 1).timestamp
        assert before < after
    assert app.bounds[0] == pytest.approx(0.8 * rows, abs=8)


def test_the_files_hold_what_the_schema_says(dataset):
    schema = load_schema(dataset)
    for split in ("train", "valid", "test"):
        rows = rows_of(dataset, split)
        assert rows.columns == [*schema.columns, "p_click", "truth_like", "truth_watch"]
        assert sum(rows.null_count().row(0)) == 0
        assert len(rows) == schema.counts["rows"][split]["all"]
        for feature in schema.sparse:
            assert rows[feature.name].max() < schema.tables[feature.table]
    assert schema.split.train_until == rows_of(dataset, "train")["timestamp"].max()


def test_too_few_rows_for_the_cold_users_is_said_with_the_number_it_takes():
    with pytest.raises(ValueError, match="Take .* rows or more"):
        App(rows=1_000, users=600)


def test_ten_videos_are_an_app_too(tmp_path):
    assert synthesize(tmp_path / "app", rows=1_000, users=10, items=10).num_items == 10


def test_binned_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 12, 500), rng.integers(0, 2, 500)
    counts = [np.bincount(score[label == c], minlength=12) for c in (0, 1)]
    assert binned_auc(*counts) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert binned_auc(counts[0], np.zeros(12, dtype=int)) is None
