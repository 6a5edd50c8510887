"""Delta tables are converted to the dataset of the rows of one version, whole or in parts."""

import json
import sys

import polars as pl
import pytest
from object_store import store
from part_tables import ROWS, differences, write_raw

import msrec
from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts.conversion import PartOptions, write_dataset_in_parts
from msrec.data.convert.sources.plain.delta_tables import LOG, delta_files
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.engines.engines import Processes
from msrec.data.io.paths import to_path
from msrec.data.schema import load_schema

deltalake = pytest.importorskip("deltalake", reason="deltalake is not installed (extra `delta`)")
CHOICE = SplitChoice("time")
DELETED = [4, 999, 2500, 5999]


def write_delta(folder, frame, mode="append", **options):
    """Adds a version of a table."""
    deltalake.write_deltalake(str(folder), frame.to_arrow(), mode=mode, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "app"
    folder.mkdir()
    write_raw(folder)
    return folder


@pytest.fixture(scope="module")
def rows(plain):
    """Rows of version 3 of the interactions."""
    rows = pl.read_parquet(plain / "interactions" / "*.parquet").with_row_index("n")
    page = pl.when(pl.col("n") >= 2000).then("page")  # older rows have none
    return rows.with_columns(page.alias("page")).filter(~pl.col("n").is_in(DELETED))


@pytest.fixture(scope="module")
def raw(plain, tmp_path_factory):
    """Folder with items in Parquet, and Delta tables of several versions.

    Users are overwritten. Interactions have a partition for each scenario; they are overwritten,
    appended to with another column, and four of them are deleted.
    """
    folder = tmp_path_factory.mktemp("delta") / "app"
    folder.mkdir()
    (folder / "tables.yaml").write_text((plain / "tables.yaml").read_text())
    (folder / "items.parquet").write_bytes((plain / "items.parquet").read_bytes())
    users = pl.read_parquet(plain / "users.parquet")
    write_delta(folder / "users", users.with_columns(age=pl.lit(7, pl.Int64)))
    write_delta(folder / "users", users, "overwrite")
    rows = pl.read_parquet(plain / "interactions" / "*.parquet").with_row_index("n")
    target = folder / "interactions"
    write_delta(target, rows[:50].drop("page"), partition_by=["scenario"])
    write_delta(target, rows[:2000].drop("page"), "overwrite", partition_by=["scenario"])
    write_delta(target, rows[2000:], schema_mode="merge")
    deltalake.DeltaTable(str(target)).delete(f"n in ({', '.join(map(str, DELETED))})")
    return folder


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """Dataset of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    write_dataset(read_tables(raw), out, CHOICE)
    return out


@pytest.fixture(scope="module")
def workers():
    engine = Processes(2)
    yield engine
    engine.close()


def in_parts(raw, out, workers, versions=None, **settings):
    options = PartOptions(workers, out.with_name("parts"), 700)
    source = TableRows.declared(raw, versions=versions)
    return write_dataset_in_parts(raw, source, out, options, CHOICE, **settings)


def test_the_files_of_a_version_have_its_rows(raw, rows):
    files = delta_files(raw / "interactions", 3)
    found = pl.concat([file.read() for file in files])
    assert found.select(rows.columns).sort("n").equals(rows.cast(found.select(rows.columns).schema))
    assert [str(file) for file in files] == sorted(str(file) for file in files)
    assert len(list((raw / "interactions").rglob("*.parquet"))) > len(files)


def test_some_columns_of_some_rows_of_a_file(raw):
    for file in delta_files(raw / "interactions", 3):
        for columns in (["scenario"], ["page", "n"], ["scenario", "page"], None):
            assert file.read(3, 5, columns).equals(file.read(columns=columns)[3:8])
        assert file.read(columns=["scenario"])["scenario"].unique().to_list() == [
            int(file.path.parent.name.removeprefix("scenario="))
        ]


def test_a_delta_table_makes_the_dataset_of_its_rows_in_parquet(raw, plain, whole, tmp_path):
    copy = tmp_path / "app"
    (copy / "interactions").mkdir(parents=True)
    for name in ("tables.yaml", "items.parquet", "users.parquet"):
        (copy / name).write_bytes((plain / name).read_bytes())
    for number, file in enumerate(delta_files(raw / "interactions", 3)):
        file.read().write_parquet(copy / "interactions" / f"{number:03d}.parquet")
    write_dataset(read_tables(copy), tmp_path / "out", CHOICE)
    assert differences(tmp_path / "out", whole) == ["dataset.yaml"]
    schema = load_schema(whole)
    assert schema.raw_versions == {"interactions": 3, "users": 1}
    assert schema.model_copy(update={"raw_versions": {}}) == load_schema(tmp_path / "out")


def test_parts_make_the_same_dataset(raw, whole, workers, tmp_path):
    in_parts(raw, tmp_path / "out", workers)
    assert differences(tmp_path / "out", whole) == []


def test_an_older_version_is_read_on_request(raw, workers, tmp_path):
    versions = {"interactions": 2, "users": 0}
    in_parts(raw, tmp_path / "out", workers, versions)
    msrec.convert("tables", raw, tmp_path / "one", split="time", versions=versions)
    assert differences(tmp_path / "out", tmp_path / "one") == []
    schema = load_schema(tmp_path / "out")
    assert schema.raw_versions == versions
    assert sum(split["all"] for split in schema.counts["rows"].values()) == ROWS
    ages = pl.read_parquet(tmp_path / "out" / "vocabularies" / "age.parquet")["value"]
    assert ages.to_list() == [7]


def test_a_stopped_conversion_goes_on_with_the_version_of_its_parts(raw, whole, workers, tmp_path):
    target = raw / "interactions"

    def stop(stage, number, total):
        if stage == "stage":
            write_delta(target, delta_files(target, 3)[0].read()[:9])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parts(raw, tmp_path / "out", workers, progress=stop)
    assert deltalake.DeltaTable(str(target)).version() == 4
    in_parts(raw, tmp_path / "out", workers)
    try:
        assert differences(tmp_path / "out", whole) == []
    finally:
        (target / LOG / f"{4:020d}.json").unlink()


def test_a_table_in_a_store_is_the_same(raw, whole, tmp_path):
    with store() as bucket:
        url = to_path(bucket.upload(raw, "app"))
        write_dataset(read_tables(url), tmp_path / "one", CHOICE)
        engine = Processes(2)  # they take the access from the environment
        in_parts(url, tmp_path / "out", engine)
        engine.close()
    assert differences(tmp_path / "one", whole) == []
    assert differences(tmp_path / "out", whole) == []


def small_table(folder, **options):
    write_delta(folder / "users", pl.DataFrame({"user_id": range(30)}), **options)
    return folder / "users"


def test_a_version_that_is_not_there_is_refused(tmp_path):
    small_table(tmp_path)
    with pytest.raises(ValueError, match=r"users must be a Delta table with version 7; "):
        delta_files(tmp_path / "users", 7)
    source = TableRows.declared(tmp_path, versions={"items": 1})
    with pytest.raises(ValueError, match=r"Iceberg table in .* \(users\); got one of items"):
        source.of_versions(tmp_path)


def test_a_table_without_files_is_refused(tmp_path):
    table = small_table(tmp_path)
    deltalake.DeltaTable(str(table)).delete()
    with pytest.raises(ValueError, match=r"users must hold rows; version 1 has no files"):
        delta_files(table, 1)


def test_a_table_beside_a_file_is_refused(tmp_path):
    small_table(tmp_path)
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "users.parquet")
    source = TableRows.declared(tmp_path).of_versions(tmp_path)
    with pytest.raises(ValueError, match=r"users.parquet or the folder users, not both"):
        source.files(tmp_path, "users")


def test_mapped_columns_are_refused(tmp_path):
    table = small_table(tmp_path, configuration={"delta.columnMapping.mode": "name"})
    with pytest.raises(ValueError, match=r"users must have the rows .* 0 uses column mapping"):
        delta_files(table, 0)


def test_deletion_vectors_are_refused(tmp_path):
    table = small_table(tmp_path, configuration={"delta.enableDeletionVectors": "true"})
    assert len(delta_files(table, 0)) == 1  # none is there
    [added] = [
        json.loads(line)["add"]
        for line in (table / LOG / f"{0:020d}.json").read_text().splitlines()
        if "add" in json.loads(line)
    ]
    removed = {"path": added["path"], "dataChange": True, "deletionTimestamp": 1}
    # Rows 3, 4, 7, 11, 18 and 29, from the protocol's description.
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    lines = [{"remove": removed}, {"add": {**added, "deletionVector": vector}}]
    (table / LOG / f"{1:020d}.json").write_text("".join(json.dumps(e) + "\n" for e in lines))
    with pytest.raises(ValueError, match=r"users must have the rows .* 1 uses deletion vectors"):
        delta_files(table, 1)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    small_table(tmp_path)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(ValueError, match=r"users is a Delta table.*pip install 'msrec\[delta\]'"):
        TableRows.declared(tmp_path).of_versions(tmp_path)
