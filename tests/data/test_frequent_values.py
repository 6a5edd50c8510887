"""Values with few training rows get no row of their table; they are counted."""

import io

import numpy as np
import polars as pl
import pytest
from part_tables import write_raw
from rich.console import Console

from msrec.data.convert.vocabulary_encoding import values_of
from msrec.data.features.vocabulary import Frequent, merged_rows, value_rows
from msrec.tools.convert import convert, split_choice, tables_by_option


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder)
    return folder


def rows_by_user(out):
    """Returns user -> training rows."""
    train = pl.concat(pl.read_parquet(path) for path in sorted((out / "train").glob("*")))
    keys = pl.read_parquet(out / "users.parquet")["user_key"]
    return dict(keys.gather(train["user"]).value_counts().rows())


def test_values_with_fewer_rows_have_row_0_and_the_others_do_not(raw, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    kinds = tables_by_option(min_rows=["user_id=15", "genres=2000"])
    choice = split_choice("tables", split="time")
    out = tmp_path / "out"
    schema = convert("tables", raw, out, choice=choice, table_kinds=kinds, console=console)
    rows = rows_by_user(out)
    kept = {user for user, count in rows.items() if count >= 15}
    assert set(pl.read_parquet(out / "vocabularies/user_id.parquet")["value"]) == kept
    assert schema.tables["user_id"] == len(kept) + 1
    cut = schema.counts["cut"]["user_id"]
    lost = sum(count for count in rows.values() if count < 15)
    assert cut == {
        "values": len(rows) - len(kept),
        "of_values": len(rows),
        "rows": lost,
        "min_rows": 15,
    }
    assert 0 < lost < sum(rows.values())
    assert schema.counts["unknown"]["user_id"]["train"] == lost
    sentence = f"{len(rows) - len(kept)} of {len(rows)} training values have fewer than 15 rows"
    assert sentence in console.file.getvalue()
    # genres a|b and b|c alternate by item: b is in all rows, a and c in about half of 4,800.
    assert sorted(pl.read_parquet(out / "vocabularies/genres.parquet")["value"]) == ["a", "b", "c"]


def test_lists_nulls_and_weights_are_counted():
    values = pl.Series([["a", "b", "a"], None, [], ["b"]])
    counts = value_rows(values, np.array([2, 9, 9, 3]))
    assert dict(counts.rows()) == {"a": 4, "b": 5}
    assert dict(value_rows(pl.Series([1, None, 1, 2])).rows()) == {1: 2, 2: 1}


def test_rows_are_counted_only_for_a_least_number_of_rows():
    values = pl.Series([1, None, 1, 2])
    assert dict(values_of(values, is_counted=True).rows()) == {1: 2, 2: 1}
    distinct = values_of(values, is_counted=False)
    assert merged_rows(pl.concat([distinct, distinct])).sort("value").rows() == [(1,), (2,)]


def test_all_values_may_be_rare(raw, tmp_path):
    kinds = {"query": Frequent(10**6)}
    schema = convert("tables", raw, tmp_path / "out", table_kinds=kinds)
    assert schema.tables["query"] == 1
    train = pl.concat(pl.read_parquet(path) for path in (tmp_path / "out/train").glob("*"))
    assert set(train["query"]) == {0}


def test_old_values_keep_their_rows_and_frequent_ones_are_added(raw, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    choice = split_choice("tables", split="time")
    old = convert("tables", raw, first, choice=choice, table_kinds={"user_id": Frequent(30)})
    new = convert(
        "tables", raw, second, choice=choice, grow_from=first, table_kinds={"user_id": Frequent(15)}
    )
    values = [pl.read_parquet(f / "vocabularies/user_id.parquet")["value"] for f in (first, second)]
    assert values[1].head(len(values[0])).to_list() == values[0].to_list()
    assert new.tables["user_id"] > old.tables["user_id"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_rows": ["user_id"]}, "--min-rows must look like user_id=5; got 'user_id'"),
        ({"min_rows": ["user_id=1"]}, "must be at least 2; got 1"),
        ({"min_rows": ["user_id=5"], "hash": ["user_id=9"]}, "'user_id' has two"),
        ({"min_rows": ["user_id=5", "user_id=9"]}, "'user_id' has two"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tables_by_option(**options)


def test_a_feature_that_is_not_sparse_is_refused(raw, tmp_path):
    with pytest.raises(ValueError, match=r"only a sparse feature can have a least number of rows"):
        convert("tables", raw, tmp_path / "out", table_kinds={"price": Frequent(5)})
