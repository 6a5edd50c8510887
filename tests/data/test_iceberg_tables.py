"""Iceberg tables are converted to the dataset of the rows of one snapshot, whole or in parts."""

import json
import shutil
import sys

import polars as pl
import pytest
from object_store import store
from part_tables import ROWS, differences, write_raw

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts.conversion import PartOptions, write_dataset_in_parts
from msrec.data.convert.sources.plain.iceberg_tables import FILE_IO, METADATA, iceberg_files
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.engines.engines import Processes
from msrec.data.io.paths import to_path
from msrec.data.schema import load_schema

pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (extra `iceberg`)")
sql = pytest.importorskip("pyiceberg.catalog.sql", reason="sqlalchemy is not installed")
CHOICE = SplitChoice("time")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    with_tables = sql.SqlCatalog("test", uri=f"sqlite:///{folder}/a.db", warehouse=str(folder))
    with_tables.create_namespace("app")
    yield with_tables
    with_tables.close()


def make_table(catalog, folder, frame, **settings):
    """Makes a table in a folder, with some rows."""
    rows = frame.to_arrow()
    name = f"app.{folder.parent.parent.name}_{folder.name}"
    table = catalog.create_table(name, rows.schema, location=str(folder), **settings)
    table.append(rows)
    return table


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "app"
    folder.mkdir()
    write_raw(folder)
    return folder


@pytest.fixture(scope="module")
def raw(plain, catalog, tmp_path_factory):
    """Folder with items in Parquet, and Iceberg tables of several snapshots.

    Users are overwritten. Interactions have a partition for each scenario; 2,000 rows are older
    than the column `page` and than the name of `click`, and 7 rows were deleted.
    """
    from pyiceberg.transforms import IdentityTransform
    from pyiceberg.types import LongType

    folder = tmp_path_factory.mktemp("iceberg") / "app"
    folder.mkdir()
    for name in ("tables.yaml", "items.parquet"):
        shutil.copy(plain / name, folder / name)
    users = pl.read_parquet(plain / "users.parquet")
    table = make_table(catalog, folder / "users", users.with_columns(age=pl.lit(7, pl.Int64)))
    table.overwrite(users.to_arrow())
    rows = pl.read_parquet(plain / "interactions" / "*.parquet").with_row_index("n")
    rows = rows.with_columns(pl.col("n").cast(pl.Int64))
    older = rows[:2000].drop("page").rename({"click": "clicked"})
    table = make_table(catalog, folder / "interactions", older)
    with table.update_spec() as spec:
        spec.add_field("scenario", IdentityTransform(), "scenario")
    with table.update_schema() as schema:
        schema.rename_column("clicked", "click")
        schema.add_column("page", LongType())
    table.append(rows[2000:].select(table.schema().column_names).to_arrow())
    table.delete("n >= 3000 and n < 3007")
    return folder


@pytest.fixture(scope="module")
def workers():
    engine = Processes(2)
    yield engine
    engine.close()


def snapshots(catalog, folder):
    table = catalog.load_table(f"app.{folder.parent.parent.name}_{folder.name}")
    return [snapshot.snapshot_id for snapshot in table.snapshots()]


def test_the_files_of_a_snapshot_have_its_rows(catalog, raw):
    table = catalog.load_table(f"app.{raw.parent.name}_interactions")
    expected = pl.DataFrame(pl.from_arrow(table.scan().to_arrow())).sort("n")
    files = iceberg_files(raw / "interactions", table.current_snapshot().snapshot_id)
    found = pl.concat([file.read() for file in files]).sort("n")
    assert found.equals(expected.cast(found.schema))
    assert found.height == ROWS - 7
    assert found["page"][:2000].null_count() == 2000
    assert found["click"].null_count() == 0
    for file in files:
        for columns in (["scenario"], ["page", "n"], ["click"], None):
            assert file.read(3, 5, columns).equals(file.read(columns=columns)[3:8])


def test_a_table_makes_the_dataset_of_its_rows_in_parquet(raw, plain, catalog, workers, tmp_path):
    ids = {n: snapshots(catalog, raw / n)[-1] for n in ("interactions", "users")}
    copy = tmp_path / "app"
    (copy / "interactions").mkdir(parents=True)
    for name in ("tables.yaml", "items.parquet", "users.parquet"):
        shutil.copy(plain / name, copy / name)
    for number, file in enumerate(iceberg_files(raw / "interactions", ids["interactions"])):
        file.read().write_parquet(copy / "interactions" / f"{number:03d}.parquet")
    write_dataset(read_tables(raw), tmp_path / "out", CHOICE)
    write_dataset(read_tables(copy), tmp_path / "expected", CHOICE)
    assert differences(tmp_path / "out", tmp_path / "expected") == ["dataset.yaml"]
    schema = load_schema(tmp_path / "out")
    assert schema.raw_versions == ids
    assert schema.model_copy(update={"raw_versions": {}}) == load_schema(tmp_path / "expected")
    options = PartOptions(workers, tmp_path / "work", 700)
    write_dataset_in_parts(raw, TableRows.declared(raw), tmp_path / "parts", options, CHOICE)
    assert differences(tmp_path / "parts", tmp_path / "out") == []


def test_an_older_snapshot_is_read_on_request(raw, catalog, tmp_path):
    versions = {n: snapshots(catalog, raw / n)[0] for n in ("interactions", "users")}
    source = TableRows.declared(raw, versions=versions).of_versions(raw)
    ages = pl.concat([file.read() for file in source.files(raw, "users")])["age"]
    assert ages.unique().to_list() == [7]
    first = pl.concat([file.read() for file in source.files(raw)])
    assert first.height == 2000
    assert "clicked" in first.columns


@pytest.fixture
def small(catalog, tmp_path):
    folder = tmp_path / "app" / "users"
    return folder, make_table(catalog, folder, pl.DataFrame({"user_id": range(30)}))


def test_older_files_have_the_first_default_of_a_column(small):
    from pyiceberg.types import LongType

    folder, table = small
    with table.update_schema() as schema:
        schema.add_column("age", LongType())
    table.append(pl.DataFrame({"user_id": [30], "age": [8]}).to_arrow())
    last = max((folder / METADATA).glob("*.metadata.json"))
    metadata = json.loads(last.read_text())  # pyiceberg cannot write a default
    metadata["schemas"][-1]["fields"][-1]["initial-default"] = 5
    last.write_text(json.dumps(metadata))
    files = iceberg_files(folder, table.current_snapshot().snapshot_id)
    rows = pl.concat([file.read() for file in files])
    assert dict(rows["age"].value_counts().rows()) == {5: 30, 8: 1}


def test_a_table_in_a_store_is_read(tmp_path):
    with store():
        access = {"warehouse": "s3://apps/w", "py-io-impl": FILE_IO}
        catalog = sql.SqlCatalog("s3", uri=f"sqlite:///{tmp_path}/a.db", **access)
        catalog.create_namespace("app")
        rows = pl.DataFrame({"user_id": range(30)}).to_arrow()
        table = catalog.create_table("app.users", rows.schema, location="s3://apps/raw/users")
        table.append(rows)
        raw = to_path("s3://apps/raw")
        source = TableRows.declared(raw).of_versions(raw)
        assert source.versions == {"users": table.current_snapshot().snapshot_id}
        [file] = source.files(raw, "users")
        assert file.read()["user_id"].to_list() == [*range(30)]
        catalog.close()


def test_what_is_not_in_the_parquet_files_is_refused(small, monkeypatch):
    from pyiceberg.manifest import DataFile, FileFormat
    from pyiceberg.table import DataScan, FileScanTask

    folder, table = small
    last = table.current_snapshot().snapshot_id
    with pytest.raises(ValueError, match=rf"with snapshot 7; it has {last}. Name one"):
        iceberg_files(folder, 7)
    with monkeypatch.context() as patch:
        patch.setattr(DataFile, "file_format", FileFormat.ORC)
        with pytest.raises(ValueError, match=rf"in snapshot {last}; there are files in ORC"):
            iceberg_files(folder, last)
    tasks = [FileScanTask(task.file, {task.file}) for task in table.scan().plan_files()]
    with monkeypatch.context() as patch:  # pyiceberg reads such deletes, but writes none
        patch.setattr(DataScan, "plan_files", lambda _: tasks)
        with pytest.raises(ValueError, match=r"rows are deleted by delete files. Rewrite"):
            iceberg_files(folder, last)
    table.delete("user_id >= 0")
    with pytest.raises(ValueError, match=r"users must hold rows; snapshot \d+ has no files"):
        iceberg_files(folder, table.current_snapshot().snapshot_id)
    assert len(iceberg_files(folder, last)) == 1


def test_files_without_numbers_of_columns_are_refused(catalog, small, tmp_path):
    folder, table = small
    pl.DataFrame({"user_id": [99]}).write_parquet(tmp_path / "more.parquet")
    table.add_files([str(tmp_path / "more.parquet")])
    files = iceberg_files(folder, table.current_snapshot().snapshot_id)
    with pytest.raises(ValueError, match=r"more.parquet must have the numbers of its columns"):
        [file.read() for file in files]


def test_two_last_metadata_files_are_refused(small):
    folder, table = small
    last = max((folder / METADATA).glob("*.metadata.json"))
    shutil.copy(last, last.with_name(f"{last.name.partition('-')[0]}-other.metadata.json"))
    with pytest.raises(ValueError, match=r"must have one last metadata file; found .* and .*other"):
        TableRows.declared(folder.parent).of_versions(folder.parent)


def test_a_missing_package_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiceberg.table", None)
    with pytest.raises(ValueError, match=r"is an Iceberg table.*pip install 'msrec\[iceberg\]'"):
        TableRows.declared(small[0].parent).of_versions(small[0].parent)
