"""Raw rows are encoded as the conversion encoded them, and bad ones are refused with a reason."""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_rows import FEATURES, joined, raw_tables
from tiny import tiny_dataset, tiny_schema

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Hashed
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.vocabulary import Vocabulary, save_vocabularies
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import SparseFeature, load_schema, save_schema
from msrec.data.synthetic.simulated_dataset import synthesize

HASHED = {"query": Hashed(50), "words": Hashed(40, 2)}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    raw = raw_tables()
    out = tmp_path_factory.mktemp("app") / "data"
    write_dataset(raw, out, SplitChoice("time"), table_kinds=HASHED)
    return out, joined(raw)


def plain(column):
    return column.to_pylist() if isinstance(column, pa.Array) else column.tolist()


def from_json(rows, frame):
    """The same rows by way of JSON."""
    lines = json.loads(json.dumps(frame.to_dicts()))
    return rows.table(lines)


@pytest.mark.parametrize("way", ["parquet", "json"])
def test_raw_rows_get_the_columns_that_the_conversion_wrote(app, way):
    out, frame = app
    rows = RowEncoder(out)
    start = 0
    for split in ("train", "valid", "test"):
        files = SplitReader(out, load_schema(out), split)
        wanted = files.take(np.arange(files.num_rows))
        some = frame.slice(start, files.num_rows)
        found = rows.encode(some.to_arrow() if way == "parquet" else from_json(rows, some), "x")
        for name in ("user", "item", "scenario", *(f.name for f in FEATURES)):
            np.testing.assert_equal(plain(found[name]), plain(wanted[name]), err_msg=name)
        start += files.num_rows
    assert (np.array(plain(found["user_id"])) == 0).any()  # users that training never saw


TEXTS = [f"v{number}" for number in range(200)]
NUMBERS = [number * 7919 - 500_000 for number in range(200)]
VALUES = {
    "integers": (NUMBERS, [7418, -500_000, 1, None, -500_000, 2**62]),
    "strings": (TEXTS, ["v3", "new", None, "", "v0", "v3"]),
    "lists of integers": ([NUMBERS], [[7419, 1], [], None, [None, -500_000], [2**62]]),
    "lists of strings": ([TEXTS], [["v3", "new"], [], None, [None, "v1"], ["v3", "v3"]]),
    "no value": (TEXTS, [None, None]),
}


def encoder_of(folder, table, is_multi):
    """A `RowEncoder` of one feature `x`."""
    hashes = table.hashes if isinstance(table, Hashed) else None
    feature = SparseFeature(name="x", table="x", multi=is_multi or (hashes or 1) > 1, hashes=hashes)
    save_schema(tiny_schema(sparse=[feature], tables={"x": table.rows}, dense=[]), folder)
    save_vocabularies({"x": table}, folder)
    for key in ("user_key", "item_key"):
        pq.write_table(pa.table({key: ["a"]}), folder / f"{key[:4]}s.parquet")
    return RowEncoder(folder)


def by_dict(vocabulary, value):
    """The row of a value, or those of a list, by a dict."""
    row_of = {known: row for row, known in enumerate(vocabulary.values.to_list(), start=1)}
    if isinstance(value, list):
        return [row_of.get(each, 0) for each in value]
    return row_of.get(value, 0)


@pytest.mark.parametrize("name", ["vocabulary", "hash", "two hashes"])
@pytest.mark.parametrize("kind", VALUES)
def test_conversion_and_requests_encode_a_value_alike(tmp_path, kind, name):
    """Many values at once, few values, and single rows from JSON are looked up in other ways."""
    known, asked = (pl.Series("x", values) for values in VALUES[kind])
    tables = {"hash": Hashed(50), "two hashes": Hashed(40, 2)}
    table = tables.get(name) or Vocabulary.fit(known)
    asked = asked.cast(known.dtype)
    every = pl.concat([known, asked]) if kind != "no value" else asked
    encoder = encoder_of(tmp_path, table, kind.startswith("lists"))
    row = {"user_key": "a", "item_key": "a", "scenario": 0}
    for values in (every, asked):
        wanted = table.encode(values).to_list()
        if name == "vocabulary":
            empty = [] if kind.startswith("lists") else None
            raw_values = [empty if value is None else value for value in values.to_list()]
            assert wanted == [by_dict(table, value) for value in raw_values]
        rows = [row | {"x": value} for value in values.to_list()]
        raw = pa.Table.from_pylist(rows).set_column(3, "x", values.to_arrow())
        assert plain(encoder.encode(raw, "file")["x"]) == wanted
        assert plain(encoder.encode(encoder.table(rows), "request")["x"]) == wanted
        single = [encoder.encode(encoder.table([row]), "request")["x"] for row in rows]
        assert [plain(one)[0] for one in single] == wanted


def test_new_users_and_items_are_known_by_no_index(app):
    out, frame = app
    rows = RowEncoder(out)
    new = frame.head(2).with_columns(user_key=pl.lit("nobody"), item_key=pl.lit(7))
    found = rows.encode(new.to_arrow(), "x")
    assert found["user"].tolist() == found["item"].tolist() == [-1, -1]
    assert found["user_id"].tolist() == found["item_id"].tolist() == [0, 0]


def test_the_simulated_app_keeps_vocabularies_that_give_its_rows(tmp_path):
    synthesize(tmp_path / "app", rows=1000, users=60, items=500)
    rows = RowEncoder(tmp_path / "app")
    users, items = (
        pl.read_parquet(tmp_path / "app" / f"{side}s.parquet") for side in ("user", "item")
    )
    encoded = pl.read_parquet(tmp_path / "app" / "test" / "*.parquet")
    raw = pl.concat([users[encoded["user"]], items[encoded["item"]]], how="horizontal")
    raw = raw.with_columns(encoded["scenario", "duration", "hour"])
    found = rows.encode(raw.to_arrow(), "x")
    for name in ("user", "item", *(f.name for f in rows.schema.sparse)):
        np.testing.assert_equal(found[name], encoded[name].to_numpy(), err_msg=name)
    assert (encoded["item_id"] == 0).any()


GOOD = {
    **{"user_key": "u1", "item_key": 10, "scenario": "feed", "age": 1, "tags": ["t0"]},
    **{"words": [], "query": "q1", "price": 0.5},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"price": float("nan")}, "column 'price', row 1: a dense value must be finite; found nan"),
        ({"price": None}, "column 'price', row 1: a dense value must be finite; found None"),
        ({"price": "1"}, "column 'price', row 1: must be a number; found '1'"),
        ({"age": "old"}, "column 'age', row 1: must be an integer; found 'old'"),
        ({"age": 3.7}, "column 'age', row 1: must be an integer; found 3.7"),
        ({"age": 2**70}, "column 'age', row 1: must be an integer that fits int64; found 118"),
        (
            {"scenario": "shp"},
            "column 'scenario', row 1: the scenario must be one of feed (0), shop (1)",
        ),
        ({"tags": "t0"}, "column 'tags', row 1: must be a list, each a string; found 't0'"),
        ({"user_key": None}, "column 'user_key', row 1: a key may not be null; found None"),
        ({"query": ["q1"]}, "column 'query', row 1: must be an integer or a string or"),
        ({"words": 3.5}, "column 'words', row 1: must be a list, each an integer or a string or"),
    ],
)
def test_an_error_about_a_bad_value_names_column_and_row(app, change, said):
    rows = RowEncoder(app[0])
    with pytest.raises(ValueError, match="^request: ") as caught:
        rows.encode(rows.table([GOOD, GOOD | change], "request"), "request")
    assert said in str(caught.value)


def test_a_missing_column_is_refused_and_ids_may_come_from_the_keys(app):
    rows = RowEncoder(app[0])
    same = rows.encode(rows.table([GOOD | {"user_id": "u1", "item_id": 10}]), "x")
    assert rows.encode(rows.table([GOOD]), "x")["user_id"] == same["user_id"] != 0
    short = {name: value for name, value in GOOD.items() if name != "age"}
    with pytest.raises(ValueError, match="row 1 must have the column 'age'; it has user_key"):
        rows.table([GOOD, short])
    with pytest.raises(ValueError, match="must have the column 'age', 'price'; found user_key"):
        rows.encode(
            pa.table(
                {
                    "user_key": ["u1"],
                    "item_key": [1],
                    "scenario": [0],
                    "tags": [[]],
                    "words": [[]],
                    "query": ["a"],
                }
            ),
            "x",
        )


@pytest.mark.parametrize("bad", [-1, 61, None])
def test_a_table_row_out_of_range_is_refused_where_there_is_no_vocabulary(tmp_path, bad):
    rows = RowEncoder(tiny_dataset(tmp_path / "tiny"))
    row = {"user_key": "u1", "item_key": "i1", "scenario": 2, "price": 0.0}
    row |= {"user_id": 40, "item_id": 60, "genres": [6, 1]}
    found = rows.encode(rows.table([row]), "x")
    assert plain(found["genres"]) == [[6, 1]]
    assert found["item_id"].tolist() == [60]
    with pytest.raises(ValueError, match=r"'item_id', row 1: a table row must be in \[0, 61\)"):
        rows.encode(rows.table([row, row | {"item_id": bad}]), "x")
    with pytest.raises(ValueError, match=r"'genres', row 1: a table row must be in \[0, 7\)"):
        rows.encode(rows.table([row, row | {"genres": [1, 7]}]), "x")


def test_a_hash_that_an_older_version_did_not_record_is_refused(app, tmp_path):
    out, _ = app
    for name in ("users.parquet", "items.parquet"):
        pq.write_table(pq.read_table(out / name), tmp_path / name)
    text = (out / "dataset.yaml").read_text().replace("hashes: 1", "hashes: null")
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match="how many hashes a value of 'query' has"):
        RowEncoder(tmp_path)
