"""Splits: which row goes where."""

import numpy as np
import polars as pl
import pytest

from msrec.data.convert.raw_tables import ID_FEATURES, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.split import (
    TEST,
    TRAIN,
    VALID,
    SplitChoice,
    random_split,
    split_rows,
    time_split,
    user_last_split,
    user_shares,
)
from msrec.data.convert.staging import stage_interactions
from msrec.data.schema import Scenario

THIRDS = (0.8, 0.1, 0.1)


def log_of(rows=2000, users=40, times=500, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, users, rows), rng.integers(0, times, rows)


def test_random_parts_have_the_sizes_that_were_asked_for():
    assert np.bincount(random_split(1_000_209, 0, THIRDS)).tolist() == [800_167, 100_021, 100_021]


def test_the_same_seed_gives_the_same_parts_and_another_seed_others():
    first = random_split(1000, 3, THIRDS)
    np.testing.assert_array_equal(first, random_split(1000, 3, THIRDS))
    assert (first != random_split(1000, 4, THIRDS)).any()


def test_no_timestamp_is_on_both_sides_of_a_time_cut():
    _, clock = log_of()
    parts = time_split(clock, THIRDS)
    assert clock[parts == TRAIN].max() < clock[parts == VALID].min()
    assert clock[parts == VALID].max() < clock[parts == TEST].min()


def test_time_parts_are_as_near_to_the_fractions_as_ties_allow():
    _, clock = log_of()
    most_ties = np.unique(clock, return_counts=True)[1].max()
    sizes = np.bincount(time_split(clock, THIRDS))
    assert 0 <= 1600 - sizes[TRAIN] < most_ties
    assert 0 <= sizes[TEST] - 200 < most_ties


def slow_user_last(user, clock, last, fractions):
    """One user after the other, by the words of the docstring."""
    parts = np.full(len(user), TRAIN)
    for who in np.unique(user):
        rows = np.flatnonzero(user == who)
        rows = rows[np.argsort(clock[rows], kind="stable")]
        n = len(rows)
        if last is None:
            num_valid, num_test = (int(n * f + 1e-9) for f in fractions[1:])
        else:
            num_valid = num_test = last if n > 2 * last else 0
        mine = np.full(n, TRAIN)
        if num_test:
            mine[clock[rows] >= clock[rows[n - num_test]]] = TEST
        left = int((mine == TRAIN).sum())
        if num_valid and left:
            cut = clock[rows[max(left - num_valid, 0)]]
            mine[(mine == TRAIN) & (clock[rows] >= cut)] = VALID
        parts[rows] = mine if (mine == TRAIN).any() else TRAIN
    return parts


@pytest.mark.parametrize("times", [5, 60, 10_000])
@pytest.mark.parametrize("last", [None, 1, 3])
def test_user_last_equals_the_slow_version(times, last):
    user, clock = log_of(users=150, times=times)
    user = np.append(user, [900, 901, 901, 902, 902, 902])
    clock = np.append(clock, [1, 1, 2, 3, 3, 3])
    fast = user_last_split(user, clock, last, (0.6, 0.2, 0.2))
    np.testing.assert_array_equal(fast, slow_user_last(user, clock, last, (0.6, 0.2, 0.2)))


def test_without_ties_each_user_gives_exactly_the_last_rows():
    user = np.repeat(np.arange(7), 10)
    parts = user_last_split(user, np.random.default_rng(0).permutation(70), last=2)
    for who in range(7):
        assert np.bincount(parts[user == who]).tolist() == [6, 2, 2]


def test_without_a_clock_the_order_of_the_rows_counts():
    assert user_last_split(np.array([5, 5, 5]), None, last=1).tolist() == [TRAIN, VALID, TEST]


@pytest.fixture
def stage_of(tmp_path):
    """100 rows of 9 users as a stage, with more columns where they are given."""

    def make(timestamp="timestamp", **columns):
        rows = {"user_key": np.arange(100) % 9, "item_key": [0] * 100, "scenario": [0] * 100}
        rows |= {"label": [1] * 100, "timestamp": np.arange(100)}
        raw = RawTables(
            name="log",
            description="a log",
            interactions=pl.DataFrame(rows | columns),
            users=pl.DataFrame({"user_key": np.arange(9)}),
            items=pl.DataFrame({"item_key": [0]}),
            scenarios=[Scenario(name="feed", description="the feed")],
            features=ID_FEATURES,
            timestamp=timestamp,
            files={"interactions": "log.parquet"},
        )
        return stage_interactions(raw, tmp_path, RowFilter(), list(columns))[1]

    return make


def test_the_record_says_until_when_training_goes(stage_of):
    codes, record = split_rows(stage_of(), SplitChoice("time"), "log.parquet")
    assert (record.train_until, record.method, record.seed) == (79, "time", None)
    assert (codes == TRAIN).sum() == 80


def test_a_given_split_is_read_from_its_column(stage_of):
    words = ["train", "valid", "test", "train"] * 25
    choice = SplitChoice("given", column="part")
    codes, record = split_rows(stage_of(part=words), choice, "log.parquet")
    assert codes[:4].tolist() == [TRAIN, VALID, TEST, TRAIN]
    assert record.method == "given"


def test_another_word_in_a_given_split_names_file_column_and_row(stage_of):
    words = ["train", "valid", "test", "dev"] * 25
    with pytest.raises(ValueError, match=r"log.parquet: row 3: column 'part' .* found 'dev'"):
        split_rows(stage_of(part=words), SplitChoice("given", column="part"), "log.parquet")


def test_a_given_split_needs_its_column(stage_of):
    with pytest.raises(ValueError, match="needs the column that says train, valid or test"):
        SplitChoice("given")


def test_an_empty_split_is_refused_by_name(stage_of):
    choice = SplitChoice("time", fractions=(0.9, 0.0, 0.1))
    with pytest.raises(ValueError, match="valid has none of the 100 rows"):
        split_rows(stage_of(), choice, "log.parquet")


def test_a_split_by_time_needs_a_clock(stage_of):
    with pytest.raises(ValueError, match="needs a timestamp column"):
        split_rows(stage_of(timestamp=None), SplitChoice("time"), "log.parquet")


def test_users_in_shares_are_all_rows_once_and_whole_users(stage_of):
    stage = stage_of()
    shares = list(user_shares(stage, rows=30))
    assert len(shares) == 4
    assert np.sort(np.concatenate(shares)).tolist() == list(range(100))
    owners = [set(stage.user[rows]) for rows in shares]
    assert sum(map(len, owners)) == 9


@pytest.mark.parametrize(
    "options",
    [
        {"method": "random", "last": 2},
        {"method": "time", "column": "part"},
        {"method": "given", "column": "part", "fractions": (0.6, 0.2, 0.2)},
        {"method": "user_last", "last": 2, "fractions": (0.6, 0.2, 0.2)},
    ],
)
def test_an_option_that_the_split_would_not_use_is_refused(options):
    with pytest.raises(ValueError, match=f"{options['method']}.* (L|l)eave (the option|them) out"):
        SplitChoice(**options)


def test_fractions_must_sum_to_one():
    with pytest.raises(ValueError, match="sum to 1"):
        SplitChoice("random", fractions=(0.8, 0.1, 0.2))
