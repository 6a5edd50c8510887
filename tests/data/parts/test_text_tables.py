"""Tables in CSV and JSON lines make the dataset that the same tables in Parquet make."""

import json
import shutil

import polars as pl
import pytest
from part_tables import as_text, differences, write_raw

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts.conversion import PartOptions, write_dataset_in_parts
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.plain.table_files import interaction_files
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.split import SplitChoice
from msrec.data.schema import load_schema

TIME, GIVEN = SplitChoice("time"), SplitChoice("given", column="part")


def in_one(raw, out, choice=TIME, policy="fail"):
    row_filter = RowFilter(policy)
    tables = read_tables(raw, TextReader(row_filter))
    write_dataset(tables, out, choice, row_filter=row_filter)
    return row_filter


def in_parts(raw, out, engine, choice=TIME, policy="fail"):
    row_filter = RowFilter(policy)
    options = PartOptions(engine, out.with_name(f"{out.name}.parts"), 700)
    write_dataset_in_parts(raw, TableRows.declared(raw), out, options, choice, row_filter)
    return row_filter


def without_names(folder):
    """Removes what differs because the folder of the raw tables has another name."""
    path = folder / "dataset.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(x for x in lines if not x.startswith(("name:", "description:"))))
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".jsonl"])
def test_text_makes_the_dataset_of_parquet(raw_tables, workers, tmp_path, suffix):
    raw = as_text(raw_tables, tmp_path / "raw", suffix)
    in_one(raw_tables, tmp_path / "expected")
    in_one(raw, tmp_path / "one")
    in_parts(raw, tmp_path / "parts", workers)
    expected = without_names(tmp_path / "expected")
    assert differences(without_names(tmp_path / "one"), expected) == []
    assert differences(without_names(tmp_path / "parts"), expected) == []


def test_columns_that_only_the_split_needs_and_lists_are_read(raw_tables, workers, tmp_path):
    raw = as_text(raw_tables, tmp_path / "raw", ".jsonl.gz", lists=["tags"])
    in_one(raw_tables, tmp_path / "expected", GIVEN)
    in_one(raw, tmp_path / "one", GIVEN)
    in_parts(raw, tmp_path / "parts", workers, GIVEN)
    assert differences(tmp_path / "parts", tmp_path / "one") == []
    tables = [pl.read_parquet(tmp_path / n / "train/*.parquet") for n in ("one", "expected")]
    assert tables[0].equals(tables[1])
    separators = {f.name: f.separator for f in load_schema(tmp_path / "one").sparse}
    assert separators["tags"] is None


def test_ids_are_text_unless_declared_as_integers(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "tables.yaml").write_text("user: {}\nitem: {}\n")
    (raw / "users.csv").write_text("user_id\n007\n7\n")
    (raw / "items.csv").write_text("item_id\n1\n")
    (raw / "interactions.csv").write_text(
        "user_id,item_id,scenario,label\n" + "007,1,feed,1\n7,1,feed,0\n" * 20
    )
    tables = read_tables(raw)
    assert tables.users["user_key"].to_list() == ["007", "7"]
    (raw / "tables.yaml").write_text("user: {}\nitem: {}\nintegers: [item_id]\n")
    assert read_tables(raw).items["item_key"].to_list() == [1]


def test_labels_may_be_booleans(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "tables.yaml").write_text("user: {}\nitem: {}\n")
    (raw / "users.jsonl").write_text('{"user_id": "a"}\n')
    (raw / "items.jsonl").write_text('{"item_id": "b"}\n')
    row = '{"user_id": "a", "item_id": "b", "scenario": "x", "label": %s}\n'
    values = ["true", "false", "1", "0.0", '"True"']
    (raw / "interactions.jsonl").write_text("".join(row % value for value in values))
    assert read_tables(raw).interactions["label"].to_list() == [1, 0, 1, 0, 1]
    (raw / "interactions.jsonl").write_text(row % "0.5")
    with pytest.raises(ValueError, match=r"must be 0, 1, true or false; found '0.5' in row 0"):
        read_tables(raw)


def test_bad_rows_are_counted_with_file_and_row_by_all_engines(raw_tables, workers, tmp_path):
    raw = as_text(raw_tables, tmp_path / "raw", ".csv")
    path = raw / "interactions" / "day-2.csv"
    lines = path.read_text().splitlines()
    lines[100] = lines[100] + ",x"  # row 99 has a field too many
    fields = lines[200].split(",")
    lines[200] = ",".join([*fields[:3], "7", *fields[4:]])  # row 199: click
    lines[300] = ",".join(["u999999", *lines[300].split(",")[1:]])  # row 299: no such user
    path.write_text("\n".join(lines) + "\n")
    one, parts = in_one(raw, tmp_path / "one", policy="skip"), None
    parts = in_parts(raw, tmp_path / "parts", workers, policy="skip")
    assert differences(tmp_path / "parts", tmp_path / "one") == []
    assert parts.excluded == one.excluded
    assert sum(parts.excluded.values()) == 3
    examples = " ".join(parts.examples.values())
    assert "day-2.csv" in examples
    for row in ("in row 99 (", "in row 199 (", "in row 299 ("):
        assert row in examples
    with pytest.raises(ValueError, match=r"day-2\.csv: each row must have 12 fields; .* row 99 "):
        in_parts(raw, tmp_path / "again", workers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables.yaml": "item: {}\n"}, r"users\.csv is text, .* no `user:`"),
        ({"users.parquet": ""}, r"one file of users; found users\.parquet, users\.csv"),
        ({"users.csv": None}, r"users\.parquet must exist"),
        ({"interactions.csv": ""}, r"interactions\.csv must hold rows; it is empty"),
        ({"tables.yaml": "user: {}\nitem: {}\nintegers: [label]\n"}, r"integers: .*'label'"),
        (
            {"tables.yaml": "user: {}\nitem: {price: dense}\n", "items.csv": "item_id,price\n1,\n"},
            r"items\.csv: column 'price' must be finite; found None in row 0",
        ),
        (
            {"tables.yaml": "user: {age: sparse}\nitem: {}\n"},
            r"users\.csv must have the column 'age'",
        ),
        (
            {"interactions.csv": "user_id,item_id,scenario,label\na,1,feed,maybe\n"},
            r"column 'label' must be 0, 1, true or false; found 'maybe' in row 0",
        ),
        (
            {"interactions.csv": "user_id,item_id,scenario,label,label\na,1,feed,1,0\n"},
            r"'label' .*once",
        ),
        (
            {"interactions.csv": "user_id, item_id,scenario,label\na,1,feed,1\n"},
            r"must have the column 'item_id'; found user_id, ' item_id', scenario, label\.",
        ),
        ({"interactions.csv": "user_id,item_id,scenario,label\n"}, r"csv must hold interactions"),
        ({"tables.yaml": "user: {a: sparce}\n"}, r"yaml: user\.a: Input should be 'sparse', "),
        ({"tables.yaml": "item: {a: {multi: ''}}\n"}, r"yaml: item\.a\.multi: String should"),
        ({"tables.yaml": "[a]\n"}, r"yaml: file: Input should be keys with values; got"),
    ],
)
def test_what_is_refused_names_file_column_and_row(tmp_path, change, message):
    files = {
        "tables.yaml": "user: {}\nitem: {}\n",
        "users.csv": "user_id\na\n",
        "items.csv": "item_id\n1\n",
        "interactions.csv": "user_id,item_id,scenario,label\na,1,feed,1\n",
    }
    for name, text in {**files, **change}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_dataset(read_tables(tmp_path), tmp_path / "out", SplitChoice("random"))


def write_json_tables(folder, items, rows=({},), kinds="{kind: sparse}"):
    """Writes tables in JSON lines of one user, some items, and the rows of item 1."""
    row = {"user_id": "a", "item_id": 1, "scenario": "feed", "label": 1}
    tables = {
        "users": [{"user_id": "a"}],
        "items": [{"item_id": number, **item} for number, item in enumerate(items, 1)],
        "interactions": [row | each for each in rows],
    }
    for name, lines in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "tables.yaml").write_text(f"user: {{}}\nitem: {kinds}\n")


@pytest.mark.parametrize(
    ("items", "kinds", "message"),
    [
        (
            [{"kind": {"a": 1}}],
            "{kind: sparse}",
            r"row 0 holds \{'a': 1\} under 'kind', .* text or",
        ),
        ([{"kind": "x"}, {"kind": ["x"]}], "{kind: multi}", r"row 1 holds \['x'\] under 'kind', "),
        ([{"kind": [["x"]]}], "{kind: multi}", r"row 0 holds .* a list of texts or numbers"),
        ([{"kind": ["x", {"a": 1}]}], "{kind: multi}", r"row 0 holds .* a list of texts or"),
        ([{"kind": "x"}], "{knd: sparse}", r"must have the column 'knd'; found item_id, kind\. A"),
    ],
)
def test_odd_json_under_declared_keys_is_refused(tmp_path, items, kinds, message):
    write_json_tables(tmp_path, items, kinds=kinds)
    with pytest.raises(ValueError, match=rf"items\.jsonl.*{message}"):
        read_tables(tmp_path)


def test_a_json_row_with_an_object_is_skipped_and_texts_that_look_like_json_are_read(tmp_path):
    items = [{"kind": "[PS4] {x}"}, {"kind": {"a": 1}}, {"kind": True, "z": {"kind": [1]}}]
    write_json_tables(tmp_path, items)
    row_filter = RowFilter("skip")
    tables = read_tables(tmp_path, TextReader(row_filter))
    assert tables.items["item_key"].to_list() == ["1", "3"]
    assert tables.items["kind"].to_list() == ["[PS4] {x}", "true"]
    assert list(row_filter.excluded.values()) == [1]


def test_a_feature_of_the_interactions_that_no_json_row_has_is_refused(workers, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [{"page": n, "query": None} for n in range(900)] + [{"query": "q"}] * 100
    write_json_tables(raw, [{}], rows, kinds="{}")
    mapping = raw / "tables.yaml"
    declared = mapping.read_text()
    mapping.write_text(f"{declared}interaction: {{page: sparse, query: sparse}}\n")
    in_one(raw, tmp_path / "one", SplitChoice("random"))
    in_parts(raw, tmp_path / "parts", workers, SplitChoice("random"))
    assert differences(tmp_path / "parts", tmp_path / "one") == []
    mapping.write_text(f"{declared}interaction: {{page: sparse, qurey: sparse}}\n")
    message = r"interactions.jsonl must have the column 'qurey'; found user_id.* query\. A row must"
    with pytest.raises(ValueError, match=message):
        read_tables(raw)
    with pytest.raises(ValueError, match=message):
        in_parts(raw, tmp_path / "again", workers)


def test_keys_that_the_first_line_lacks_are_columns_too(tmp_path):
    items = [{"kind": None}, {"kind": ["x"], "title": "t"}]
    write_json_tables(tmp_path, items, kinds="{kind: multi}")
    tables = read_tables(tmp_path)
    assert tables.items["title"].to_list() == [None, "t"]
    assert tables.items["kind"].to_list() == [None, ["x"]]
    write_json_tables(tmp_path, items, [{}, {"timestamp": 5}], kinds="{kind: multi}")
    with pytest.raises(ValueError, match=r"column 'timestamp' must have no null; .* in row 0"):
        write_dataset(read_tables(tmp_path), tmp_path / "out")


def test_a_file_of_another_format_in_the_folder_is_refused_and_a_mark_of_spark_is_not(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "interactions" / "_SUCCESS").touch()
    assert len(interaction_files(tmp_path)) == 3
    (tmp_path / "interactions" / "day-3.json").touch()
    with pytest.raises(ValueError, match=r"must hold only files of rows .*; found day-3\.json"):
        interaction_files(tmp_path)


def test_a_folder_of_mixed_formats_and_two_places_are_refused(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_raw(raw)
    shutil.copy(raw / "interactions/day-0.parquet", raw / "interactions/day-3.csv")
    with pytest.raises(ValueError, match=r"one format; found day-0\.parquet and day-3\.csv"):
        read_tables(raw)
    (raw / "interactions/day-3.csv").unlink()
    shutil.copy(raw / "interactions/day-0.parquet", raw / "interactions.parquet")
    with pytest.raises(ValueError, match=r"interactions\.parquet or the folder interactions, not"):
        read_tables(raw)
