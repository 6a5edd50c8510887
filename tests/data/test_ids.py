"""Vocabularies and hashes: every known value has its row, every other value has row 0."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from msrec.data.features.hashed_values import Hashed
from msrec.data.features.shard_balance import shard_imbalance, spread
from msrec.data.features.vocabulary import UNKNOWN, Vocabulary
from msrec.data.synthetic.integer_vocabulary import IntegerVocabulary


def count_unknown(encoded):
    flat = encoded.explode() if encoded.dtype.base_type() is pl.List else encoded
    return (flat == UNKNOWN).sum()


def test_encode_then_look_up_gives_the_value_back():
    values = pl.Series("x", np.random.default_rng(0).integers(-50, 50, 1000))
    vocabulary = Vocabulary.fit(values)
    rows = vocabulary.encode(values)
    assert rows.dtype == pl.Int32
    assert (vocabulary.values.gather(rows - 1) == values).all()
    assert sorted(rows.unique()) == list(range(1, vocabulary.rows))


def test_rows_do_not_depend_on_the_order_of_the_data():
    one, two = pl.Series(["c", "a", "b"]), pl.Series(["b", "c", "a", "a"])
    assert Vocabulary.fit(one).values.equals(Vocabulary.fit(two).values)


def test_unseen_and_null_values_are_row_zero_and_counted():
    rows = Vocabulary.fit(pl.Series(["a", "b"])).encode(pl.Series(["b", "z", None, "a"]))
    assert rows.to_list() == [2, 0, 0, 1]
    assert count_unknown(rows) == 2


def test_lists_are_encoded_value_by_value_and_a_null_list_is_empty():
    vocabulary = Vocabulary.fit(pl.Series([["b", "a"], ["b"], []]))
    rows = vocabulary.encode(pl.Series([["a", "z"], None, [], ["b", "b"]]))
    assert rows.to_list() == [[1, 0], [], [], [2, 2]]
    assert count_unknown(rows) == 1


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_the_vocabulary_of_keys_is_that_of_any_values(kind, share):
    rng = np.random.default_rng(0)
    keys = pl.Series("user_key", rng.permutation(500) - 99).cast(kind)
    is_known = pl.Series(rng.random(500) < share)
    vocabulary, ids = Vocabulary.fit_keys(keys, is_known)
    expected = Vocabulary.fit(keys.filter(is_known))
    assert vocabulary.values.equals(expected.values, check_names=True)
    assert ids.equals(expected.encode(keys), check_names=True)
    lookups = rng.integers(0, 9, vocabulary.rows)
    sorted_lookups = Vocabulary(vocabulary.values).by_value(lookups)
    np.testing.assert_array_equal(vocabulary.by_value(lookups), sorted_lookups)


@pytest.mark.parametrize("values", [pl.Series(["a", None]), pl.Series([["a"], [], None])])
def test_an_empty_vocabulary_knows_nothing(values):
    empty = Vocabulary.fit(values.clear())
    assert empty.rows == 1
    assert count_unknown(empty.encode(values)) == values.explode().is_not_null().sum() + (
        values.dtype == pl.String
    )


def test_seen_rows_do_not_depend_on_the_chunks():
    stream = np.random.default_rng(1).integers(0, 300, 5000)
    whole, pieces = IntegerVocabulary(400), IntegerVocabulary(400)
    whole.update(stream)
    for chunk in np.array_split(stream, 37):
        pieces.update(chunk)
    asked = np.arange(400)
    rows = whole.encode(asked)
    np.testing.assert_array_equal(rows, pieces.encode(asked))
    np.testing.assert_array_equal(rows == UNKNOWN, ~np.isin(asked, stream))
    known = rows[rows != UNKNOWN]
    assert len(np.unique(known)) == len(known)
    assert known.max() < whole.rows == 401
    lookups = np.bincount(rows, np.arange(400), minlength=401).astype(np.int64)
    by_value = np.where(rows == UNKNOWN, 0, asked)
    np.testing.assert_array_equal(whole.by_value(lookups)[1:], by_value)


def test_spread_is_an_order_in_which_no_block_has_more_of_a_run_than_another():
    for count in (0, 1, 2, 7, 1000, 4181, 65_536):
        assert sorted(spread(count)) == list(range(count))
    place = np.argsort(spread(65_536))
    for first in range(0, 65_536 - 4096, 1111):
        blocks = np.bincount(place[first : first + 4096] * 64 // 65_536, minlength=64)
        assert abs(blocks - 64).max() <= 3  # random places differ from 64 by up to 3 * 8


def test_no_rank_of_a_table_split_by_rows_is_hot():
    """Values that are looked up less the later they came, as new items are."""
    values = pl.Series(np.arange(20_000))
    times = (3e6 / (values.to_numpy() + 200)).astype(np.int64)
    vocabulary = Vocabulary.fit(values)
    lookups = np.bincount(vocabulary.encode(values), times).astype(np.int64)
    np.testing.assert_array_equal(vocabulary.by_value(lookups)[1:], times)
    for ranks in (2, 8, 64):
        before = shard_imbalance(vocabulary.by_value(lookups), ranks)
        assert before > 1.5
        assert shard_imbalance(lookups, ranks) < 1.1
    assert shard_imbalance(np.array([5, 1, 1, 1, 0]), 2) == pytest.approx(7 / 4)


def test_a_vocabulary_does_not_grow_by_values_of_another_type():
    known = Vocabulary.fit(pl.Series(["a", "b"])).values
    with pytest.raises(ValueError, match="column 'device' was String and is Int64 now"):
        Vocabulary.fit(pl.Series("device", [1, 2]), known)
    assert Vocabulary.fit(pl.Series("device", [], dtype=pl.Int64), known).values.equals(known)


# Hashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashes", [1, 2, 3])
def test_a_hash_is_stable_spread_evenly_and_knows_new_values(hashes):
    table = Hashed(rows=1001, hashes=hashes)
    rows = table.encode(pl.Series(range(100_000)))
    again = table.encode(pl.Series(reversed(range(100_000)))).reverse()
    assert rows.equals(again)
    flat = rows.explode().to_numpy() if hashes > 1 else rows.to_numpy()
    assert (flat.min(), flat.max()) == (1, 1000)
    assert stats.chisquare(np.bincount(flat, minlength=1001)[1:]).pvalue > 1e-3
    text = table.encode(pl.Series(["17", None]))
    assert text[0] == rows[17] if hashes == 1 else text[0].equals(rows[17])


def test_collisions_are_as_many_as_birthdays_say():
    values = pl.Series(range(2_000))
    for hashes, places in ((1, 5_000), (2, 5_000**2 / 2)):
        found = Hashed(rows=5_001, hashes=hashes).collisions(values)
        expected = 2_000 * (1 - (1 - 1 / places) ** 1_999)
        assert found["values"] == 2_000
        assert abs(found["shared"] - expected) < 4 * np.sqrt(expected) + 3


def test_lists_are_hashed_value_by_value():
    one, two = Hashed(50), Hashed(50, hashes=2)
    values = pl.Series([["a", "b"], [], None, ["b", None]])
    a, b = one.encode(pl.Series(["a", "b"]))
    assert one.encode(values).to_list() == [[a, b], [], [], [b]]
    pairs = two.encode(pl.Series(["a", "b"])).to_list()
    assert two.encode(values).to_list() == [pairs[0] + pairs[1], [], [], pairs[1]]


@pytest.mark.parametrize("wrong", [(1, 1), (2**31, 1), (10, 0)])
def test_a_hashed_table_has_rows_and_hashes(wrong):
    with pytest.raises(ValueError, match="must have 2 to"):
        Hashed(*wrong)
