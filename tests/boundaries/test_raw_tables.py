"""Raw tables: separators, scenarios, times, empty tables; what is refused leaves nothing."""

import numpy as np
import polars as pl
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.scenario_values import ScenarioValues
from msrec.data.features.value_types import split_text
from msrec.data.schema import load_schema

ROWS, USERS, ITEMS = 60, 6, 12
GENRES = ["Action, Drama", "Drama", "Comedy ,Action", None, "Drama, Comedy, Action", "Action,"]


def write_raw(folder, yaml="", items=None, **changes):
    folder.mkdir(exist_ok=True)
    rows = {
        "user_id": np.arange(ROWS) % USERS,
        "item_id": np.arange(ROWS) % ITEMS,
        "scenario": ["feed", "search"] * (ROWS // 2),
        "label": [0, 1] * (ROWS // 2),
        "timestamp": 1_650_000_000 + np.arange(ROWS),
    }
    pl.DataFrame(rows | changes).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"user_id": np.arange(USERS)}).write_parquet(folder / "users.parquet")
    frame = pl.DataFrame({"item_id": np.arange(ITEMS), **(items or {})})
    frame.write_parquet(folder / "items.parquet")
    if yaml:
        (folder / "tables.yaml").write_text(yaml)
    return folder


def convert(folder, method="random", policy="fail"):
    raw = read_tables(folder / "raw")
    row_filter = RowFilter(policy)
    write_dataset(raw, folder / "data", SplitChoice(method), row_filter=row_filter)
    return raw, row_filter


def vocabulary(folder, name):
    values = pl.read_parquet(folder / f"data/vocabularies/{name}.parquet")["value"]
    return sorted(values.to_list())


@pytest.mark.parametrize(
    ("yaml", "note"),
    [
        ('item: {genres: {multi: ","}}', None),
        ("item: {genres: multi}", "items.genres: values are separated by ',' (guessed)"),
    ],
)
def test_values_in_one_string_are_split_and_score_accepts_them(tmp_path, yaml, note):
    write_raw(tmp_path / "raw", yaml, {"genres": GENRES * 2})
    raw, _ = convert(tmp_path)
    assert note is None or note in raw.notes
    assert vocabulary(tmp_path, "genres") == ["Action", "Comedy", "Drama"]
    assert load_schema(tmp_path / "data").sparse[-1].separator == ","
    encoder = RowEncoder(tmp_path / "data")
    row = {"user_key": 1, "item_key": 1, "scenario": "feed"}
    given = [row | {"genres": text} for text in GENRES]
    lists = [row | {"genres": text and split_text(text, ",")} for text in GENRES]
    wanted = encoder.encode(encoder.table(lists), "x")["genres"].to_pylist()
    assert [len(ids) for ids in wanted] == [2, 1, 2, 0, 3, 1]
    assert 0 not in sum(wanted, [])
    assert encoder.encode(encoder.table(given), "x")["genres"].to_pylist() == wanted
    table = pl.DataFrame(given).to_arrow()
    assert encoder.encode(table, "x")["genres"].to_pylist() == wanted


def test_a_separator_is_guessed_where_few_values_make_many_strings(tmp_path):
    genres = ["A", "B", "C", "A; B", "B; C", "A; C", "A; B; C", "C; A", "B; A", "C; B; A", "A", "C"]
    write_raw(tmp_path / "raw", items={"genres": genres})
    raw, _ = convert(tmp_path)
    assert "items.genres: multi feature, values separated by ';'" in raw.notes
    assert vocabulary(tmp_path, "genres") == ["A", "B", "C"]


def test_a_comma_in_names_separates_nothing(tmp_path):
    titles = {"title": [f"Film {n}, The" for n in range(ITEMS)], "city": ["Paris, France"] * ITEMS}
    write_raw(tmp_path / "raw", items=titles)
    convert(tmp_path)
    schema = load_schema(tmp_path / "data")
    assert [(f.name, f.multi) for f in schema.sparse] == [
        ("user_id", False),
        ("item_id", False),
        ("city", False),
    ]


def test_a_separator_of_a_column_without_strings_is_refused(tmp_path):
    write_raw(tmp_path / "raw", 'item: {size: {multi: ","}}', {"size": range(ITEMS)})
    with pytest.raises(ValueError, match="items.parquet: column 'size' must hold strings, because"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("unit", "times", "message"),
    [
        ("s", 1_650_000_000_000, "be a time in s since 1970, in the years 1 to 9999; found 165"),
        ("s", 2**62, "in the years 1 to 9999"),
        ("ms", 2**62, "be a time in ms since 1970, in the years 1 to 9999"),
        (None, 2**63, "'timestamp' must fit int64; found 9223372036854775808 in row 0"),
    ],
)
def test_a_time_out_of_range_is_refused_before_anything_is_written(tmp_path, unit, times, message):
    stamps = pl.Series([times] * ROWS, dtype=pl.UInt64)
    yaml = f"timestamp_unit: {unit}" if unit else ""
    write_raw(tmp_path / "raw", yaml, timestamp=stamps)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("kind", [pl.Int32, pl.Int64, pl.UInt32, pl.UInt64])
def test_times_of_any_integer_type_are_kept(tmp_path, unit, kind):
    times = pl.Series(range(10, 10 + ROWS), dtype=kind)
    write_raw(tmp_path / "raw", f"timestamp_unit: {unit}", timestamp=times)
    convert(tmp_path, "time")
    assert load_schema(tmp_path / "data").counts["time"]["train"][0] == 10


@pytest.mark.parametrize("table", ["interactions", "users", "items"])
def test_a_table_without_rows_is_refused_by_name(tmp_path, table):
    path = write_raw(tmp_path / "raw") / f"{table}.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(ValueError, match=f"{table}.parquet") as caught:
        convert(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_all_rows_bad_is_refused(tmp_path):
    write_raw(tmp_path / "raw", label=[5] * ROWS)
    with pytest.raises(ValueError, match="interactions.parquet must hold interactions; none of"):
        convert(tmp_path, policy="skip")


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        (["only"] * ROWS, ["only"]),
        ([True, False] * (ROWS // 2), ["false", "true"]),
        ([2, 1] * (ROWS // 2), ["1", "2"]),
    ],
)
def test_scenarios_of_each_type_are_those_of_raw_rows(tmp_path, scenario, names):
    write_raw(tmp_path / "raw", scenario=scenario)
    convert(tmp_path)
    encoder = RowEncoder(tmp_path / "data")
    assert [each.name for each in encoder.schema.scenarios] == names
    rows = [{"user_key": 1, "item_key": 1, "scenario": value} for value in scenario[:2]]
    wanted = [names.index(str(value).lower()) for value in scenario[:2]]
    assert encoder.encode(encoder.table(rows), "x")["scenario"].tolist() == wanted
    assert encoder.encode(pl.DataFrame(rows).to_arrow(), "x")["scenario"].tolist() == wanted
    assert encoder.encode(encoder.table(rows[1:]), "x")["scenario"].tolist() == wanted[1:]


@pytest.mark.parametrize("scenario", [[0.5] * ROWS, [{"a": 1}] * ROWS, [[1]] * ROWS])
def test_a_scenario_of_another_type_is_refused(tmp_path, scenario):
    write_raw(tmp_path / "raw", scenario=scenario)
    with pytest.raises(ValueError, match="column 'scenario' must hold integers, strings, Booleans"):
        convert(tmp_path)


def test_nan_makes_no_label(tmp_path):
    """In polars NaN exceeds every number, so that a rating of NaN would be liked."""
    rating = [float("nan"), *[1.0] * (ROWS - 1)]
    write_raw(tmp_path / "raw", "more_labels: {rating: [3]}", rating=rating)
    with pytest.raises(ValueError, match="'rating' must be a finite number.*found nan in row 0"):
        convert(tmp_path)


@settings(max_examples=examples(200), deadline=None)
@given(names=st.lists(st.text() | st.integers().map(str), min_size=1, max_size=5, unique=True))
def test_a_scenario_is_found_by_its_name_and_its_number_is_in_range(names):
    scenarios = ScenarioValues(names)
    assert [scenarios.number(name) for name in names] == list(range(len(names)))
    assert scenarios.numbers(pl.Series(names).to_arrow()).tolist() == list(range(len(names)))
    assert all(-1 <= scenarios.number(value) < len(names) for value in (0, 1, 7, None, [], 0.5))
