"""Column types: what the conversion accepts is encoded alike from Parquet and from JSON."""

import datetime
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import SPLITS, load_schema

ROWS, USERS, ITEMS = 120, 12, 10
DAY = datetime.date(2024, 1, 1)
GOOD_SPARSE = {
    "int8": pl.Series([n % 3 - 1 for n in range(ITEMS)], dtype=pl.Int8),
    "uint16": pl.Series([n % 3 for n in range(ITEMS)], dtype=pl.UInt16),
    "uint64": pl.Series([2**62 + 1 + n % 3 for n in range(ITEMS)], dtype=pl.UInt64),
    "text": pl.Series([f"é{n % 3}" for n in range(ITEMS)]),
    "categorical": pl.Series([f"c{n % 3}" for n in range(ITEMS)], dtype=pl.Categorical),
    "enum": pl.Series([f"c{n % 3}" for n in range(ITEMS)], dtype=pl.Enum(["c0", "c1", "c2"])),
    "boolean": pl.Series([n % 3 == 0 for n in range(ITEMS)]),
    "date": pl.Series([DAY + datetime.timedelta(days=n % 3) for n in range(ITEMS)]),
    "some nulls": pl.Series([None if n % 3 else n for n in range(ITEMS)]),
    "only nulls": pl.Series([None] * ITEMS),
}
GOOD_LISTS = {
    f"lists of {name}": pl.Series([[v] for v in values], dtype=pl.List(values.dtype))
    for name, values in GOOD_SPARSE.items()
    if name in ("int8", "uint64", "text", "boolean", "date")
} | {
    "arrays": pl.Series([[n % 3, 7] for n in range(ITEMS)], dtype=pl.Array(pl.Int32, 2)),
    "lists with nulls": pl.Series([None if n % 3 else [n, None] for n in range(ITEMS)]),
    "empty lists": pl.Series([[]] * ITEMS, dtype=pl.List(pl.String)),
    "lists of categories": pl.Series(
        [[f"c{n % 3}"] for n in range(ITEMS)], dtype=pl.List(pl.Categorical)
    ),
}
GOOD_DENSE = {
    "float32": pl.Series([n / 4 for n in range(ITEMS)], dtype=pl.Float32),
    "int": pl.Series(range(ITEMS), dtype=pl.UInt8),
    "decimal": pl.Series([n / 4 for n in range(ITEMS)]).cast(pl.Decimal(10, 2)),
}
BAD = {
    "struct": pl.Series([{"a": 1}] * ITEMS),
    "binary": pl.Series([b"a"] * ITEMS),
    "lists of lists": pl.Series([[[1]]] * ITEMS),
    "lists of structs": pl.Series([[{"a": 1}]] * ITEMS),
    "lists of floats": pl.Series([[0.5]] * ITEMS),
    "datetime": pl.Series([datetime.datetime(2024, 1, 1)] * ITEMS),
    "time": pl.Series([datetime.time(1)] * ITEMS),
    "duration": pl.Series([datetime.timedelta(1)] * ITEMS),
    "2-d array": pl.Series([[[1, 2]]] * ITEMS, dtype=pl.Array(pl.Int64, (1, 2))),
}
BAD_SPARSE = BAD | {"floats": GOOD_DENSE["float32"], "decimal": GOOD_DENSE["decimal"]}
BAD_SPARSE |= {"array": GOOD_LISTS["arrays"], "lists": GOOD_LISTS["lists of int8"]}
BAD_DENSE = BAD | {"text": GOOD_SPARSE["text"], "boolean": GOOD_SPARSE["boolean"]}
TOO_LARGE = pl.Series([2**63 + n for n in range(ITEMS)], dtype=pl.UInt64)


def write_raw(folder, item, kinds, key_type=pl.Int64, row_key_type=pl.Int64):
    """Raw tables whose items have the columns `item`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "user_id": pl.Series(np.arange(ROWS) % USERS).cast(row_key_type),
            "item_id": pl.Series(rng.integers(ITEMS, size=ROWS)).cast(row_key_type),
            "scenario": [("feed", "search")[n % 2] for n in range(ROWS)],
            "label": [n % 2 for n in range(ROWS)],
        }
    )
    users = pl.DataFrame({"user_id": pl.Series(range(USERS)).cast(key_type)})
    items = pl.DataFrame({"item_id": pl.Series(range(ITEMS)).cast(key_type), **item})
    for name, frame in (("interactions", rows), ("users", users), ("items", items)):
        frame.write_parquet(folder / f"{name}.parquet")
    (folder / "tables.yaml").write_text(json.dumps({"user": {}, "item": kinds}))
    return rows, items


def convert(folder, item, kinds, **types):
    rows, items = write_raw(folder / "raw", item, kinds, **types)
    write_dataset(read_tables(folder / "raw"), folder / "data", SplitChoice("random"))
    return rows.join(items, "item_id", maintain_order="left")


def plain(column):
    return column.to_pylist() if isinstance(column, pa.Array) else column.tolist()


def written(data, names):
    """Rows of all splits of a dataset folder, sorted."""
    schema, rows = load_schema(data), []
    for split in SPLITS:
        reader = SplitReader(data, schema, split)
        columns = reader.take(np.arange(reader.num_rows))
        rows += zip(*(plain(columns[name]) for name in names), strict=True)
    return sorted(rows)


def encoded(columns, names):
    return sorted(zip(*(plain(columns[name]) for name in names), strict=True))


def in_json(frame):
    def form(value):
        return float(value) if isinstance(value, Decimal) else str(value)

    return json.loads(json.dumps(frame.to_dicts(), default=form))


def test_every_allowed_type_is_encoded_alike_by_convert_parquet_and_json(tmp_path):
    item = {
        **{f"s {name}": values for name, values in GOOD_SPARSE.items()},
        **{f"m {name}": values for name, values in GOOD_LISTS.items()},
        **{f"d {name}": values for name, values in GOOD_DENSE.items()},
    }
    of = {"s": "sparse", "m": "multi", "d": "dense"}
    raw = convert(tmp_path, item, {name: of[name[0]] for name in item})
    names = ["user", "item", "scenario", "user_id", "item_id", *item]
    wanted = written(tmp_path / "data", names)
    encoder = RowEncoder(tmp_path / "data")
    raw.write_parquet(tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")  # Categorical as dictionaries
    assert encoded(encoder.encode(table, "file"), names) == wanted
    assert encoded(encoder.encode(encoder.table(in_json(raw)), "request"), names) == wanted
    seen = [ids for row in wanted for ids in row if isinstance(ids, list)]
    assert max(map(len, seen)) == 2
    counts = encoder.encode_counted(table, "file")[1]
    assert {name: count.unknown for name, count in counts.items() if count.unknown} == {}


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        *(("sparse", *pair) for pair in BAD_SPARSE.items()),
        *(("multi", *pair) for pair in BAD.items()),
        *(("dense", *pair) for pair in BAD_DENSE.items()),
        *((kind, "large", TOO_LARGE) for kind in ("sparse",)),
    ],
)
def test_other_types_are_refused_with_column_and_type(tmp_path, kind, name, values):
    with pytest.raises(ValueError, match=r"items.parquet: column 'x' must (hold|fit)") as caught:
        convert(tmp_path, {"x": values}, {"x": kind})
    assert ("found type " in str(caught.value)) is (name != "large")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("values", [TOO_LARGE, GOOD_DENSE["float32"], GOOD_SPARSE["boolean"]])
def test_a_key_must_be_a_string_or_an_integer_of_64_bits(tmp_path, values):
    rows, items = write_raw(tmp_path / "raw", {}, {})
    items.with_columns(values.alias("item_id")).write_parquet(tmp_path / "raw/items.parquet")
    with pytest.raises(ValueError, match=r"items.parquet: column 'item_key' must (hold|fit)"):
        write_dataset(read_tables(tmp_path / "raw"), tmp_path / "data", SplitChoice("random"))


@pytest.mark.parametrize("key_type", [pl.Int32, pl.UInt16, pl.UInt64, pl.Int64])
@pytest.mark.parametrize("row_key_type", [pl.Int64, pl.UInt32])
def test_keys_of_any_integer_type_join(tmp_path, key_type, row_key_type):
    convert(tmp_path, {}, {}, key_type=key_type, row_key_type=row_key_type)
    assert pl.read_parquet(tmp_path / "data/items.parquet")["item_key"].dtype == pl.Int64
    encoder = RowEncoder(tmp_path / "data")
    row = {"user_key": 3, "item_key": 4, "scenario": "feed"}
    columns = encoder.encode(encoder.table([row]), "request")
    assert (columns["user"].tolist(), columns["item"].tolist()) == ([3], [4])
    assert columns["item_id"][0] > 0


@pytest.mark.parametrize("few", [True, False])
def test_ids_of_62_bits_are_looked_up_exactly(tmp_path, few):
    """As float64, neighbours above 2**53 would be one number."""
    ids = pl.Series([2**62 + n for n in range(1000)], dtype=pl.UInt64)
    rows, _ = write_raw(tmp_path / "raw", {}, {})
    rows = rows.with_columns(ids[rows["user_id"]].alias("user_id"))
    rows.write_parquet(tmp_path / "raw/interactions.parquet")
    pl.DataFrame({"user_id": ids}).write_parquet(tmp_path / "raw/users.parquet")
    write_dataset(read_tables(tmp_path / "raw"), tmp_path / "data", SplitChoice("random"))
    encoder = RowEncoder(tmp_path / "data")
    asked = ids[:12] if few else ids
    row = {"item_key": 1, "scenario": "feed"}
    table = encoder.table([row | {"user_key": user} for user in asked])
    columns, counts = encoder.encode_counted(table, "request")
    assert columns["user"].tolist() == list(range(len(asked)))
    assert counts["user_key"].unknown == 0
    assert counts["user_id"].unknown == len(asked) - 12


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
FUZZED = ("number", "text", "flag", "day", "tags", "joined", "price")


@pytest.fixture(scope="module")
def encoder():
    with tempfile.TemporaryDirectory() as folder:
        item = {
            "number": GOOD_SPARSE["int8"],
            "text": GOOD_SPARSE["text"],
            "flag": GOOD_SPARSE["boolean"],
            "day": GOOD_SPARSE["date"],
            "tags": GOOD_LISTS["lists of text"],
            "joined": pl.Series([f"a{n % 3}; b" for n in range(ITEMS)]),
            "price": GOOD_DENSE["float32"],
        }
        kinds = dict.fromkeys(item, "sparse") | {"price": "dense", "tags": "multi"}
        convert(Path(folder), item, kinds | {"joined": {"multi": ";"}})
        yield RowEncoder(Path(folder) / "data")


def answers(encoder, rows):
    """The encoded rows, or the error about them."""
    try:
        columns = encoder.encode(encoder.table(rows, "request"), "request")
    except ValueError as error:
        return str(error)
    return list(zip(*map(plain, columns.values()), strict=True))


GOOD_ROW = {
    **{"user_key": 1, "item_key": 2, "scenario": "feed", "number": 1, "text": "é1", "flag": True},
    **{"day": "2024-01-02", "tags": ["é1"], "joined": "a1; b", "price": 1},
}


@settings(max_examples=examples(150), deadline=None)
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from([*FUZZED, "user_key", "item_key", "scenario", "user_id"]),
            json_values,
            max_size=2,
        ),
        max_size=3,
    ),
    missing=st.sampled_from([None, *GOOD_ROW]),
)
def test_an_answer_does_not_depend_on_the_other_rows(encoder, rows, missing):
    rows = [GOOD_ROW | row for row in rows]
    if missing is not None and rows:
        del rows[0][missing]
    alone = [answers(encoder, [row]) for row in rows]
    together = answers(encoder, rows)
    bad = [answer for answer in alone if isinstance(answer, str)]
    if bad:
        assert isinstance(together, str)
        assert together.count("\n") == 0
    else:
        assert together == [row for answer in alone for row in answer]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("flag", "true", "must be true or false; found 'true'"),
        ("flag", 1, "must be true or false; found 1"),
        ("day", "2024-1-2", "a date must look like \"2024-01-31\"; found '2024-1-2'"),
        ("day", "2024-02-30", 'a date must look like "2024-01-31"'),
        ("day", 20240102, 'must be a date such as "2024-01-31"; found 20240102'),
        ("number", True, "must be an integer; found True"),
        ("number", 1.0, "must be an integer; found 1.0"),
        ("price", True, "must be a number; found True"),
        ("price", 10**400, "a dense value must be finite; found inf"),
        ("tags", "é1", "must be a list, each a string; found 'é1'"),
        ("tags", [["é1"]], "must be a list, each a string; found [['é1']]"),
        ("joined", 3, "must be a list, each a string, or a string with ';'; found 3"),
    ],
)
def test_a_value_of_another_type_is_refused(encoder, column, value, said):
    with pytest.raises(ValueError, match="^request: ") as caught:
        encoder.encode(encoder.table([GOOD_ROW | {column: value}], "request"), "request")
    assert f"column {column!r}, row 0: {said}" in str(caught.value)


def test_values_of_each_type_have_the_row_of_training(encoder):
    wanted = answers(encoder, [GOOD_ROW])
    assert 0 not in [ids for ids in wanted[0][4:9] if not isinstance(ids, list)]
    assert answers(encoder, [GOOD_ROW | {"joined": ["a1", "b"]}]) == wanted
    assert answers(encoder, [GOOD_ROW | {"joined": " b;;a1 "}]) != wanted
    assert answers(encoder, [GOOD_ROW | {"scenario": 0}]) == wanted
    assert answers(encoder, [{"user_id": 1, **GOOD_ROW}]) == wanted
    keyed = {name.replace("_key", "_id"): value for name, value in GOOD_ROW.items()}
    assert answers(encoder, [keyed]) == wanted
    assert answers(encoder, []) == []


def test_unknown_and_missing_values_are_counted(encoder):
    rows = [GOOD_ROW, GOOD_ROW | {"number": 77, "tags": None}, GOOD_ROW | {"tags": ["new", "é1"]}]
    counts = encoder.encode_counted(encoder.table(rows), "request")[1]
    assert counts["number"] == (3, 1, 0)
    assert counts["tags"] == (3, 1, 1)
    assert counts["text"] == (3, 0, 0)
    assert counts["user_key"] == (3, 0, 0)
