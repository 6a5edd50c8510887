"""From raw files to a dataset folder."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.dataset_writer import PartWriter
from msrec.data.convert.sources.movielens import read_movielens
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Hashed
from msrec.data.io.outputs import SCRATCH_MARK, new_folder
from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema
from msrec.tools.convert import convert, tables_by_option

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ML1M_FEATURES = {"user_id", "item_id", "gender", "age", "occupation", "zip_code", "genres", "year"}
needs_ml1m = pytest.mark.skipif(
    not (SHARED / "ml1m").is_dir(), reason="../shared/data/ml1m (MovieLens-1M) is not here"
)


def rows_of(dataset, split):
    return pl.read_parquet(dataset / split / "*.parquet")


def all_rows(dataset):
    return pl.concat([rows_of(dataset, split) for split in ("train", "valid", "test")])


# MovieLens -----------------------------------------------------------------------------------


@pytest.fixture
def movielens(tmp_path):
    raw = tmp_path / "ml"
    raw.mkdir()
    (raw / "users.dat").write_text(
        "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117-1234\n"
    )
    (raw / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Children's|Comedy\n"
        "2::Postino, Il (The Postman) (1994)::Drama|Romance\n"
        "7::Léon: The Professional (1994)::Crime\n".encode("latin-1")
    )
    lines = [f"{1 + i % 3}::{(1, 2, 7)[i % 7 % 3]}::{1 + i % 5}::{1000 + i}\n" for i in range(60)]
    (raw / "ratings.dat").write_text("".join(lines))
    return raw


def test_movielens_files_become_labels_scenarios_and_texts(movielens):
    raw = read_movielens(movielens, TextReader())
    first = raw.interactions.row(3, named=True)
    values = {"user_key": 1, "item_key": 1, "timestamp": 1003, "label": 1.0, "scenario": 0}
    values |= {"rating>1": 1.0, "rating>2": 1.0, "rating>4": 0.0, "row": 3}
    assert first == values
    assert raw.interactions["scenario"].unique().to_list() == [0, 1, 2]
    assert raw.users["occupation_name"].to_list() == ["K-12 student", "self-employed", "scientist"]
    assert raw.items["title"].to_list() == ["Toy Story", "Il Postino", "Léon: The Professional"]
    assert raw.items["year"].to_list() == [1995, 1994, 1994]


def test_the_genre_scenario_is_the_group_of_the_first_genre(movielens):
    raw = read_movielens(movielens, TextReader(), "genre")
    names = [s.name for s in raw.scenarios]
    scenarios = dict(raw.interactions.select("item_key", "scenario").unique().rows())
    assert {key: names[s] for key, s in scenarios.items()} == {
        1: "adventure_family",
        2: "drama",
        7: "thriller_crime_horror",
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ratings.dat", "1::1::1::1000", "1::1::x::1000", "ratings.dat: column 'rating' .* row 0"),
        ("ratings.dat", "1::1::1::1000", "1::1::6::1000", "'rating' must be from 1 to 5; found 6"),
        ("ratings.dat", "1::1::1::1000", "1::1::1", "must have 4 fields; found 3 in row 0"),
        ("ratings.dat", "1::1::1::1000", "9::1::1::1000", "'user_key' must hold only keys of"),
        ("ratings.dat", "1::1::1::1000", "1::1::1::1000::5", "have 4 fields; found 5 in row 0"),
        ("users.dat", "::25::", "::26::", "users.dat: column 'age' .* found 26 in row 2"),
        ("users.dat", "3::M::25", "2::M::25", "'user_key' must hold each key once; .* row 2"),
        ("movies.dat", "7::", "seven::", "movies.dat: column 'item_key' .* whole number; .* row 2"),
    ],
)
def test_a_bad_movielens_row_is_named(movielens, tmp_path, file, old, new, message):
    path = movielens / file
    path.write_text(path.read_text("latin-1").replace(old, new, 1), "latin-1")
    with pytest.raises(ValueError, match=message):
        write_dataset(read_movielens(movielens, TextReader()), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_missing_movielens_file_is_named(movielens):
    (movielens / "movies.dat").unlink()
    with pytest.raises(FileNotFoundError, match="movies.dat must exist"):
        read_movielens(movielens, TextReader())


@pytest.fixture(scope="module")
def ml1m_raw(tmp_path_factory):
    """ratings.dat, users.dat and movies.dat as GroupLens publishes them."""
    folder = tmp_path_factory.mktemp("ml-1m")
    tables = {
        t: pl.read_parquet(SHARED / f"ml1m/{t}.parquet") for t in ("interactions", "users", "items")
    }
    for table, columns, name in (
        ("interactions", ["user_id", "item_id", "rating", "timestamp"], "ratings.dat"),
        ("users", ["user_id", "gender", "age", "occupation", "zip_code"], "users.dat"),
        ("items", ["item_id", "raw_title", "genres"], "movies.dat"),
    ):
        lines = tables[table].select(pl.concat_str(columns, separator="::")).to_series()
        (folder / name).write_text("\n".join(lines.to_list()) + "\n", "latin-1")
    return folder


@needs_ml1m
def test_movielens_1m_has_its_published_counts(ml1m_raw, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    schema = convert("movielens", ml1m_raw, tmp_path / "out", console=console)
    rows = all_rows(tmp_path / "out")
    assert (len(rows), schema.num_users, schema.num_items) == (1_000_209, 6_040, 3_883)
    assert rows["item"].n_unique() == 3_706
    assert rows["scenario"].value_counts().sort("scenario")["count"].to_list() == [
        *(210_747, 395_556, 393_906)
    ]
    assert "age25-34" in console.file.getvalue()


@needs_ml1m
def test_movielens_and_tables_give_the_same_rows(ml1m_raw, tmp_path):
    one, two = tmp_path / "movielens", tmp_path / "tables"
    quiet = Console(file=io.StringIO())
    given = convert("movielens", ml1m_raw, one, console=quiet)
    other = convert("tables", SHARED / "ml1m", two, console=quiet)
    assert {f.name for f in given.sparse} == {f.name for f in other.sparse} == ML1M_FEATURES
    assert given.tables == other.tables
    assert [f.name for f in other.sparse if f.multi] == ["genres"]
    assert other.text.item_attributes == ["genres", "summary"]
    assert set(other.text.user_attributes) == {"gender", "age_name", "occupation_name"}
    for split in ("train", "test"):
        assert rows_of(one, split).select(other.columns).equals(rows_of(two, split))
    items = [pl.read_parquet(folder / "items.parquet") for folder in (one, two)]
    assert (items[0]["title"] == items[1]["title"]).mean() > 0.98
    assert items[0]["genres"].equals(items[1]["genres"])


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("amazon_arts_office", {"user_id", "item_id", "category_path"}),
        ("amazon23_3cat", {"user_id", "item_id", "category"}),
    ],
)
@pytest.mark.parametrize("method", ["random", "user_last"])
def test_the_amazon_tables_convert(tmp_path, name, features, method):
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/data/{name} is not here")
    raw = read_tables(SHARED / name)
    schema = write_dataset(raw, tmp_path / "out", SplitChoice(method))
    assert {f.name for f in schema.sparse} == features
    assert len(all_rows(tmp_path / "out")) == len(raw.interactions)


# Plain tables --------------------------------------------------------------------------------


def make_tables(folder, rows=600, **changes):
    """Tables with every kind of column; `changes` replace interaction columns."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    columns = {
        "user_id": rng.integers(0, 20, rows),
        "item_id": rng.integers(100, 140, rows),
        "scenario": rng.integers(0, 2, rows),
        "timestamp": np.arange(rows),
        "label": rng.integers(0, 2, rows),
        "rating": rng.integers(1, 6, rows),
        "device": rng.choice(["tv", "phone"], rows),
    }
    pl.DataFrame(columns | changes).write_parquet(folder / "interactions.parquet")
    pl.DataFrame(
        {"user_id": np.arange(20), "city": ["Rome", "Oslo"] * 10, "balance": np.linspace(0, 1, 20)}
    ).write_parquet(folder / "users.parquet")
    pl.DataFrame(
        {
            "item_id": np.arange(100, 140),
            "title": [f"item number {i}" for i in range(40)],
            "tags": ["new|big", "old", None, "big"] * 10,
            "brand": ["a", None] * 20,
        }
    ).write_parquet(folder / "items.parquet")
    return folder


def test_every_row_is_written_once_and_decodes_to_its_raw_values(tmp_path):
    raw = read_tables(make_tables(tmp_path / "raw"))
    schema = write_dataset(raw, tmp_path / "out")
    users, items = (pl.read_parquet(tmp_path / f"out/{t}.parquet") for t in ("users", "items"))
    rows = all_rows(tmp_path / "out").sort("timestamp")
    assert rows.columns == schema.columns
    assert users["user_key"].gather(rows["user"]).equals(raw.interactions["user_key"])
    assert items["item_key"].gather(rows["item"]).equals(raw.interactions["item_key"])
    assert rows["label"].equals(raw.interactions["label"].cast(pl.Float32))
    cities = rows.select("city", name=users["city"].gather(rows["user"])).unique()
    assert sorted(cities.rows()) == [(1, "Oslo"), (2, "Rome")]
    balance = raw.users["balance"].cast(pl.Float32).gather(rows["user"])
    assert rows["balance"].equals(balance, null_equal=False)


def test_types_are_int32_float32_int64_and_nothing_is_nullable(tmp_path):
    write_dataset(read_tables(make_tables(tmp_path / "raw")), tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out/train/part-00000.parquet")
    types = {f.name: str(f.type) for f in file.schema_arrow}
    assert types["tags"] == "list<element: int32 not null>"
    assert (types["user"], types["balance"], types["timestamp"]) == ("int32", "float", "int64")
    assert not any(f.nullable for f in file.schema_arrow)
    column = file.metadata.row_group(0).column(0)
    assert column.compression == "LZ4"
    assert column.is_stats_set


def test_ids_that_training_never_saw_are_row_zero_and_counted(tmp_path):
    users = np.arange(600) % 15
    users[550:] = 15 + np.arange(50) % 5
    raw = read_tables(make_tables(tmp_path / "raw", user_id=users))
    schema = write_dataset(raw, tmp_path / "out", SplitChoice("time"))
    test = rows_of(tmp_path / "out", "test")
    assert schema.tables["user_id"] == 16
    assert schema.counts["unknown"]["user_id"] == {"test": 50}
    assert (test["user_id"] == 0).sum() == 50
    assert test["user"].max() == 19
    assert schema.counts["users_without_training"]["test"] == 5


def test_the_hottest_rank_of_each_table_is_counted(tmp_path):
    folder = make_tables(tmp_path / "raw")
    (folder / "tables.yaml").write_text("interaction: {device: sparse}")
    raw = read_tables(folder)
    schema = write_dataset(raw, tmp_path / "out", table_kinds={"item_id": Hashed(rows=9)})
    train = rows_of(tmp_path / "out", "train")
    assert {f.side for f in raw.features if f.kind != "dense"} == {"user", "item", "interaction"}
    for feature in schema.sparse:
        values = train[feature.name].explode() if feature.multi else train[feature.name]
        size = schema.tables[feature.table]
        lookups = np.bincount(values.drop_nulls().to_numpy(), minlength=size)
        stored, *by_value = schema.counts["hottest_rank"][feature.name]["2"]
        first = lookups[: -(-size // 2)].sum()
        busiest = max(first, lookups.sum() - first) / (lookups.sum() / 2)
        assert stored == pytest.approx(busiest, abs=1e-3)
        assert len(by_value) == (feature.name != "item_id")


def test_missing_values_are_row_zero_an_empty_list_or_an_empty_text_and_counted(tmp_path):
    schema = write_dataset(read_tables(make_tables(tmp_path / "raw")), tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    missing = {name: sum(splits.values()) for name, splits in schema.counts["missing"].items()}
    assert missing == {
        "brand": (rows["brand"] == 0).sum(),
        "tags": (rows["tags"].list.len() == 0).sum(),
    }
    assert min(missing.values()) > 0
    assert schema.counts["empty_text"] == {"items.tags": 10, "items.brand": 20}


def test_duplicate_rows_are_kept_and_counted(tmp_path):
    raw = read_tables(make_tables(tmp_path / "raw", user_id=[3] * 600, timestamp=[7] * 600))
    schema = write_dataset(raw, tmp_path / "out")
    assert schema.counts["duplicates"] == 600 - raw.interactions["item_key"].n_unique()
    assert len(all_rows(tmp_path / "out")) == 600


def test_a_rating_or_a_label_is_no_feature_unless_refused_by_name(tmp_path):
    folder = make_tables(tmp_path / "raw")
    names = [f.name for f in read_tables(folder).features]
    assert names == ["user_id", "item_id", "city", "balance", "tags", "brand"]
    (folder / "tables.yaml").write_text("interaction: {rating: sparse}")
    with pytest.raises(ValueError, match="must not give the label away; found 'rating'"):
        read_tables(folder)


def test_further_labels_are_thresholds_of_a_column(tmp_path):
    folder = make_tables(tmp_path / "raw")
    (folder / "tables.yaml").write_text("more_labels: {rating: [1, 3.5]}")
    raw = read_tables(folder)
    assert raw.labels == ("label", "rating>1", "rating>3.5")
    schema = write_dataset(raw, tmp_path / "out")
    assert schema.labels == list(raw.labels)
    rows, rating = all_rows(tmp_path / "out").sort("timestamp"), raw.interactions["rating"]
    assert (rows["rating>1"] == (rating > 1)).all()
    assert (rows["rating>3.5"] == (rating >= 4)).all()


@pytest.mark.parametrize(
    ("column", "changes", "message"),
    [
        ("stars", {}, "must have the column 'stars'"),
        ("device", {}, "'device' must hold numbers, because tables.yaml makes labels of it"),
        (
            "rating",
            {"rating": [None, *[1] * 599]},
            "'rating' must be a finite number, as a label is",
        ),
    ],
)
def test_a_column_that_makes_no_labels_is_refused(tmp_path, column, changes, message):
    folder = make_tables(tmp_path / "raw", **changes)
    (folder / "tables.yaml").write_text(f"more_labels: {{{column}: [1]}}")
    with pytest.raises(ValueError, match=message):
        read_tables(folder)


def test_tables_yaml_says_what_is_what(tmp_path):
    folder = make_tables(tmp_path / "raw")
    (folder / "tables.yaml").write_text(
        "name: shop\nuser: {city: sparse}\nitem: {tags: multi}\ninteraction: {device: sparse}\n"
        "timestamp_unit: ms\n"
        'scenarios: {"0": "The front page.", "1": "The search page."}\n'
    )
    schema = write_dataset(read_tables(folder), tmp_path / "out")
    assert [f.name for f in schema.sparse] == ["user_id", "item_id", "city", "tags", "device"]
    assert schema.scenarios[1].description == "The search page."
    assert (schema.timestamp, schema.timestamp_unit) == ("timestamp", "ms")
    assert schema.tables["device"] == 3


def test_a_unit_of_no_timestamp_is_refused(tmp_path):
    folder = make_tables(tmp_path / "raw")
    rows = pl.read_parquet(folder / "interactions.parquet").drop("timestamp")
    rows.write_parquet(folder / "interactions.parquet")
    assert read_tables(folder).timestamp is None
    (folder / "tables.yaml").write_text("timestamp_unit: s")
    with pytest.raises(ValueError, match=r"unit is given\) must have the column 'timestamp'"):
        read_tables(folder)


def test_an_unknown_field_of_tables_yaml_is_named(tmp_path):
    folder = make_tables(tmp_path / "raw")
    (folder / "tables.yaml").write_text("usr: {city: sparse}")
    with pytest.raises(ValueError, match=r"tables.yaml: usr: .* Known fields: name, description"):
        read_tables(folder)


def with_row(values, row, value):
    return [value if i == row else v for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": with_row([1, 0] * 300, 4, None)}, "column 'label' .* found None in row 4"),
        (
            {"label": with_row([1, 0] * 300, 9, 3)},
            "column 'label' must be 0 or 1; found 3 in row 9",
        ),
        ({"label": ["yes"] * 600}, "column 'label' must hold numbers"),
        ({"timestamp": np.linspace(0, 1, 600)}, "column 'timestamp' must hold integers"),
        ({"timestamp": with_row(range(600), 8, None)}, "'timestamp' must have no null; .* row 8"),
        ({"scenario": with_row([0, 1] * 300, 5, None)}, "'scenario' .* found None in row 5"),
        ({"item_id": with_row([100] * 600, 2, 7)}, "'item_key' must hold only keys .* row 2"),
        ({"user_id": ["1"] * 600}, "'user_key' must have the type it has in"),
    ],
)
def test_a_bad_interaction_is_named_with_file_column_and_row(tmp_path, changes, message):
    folder = make_tables(tmp_path / "raw", **changes)
    with pytest.raises(ValueError, match=rf"interactions.parquet.*{message}"):
        write_dataset(read_tables(folder), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_an_undeclared_scenario_is_named(tmp_path):
    folder = make_tables(tmp_path / "raw", scenario=with_row([0, 1] * 300, 3, 9))
    (folder / "tables.yaml").write_text('scenarios: {"0": "Front page.", "1": "Search page."}')
    with pytest.raises(ValueError, match="be a scenario of tables.yaml .* found '9' in row 3"):
        read_tables(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_dense_value_that_is_not_finite_is_named(tmp_path, bad):
    folder = make_tables(tmp_path / "raw")
    users = pl.read_parquet(folder / "users.parquet")
    balance = pl.Series("balance", with_row(users["balance"], 6, bad))
    users.with_columns(balance).write_parquet(folder / "users.parquet")
    (folder / "tables.yaml").write_text("user: {balance: dense}")
    with pytest.raises(ValueError, match=r"users.parquet: column 'balance' .* in row 6"):
        write_dataset(read_tables(folder), tmp_path / "out")


def test_a_missing_column_and_a_truncated_file_are_named(tmp_path):
    folder = make_tables(tmp_path / "raw")
    with pytest.raises(ValueError, match="interactions.parquet must have the column 'click'"):
        read_tables(folder, label="click")
    path = folder / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="interactions.parquet must be a whole Parquet file"):
        read_tables(folder)


# The folder ----------------------------------------------------------------------------------


def test_a_dataset_that_is_there_is_kept_unless_overwrite_is_said(tmp_path):
    raw = read_tables(make_tables(tmp_path / "raw"))
    write_dataset(raw, tmp_path / "out")
    with pytest.raises(ValueError, match="must not exist yet"):
        write_dataset(raw, tmp_path / "out")
    write_dataset(raw, tmp_path / "out", SplitChoice("time"), overwrite=True)
    assert load_schema(tmp_path / "out").split.method == "time"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def test_overwrite_never_removes_a_folder_that_is_no_dataset(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").touch()
    raw = read_tables(make_tables(tmp_path / "raw"))
    with pytest.raises(ValueError, match="must hold dataset.yaml to be overwritten"):
        write_dataset(raw, tmp_path / "thesis", overwrite=True)


def test_a_conversion_that_fails_leaves_the_old_dataset_and_nothing_else(tmp_path):
    raw = read_tables(make_tables(tmp_path / "raw"))
    write_dataset(raw, tmp_path / "out")
    with pytest.raises(OSError, match="disk"):
        fill_the_disk(tmp_path / "out")
    assert load_schema(tmp_path / "out").name == "raw"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def test_what_a_killed_conversion_left_is_no_dataset_and_is_cleared_by_the_next(tmp_path):
    left = tmp_path / ".out.partial"
    (left / "new" / "train").mkdir(parents=True)
    (left / SCRATCH_MARK).touch()
    write_dataset(read_tables(make_tables(tmp_path / "raw")), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def fill_the_disk(out):
    with new_folder(out, overwrite=True) as new:
        (new / "train").mkdir()
        raise OSError("No space left on disk")


def test_row_groups_and_files_are_cut_at_their_sizes_however_the_rows_come(tmp_path):
    schema = pa.schema([pa.field("x", pa.int32(), nullable=False)])
    values = pa.table({"x": pa.array(np.arange(2500, dtype=np.int32))}, schema=schema)
    with PartWriter(tmp_path, schema, row_group_rows=100, file_rows=1000) as writer:
        for start, stop in ((0, 30), (30, 999), (999, 1001), (1001, 2500)):
            writer.append(values.slice(start, stop - start))
    files = sorted(tmp_path.iterdir())
    assert [pq.ParquetFile(f).metadata.num_rows for f in files] == [1000, 1000, 500]
    groups = pq.ParquetFile(files[0]).metadata
    assert {groups.row_group(i).num_rows for i in range(groups.num_row_groups)} == {100}
    assert pq.read_table(tmp_path)["x"].to_pylist() == list(range(2500))


# A new day -----------------------------------------------------------------------------------


def test_a_vocabulary_that_grows_keeps_the_rows_of_its_old_values(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    monday = make_tables(tmp_path / "monday", user_id=[i % 15 for i in range(600)])
    tuesday = make_tables(tmp_path / "tuesday", user_id=[19 - i % 15 for i in range(600)])
    old = write_dataset(read_tables(monday), first)
    new = write_dataset(read_tables(tuesday), second, grow_from=first)

    def row_of(dataset):
        """User key -> row of the table user_id."""
        keys = pl.read_parquet(dataset / "users.parquet")["user_key"].to_list()
        rows = all_rows(dataset).select("user", "user_id").unique().rows()
        return {keys[user]: row for user, row in rows}

    before, after = row_of(first), row_of(second)
    both = [key for key in before if key in after and before[key]]
    assert len(both) == 10
    assert {key: after[key] for key in both} == {key: before[key] for key in both}
    fresh = [key for key in after if key not in before]
    assert len(fresh) == 5
    assert sorted(after[key] for key in fresh) == [
        old.tables["user_id"] + i for i in range(len(fresh))
    ]
    assert new.tables["user_id"] == old.tables["user_id"] + len(fresh)
    assert new.tables["item_id"] >= old.tables["item_id"]


def test_a_data_set_without_vocabularies_cannot_grow(tmp_path):
    raw = read_tables(make_tables(tmp_path / "raw"))
    with pytest.raises(FileNotFoundError, match="vocabularies must exist for vocabularies to grow"):
        write_dataset(raw, tmp_path / "out", grow_from=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["user_id=12", "user_id=500x2"])
def test_a_hashed_feature_has_a_table_of_that_size_and_its_collisions_are_counted(tmp_path, option):
    raw, out = make_tables(tmp_path / "raw"), tmp_path / "out"
    console = Console(file=io.StringIO(), width=200)
    schema = convert("tables", raw, out, table_kinds=tables_by_option([option]), console=console)
    rows, _, hashes = option.partition("=")[2].partition("x")
    assert schema.tables["user_id"] == int(rows)
    feature = next(f for f in schema.sparse if f.name == "user_id")
    assert feature.multi == bool(hashes)
    shared = schema.counts["collisions"]["user_id"]
    assert shared["values"] == 20
    assert (shared["shared"] > 0) == (rows == "12")
    assert f"{shared['shared']} of 20 training values share" in console.file.getvalue()
    keys = pl.read_parquet(out / "users.parquet")["user_key"]
    table = Hashed(int(rows), int(hashes or 1))
    frame = all_rows(out)
    expected = table.encode(keys.gather(frame["user"]))
    assert frame["user_id"].to_list() == expected.to_list()
    assert not (out / "vocabularies/user_id.parquet").exists()
    batch = next(open_loader(out, "train", 32).batches())
    assert batch.sparse["user_id"].values().max() < int(rows)


@pytest.mark.parametrize(
    ("option", "message"),
    [("user_id", "must look like user_id=100000"), ("balance=10", "only a sparse feature can be")],
)
def test_a_hash_that_cannot_be_is_refused(tmp_path, option, message):
    raw = make_tables(tmp_path / "raw")
    with pytest.raises(ValueError, match=message):
        convert("tables", raw, tmp_path / "out", table_kinds=tables_by_option([option]))


def test_the_words_of_a_text_are_a_feature_and_the_text_stays_for_prompts(tmp_path):
    raw = make_tables(tmp_path / "raw")
    (raw / "tables.yaml").write_text("user: {}\nitem: {title: words}\ntext: {item_title: title}\n")
    tables = read_tables(raw)
    assert tables.items["title_words"][7].to_list() == ["7", "item", "number"]
    schema = write_dataset(tables, tmp_path / "out")
    feature = next(f for f in schema.sparse if f.name == "title_words")
    assert feature.multi
    assert schema.tables["title_words"] == 40 + 2 + 1
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items["title"][7] == "item number 7"
    (raw / "tables.yaml").write_text("user: {balance: words}\n")
    with pytest.raises(ValueError, match="column 'balance' must hold strings"):
        read_tables(raw)
    (raw / "tables.yaml").write_text("interaction: {device: words}\n")
    with pytest.raises(ValueError, match="words are made of columns of users and items only"):
        read_tables(raw)
