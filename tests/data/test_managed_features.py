"""Managed features in dataset folders: numbers of raw values, checks, transforms, files."""

import hashlib

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_rows import joined, raw_tables
from tiny import replace_column

from msrec.data.convert.conversion import write_dataset
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.value_counts import ValueCounts
from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.loading.id_transforms import IdDropout, apply_all, table_transforms
from msrec.data.loading.loader import open_loader
from msrec.data.loading.managed_rows import ManagedRows
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import load_schema
from msrec.tools.convert import tables_by_option


def number_of(value):
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**63 - 2) + 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("managed") / "data"
    write_dataset(raw_tables(), out, table_kinds={"item_id": Managed(9), "query": Managed(5)})
    return out


def test_a_managed_column_has_the_number_of_each_value_and_0_where_it_is_missing(dataset):
    schema = load_schema(dataset)
    assert [feature.name for feature in schema.managed] == ["item_id", "query"]
    assert schema.tables["item_id"] == 9
    keys = pl.read_parquet(dataset / "items.parquet")["item_key"]
    frame = pl.concat([pl.read_parquet(path) for path in dataset.glob("*/part-*.parquet")])
    assert frame["item_id"].to_list() == [number_of(key) for key in keys.gather(frame["item"])]
    queries = raw_tables().interactions["query"].gather(frame["time"])
    expected = [0 if query is None else number_of(query) for query in queries]
    assert frame["query"].to_list() == expected
    missing = sum(schema.counts["missing"]["query"].values())
    assert missing == queries.null_count() > 0
    assert "query" not in schema.counts["unknown"]
    assert not (dataset / "vocabularies/item_id.parquet").exists()


def test_a_batch_has_managed_numbers_apart_from_table_rows(dataset):
    loader = open_loader(dataset, "train", 50, shuffle=False)
    *_, last = loader.batches()
    read = loader.reader.take(np.arange(loader.reader.num_rows))
    real = (last.row_id >= 0).numpy()
    rows = last.row_id.numpy()[real]
    assert not real.all()
    for number, name in enumerate(("item_id", "query")):
        assert last.managed[number].numpy()[real].tolist() == read[name][rows].tolist()
        assert not last.managed[number].numpy()[~real].any()
    assert not {"item_id", "query"} & set(last.sparse.keys())
    assert last.sparse["user_id"].values()[real].tolist() == read["user_id"][rows].tolist()


def test_raw_rows_get_the_numbers_of_the_dataset(dataset):
    raw = joined(raw_tables())
    columns, counts = RowEncoder(dataset).encode_counted(raw.to_arrow(), "rows")
    assert columns["item_id"].tolist() == [number_of(key) for key in raw["item_key"]]
    assert counts["query"].missing == raw["query"].null_count()


def test_numbers_pass_every_transform_of_table_rows(dataset):
    schema = load_schema(dataset)
    reader = SplitReader(dataset, schema, "test", schema.columns)
    columns = reader.take(np.arange(reader.num_rows))
    aligned = VocabularyAlignment(dataset, dataset)
    changed = apply_all([aligned, *table_transforms(schema, 0.5, False)], columns, (), 0)
    assert changed["item_id"].tolist() == columns["item_id"].tolist()
    rows = np.arange(reader.num_rows)
    dropped = IdDropout({"item_id": 0.5}, 0).apply(columns, rows, 0)["item_id"]
    assert dropped.dtype == np.int64
    assert set(dropped[dropped != columns["item_id"]]) == {0}


def test_a_negative_number_is_refused_with_its_place(tmp_path, dataset):
    write_dataset(raw_tables(), tmp_path / "data", table_kinds={"item_id": Managed(9)})
    (path,) = (tmp_path / "data/test").glob("*.parquet")
    numbers = pq.read_table(path)["item_id"].to_numpy().copy()
    numbers[3] = -1
    replace_column(path, "item_id", pa.array(numbers))
    reader = SplitReader(tmp_path / "data", load_schema(tmp_path / "data"), "test")
    with pytest.raises(ValueError, match=r"'item_id', row 3: a managed id must be in .*found -1"):
        reader.take(np.arange(4))


def test_data_whose_feature_is_not_managed_cannot_be_scored(tmp_path, dataset):
    write_dataset(raw_tables(), tmp_path / "data")
    with pytest.raises(ValueError, match="feature 'item_id' must be managed, as in"):
        VocabularyAlignment(dataset, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (([], ["user_id"]), "must look like user_id=100000; got 'user_id'"),
        (([], ["user_id=1"]), "must have 2 to 2147483647 rows; got 1"),
        (
            (["user_id=9"], ["user_id=9"]),
            "one of --hash, --managed and --min-rows; 'user_id' has two",
        ),
    ],
)
def test_a_managed_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tables_by_option(*options)


@pytest.mark.parametrize("name", ["tags", "price", "nothing"])
def test_only_a_single_valued_sparse_feature_can_be_managed(tmp_path, name):
    with pytest.raises(ValueError, match=f"only a single-valued sparse .*; got '{name}'"):
        write_dataset(raw_tables(), tmp_path / "out", table_kinds={name: Managed(9)})


def test_a_managed_table_has_no_other_feature(dataset):
    schema = load_schema(dataset).model_dump()
    schema["sparse"][0]["table"] = "item_id"
    with pytest.raises(ValueError, match="'item_id' must have one value in a row, no hashes and a"):
        type(load_schema(dataset)).model_validate(schema)


def test_a_map_in_files_gives_numbers_their_rows_and_counts_those_without(tmp_path, dataset):
    ids = np.array([number_of("a"), number_of("b"), number_of("c")])
    order = np.argsort(ids)
    rows_of = {"query": (ids[order], np.array([7, 1, 3], np.int32)[order])}
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int32)
    ManagedRows(rows_of | {"item_id": nothing}).save(tmp_path)
    loaded = ManagedRows.load(tmp_path, load_schema(dataset))
    query = np.array([number_of("c"), 0, number_of("a"), number_of("new"), 1, 2**63 - 2])
    columns = {"query": query, "item_id": query}
    changed = loaded.apply(columns, np.arange(6), 0)
    assert changed["query"].tolist() == [3, 0, 7, 0, 0, 0]
    assert changed["item_id"].tolist() == [0] * 6
    assert changed["query"].dtype == np.int32
    counts = dict.fromkeys(columns, ValueCounts(5, 0, 1))
    assert loaded.counts(columns, counts)["query"] == ValueCounts(5, 3, 1)


def test_a_value_has_the_hash_of_its_text_whatever_else_is_hashed():
    assert Hashed(100).encode(pl.Series([12, None, 7])).to_list() == [
        1 + int.from_bytes(hashlib.blake2b(b"12", digest_size=8).digest(), "little") % 99,
        0,
        1 + int.from_bytes(hashlib.blake2b(b"7", digest_size=8).digest(), "little") % 99,
    ]
