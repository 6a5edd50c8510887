"""Conversions from and to an object store make the dataset of local files."""

import subprocess
import sys

import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_store import SECRET, store
from part_tables import as_text, differences
from s3fs.core import S3File
from upath import UPath

import msrec
from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts.conversion import PartOptions, write_dataset_in_parts
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.engines.engines import make_engine
from msrec.data.io.parquet_files import read_rows
from msrec.data.io.paths import to_path
from msrec.data.schema import load_schema

pytestmark = pytest.mark.slow
CHOICE = SplitChoice("time")
MSREC = [sys.executable, "-m", "msrec"]
MARK = ".dataset.yaml.partial"


@pytest.fixture(scope="module")
def bucket():
    with store() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def raw(bucket, raw_tables):
    """URL of the raw tables; the folder's name is that of the local ones, since it is the app's."""
    return bucket.upload(raw_tables, raw_tables.name)


@pytest.fixture(scope="module")
def whole(raw_tables, tmp_path_factory):
    """Dataset of local files and one process."""
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    write_dataset(read_tables(raw_tables), folder, CHOICE)
    return folder


@pytest.fixture(scope="module")
def engine(bucket):
    """Two processes that know the store."""
    with make_engine("processes", 2, None) as engine:
        yield engine


def in_parts(raw, out, engine, work, **settings):
    options = PartOptions(engine, work, 700, settings.pop("overwrite", False))
    source = TableRows.declared(to_path(raw))
    write_dataset_in_parts(to_path(raw), source, to_path(out), options, CHOICE, **settings)


@pytest.mark.parametrize("name", ["polars", "processes", "ray"])
def test_every_engine_makes_the_dataset_of_local_files(bucket, raw, whole, tmp_path, name):
    options = {} if name == "polars" else {"workers": 2, "work": tmp_path / "work"}
    dataset = msrec.convert(
        "tables", raw, f"s3://apps/{name}", split="time", engine=name, **options
    )
    assert dataset.schema == load_schema(whole)
    assert differences(bucket.download(name, tmp_path / "copy"), whole) == []
    assert not (tmp_path / "work").exists()


def test_ranks_of_a_job_make_the_dataset_of_local_files(bucket, raw, whole, tmp_path):
    words = ["launch", "convert", raw, "s3://apps/ranks", "split=time", f"work={tmp_path}/work"]
    done = subprocess.run([*MSREC, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(bucket.download("ranks", tmp_path / "copy"), whole) == []
    assert (tmp_path / "ranks.job").is_dir()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz"])
def test_text_in_a_store_makes_the_dataset_of_local_text(
    bucket, raw_tables, engine, tmp_path, suffix
):
    local = as_text(raw_tables, tmp_path / "text", suffix)
    remote = bucket.upload(local, f"{suffix}/text")
    write_dataset(read_tables(local), tmp_path / "local", CHOICE)
    write_dataset(read_tables(remote), tmp_path / "one", CHOICE)
    in_parts(remote, tmp_path / "parts", engine, tmp_path / "work")
    assert differences(tmp_path / "one", tmp_path / "local") == []
    assert differences(tmp_path / "parts", tmp_path / "local") == []


def test_a_dataset_is_replaced_on_request_only_and_leaves_no_file(bucket, raw, whole, tmp_path):
    bucket.upload(whole, "old")
    bucket.write("old/train/part-00001.parquet", b"of a larger dataset")
    with pytest.raises(ValueError, match="s3://apps/old must not exist yet"):
        write_dataset(read_tables(raw), "s3://apps/old", CHOICE)
    bucket.write("old/notes.txt")
    with pytest.raises(ValueError, match=r"found s3://apps/old/notes.txt, which would be lost"):
        write_dataset(read_tables(raw), "s3://apps/old", CHOICE, overwrite=True)
    bucket.delete("old/notes.txt")
    write_dataset(read_tables(raw), "s3://apps/old", CHOICE, overwrite=True)
    assert differences(bucket.download("old", tmp_path / "copy"), whole) == []
    with pytest.raises(ValueError, match="must not be, be in or hold an input"):
        in_parts(raw, f"{raw}/dataset", None, tmp_path / "work")


def test_a_conversion_that_is_stopped_while_it_sends_leaves_no_dataset(
    bucket, raw, whole, engine, tmp_path
):
    def stop(stage, number, total):
        if stage == "send":
            raise KeyboardInterrupt

    bucket.upload(whole, "stopped")
    call = ("s3://apps/stopped", engine, tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        in_parts(raw, *call, progress=stop, overwrite=True)
    assert MARK in bucket.names("stopped")
    with pytest.raises(FileNotFoundError, match=r"stopped/dataset.yaml must exist"):
        load_schema("s3://apps/stopped")
    stages = set()
    in_parts(raw, *call, progress=lambda stage, *_: stages.add(stage))
    assert stages == {"send"}
    assert differences(bucket.download("stopped", tmp_path / "copy"), whole) == []


@pytest.mark.parametrize("name", ["a[1]", "b*c", "d {1}", "e%20#ü"])
def test_names_may_have_the_characters_of_patterns(bucket, raw_tables, whole, tmp_path, name):
    raw = bucket.upload(raw_tables, f"{name}/{raw_tables.name}")
    write_dataset(read_tables(raw), f"s3://apps/{name}/data", CHOICE)
    assert differences(bucket.download(f"{name}/data", tmp_path), whole) == []


def test_files_without_a_marker_are_not_ours(bucket, raw, tmp_path):
    bucket.write("other/train/part-00000.parquet", b"mine")
    with pytest.raises(ValueError, match=r"other must hold dataset.yaml to be overwritten"):
        write_dataset(read_tables(raw), "s3://apps/other", CHOICE, overwrite=True)
    bucket.write(f"killed/{MARK}")  # before the first file
    write_dataset(read_tables(raw), "s3://apps/killed", CHOICE)


def test_parts_of_other_raw_files_are_refused(bucket, raw_tables, engine, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    raw = bucket.upload(raw_tables, "changing")
    with pytest.raises(KeyboardInterrupt):
        in_parts(raw, tmp_path / "out", engine, tmp_path / "work", progress=stop)
    users = pl.read_parquet(raw_tables / "users.parquet").head(150)
    users.write_parquet(tmp_path / "users.parquet")
    bucket.write("changing/users.parquet", (tmp_path / "users.parquet").read_bytes())
    with pytest.raises(ValueError, match="work must hold parts of this conversion"):
        in_parts(raw, tmp_path / "out", engine, tmp_path / "work")


def test_files_that_workers_send_elsewhere_are_missed(raw_tables, engine, tmp_path):
    """The memory of a worker is not that of the command."""
    with pytest.raises(OSError, match=r"parquet must have \d+ bytes .* found no file"):
        in_parts(raw_tables, "memory://lost/app", engine, tmp_path / "work")
    with pytest.raises(FileNotFoundError):
        load_schema("memory://lost/app")


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(
    raw_tables, tmp_path, monkeypatch
):
    def refuse(*_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    message = "memory://read/only/.* must be writable, .*PermissionError: Access Denied"
    with pytest.raises(PermissionError, match=message):
        write_dataset(read_tables(raw_tables), "memory://read/only", CHOICE)
    with pytest.raises(PermissionError, match=message):
        in_parts(raw_tables, "memory://read/only", None, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s3://none/raw", "out"], "s3://none/raw must be readable; FileNotFoundError: The spec"),
        (["s3://apps/none", "out"], "s3://apps/none/interactions.parquet must exist: plain"),
        (["RAW", "s3://none/out"], "s3://none/out must be readable; FileNotFoundError: The spec"),
        (["RAW", "s3://apps/x", "--engine", "processes"], "--work must name a folder for the par"),
        (["RAW", "out", "--mapping", "s3://apps/x.yaml"], "s3://apps/x.yaml must exist, since it"),
    ],
)
def test_what_is_not_there_is_one_sentence(raw, tmp_path, words, message):
    done = convert(raw, words, tmp_path)
    assert done.stderr.strip().startswith(f"error: {message}")
    assert done.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("words", [["RAW", "out"], ["LOCAL", "s3://apps/refused"]])
def test_a_key_without_rights_is_one_sentence(bucket, raw_tables, raw, tmp_path, words):
    words = [str(raw_tables) if word == "LOCAL" else word for word in words]
    with bucket.refusing():
        done = convert(raw, words, tmp_path)
    assert "must be readable; PermissionError: " in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert SECRET not in done.stderr


def convert(raw, words, folder):
    words = [raw if word == "RAW" else word for word in words]
    command = [*MSREC, "convert", "tables", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    return done


def test_a_file_that_was_cut_is_named(bucket, raw_tables, engine, tmp_path):
    bucket.upload(raw_tables, "cut")
    data = (raw_tables / "interactions/day-2.parquet").read_bytes()
    bucket.write("cut/interactions/day-2.parquet", data[:-100])
    message = r"s3://apps/cut/interactions/day-2.parquet must be a whole Parquet file"
    with pytest.raises(ValueError, match=message):
        read_tables("s3://apps/cut")
    with pytest.raises(ValueError, match=message):
        in_parts("s3://apps/cut", tmp_path / "out", engine, tmp_path / "work")


def test_any_rows_and_columns_are_those_of_the_local_file(bucket, tmp_path):
    rows = pl.DataFrame(
        {
            "day": pl.Series(range(1000)).cast(pl.Date),
            "key": pl.Series(range(1000)).cast(pl.UInt16),
            "kind": pl.Series(["a", "b"] * 500, dtype=pl.Categorical),
            "level": pl.Series(["low", "high"] * 500, dtype=pl.Enum(["low", "high"])),
            "price": pl.Series(range(1000)).cast(pl.Decimal(9, 2)),
            "tags": [[str(n), None] if n % 3 else None for n in range(1000)],
            "key.x": [None] * 1000,
        }
    )
    rows.write_parquet(tmp_path / "rows.parquet", row_group_size=100)
    bucket.upload(tmp_path, "rows")
    remote = to_path("s3://apps/rows/rows.parquet")
    for start, count in ((0, 1000), (0, 0), (99, 1), (100, 100), (150, 700), (999, 1), (950, 500)):
        for columns in (None, ["tags", "key"]):
            here = read_rows(tmp_path / "rows.parquet", start, count, columns)
            there = read_rows(remote, start, count, columns)
            assert there.schema == here.schema
            assert there.equals(here)


def test_only_the_row_groups_and_columns_of_a_part_are_transferred(bucket, tmp_path, monkeypatch):
    wide = pl.DataFrame({f"c{n}": pl.int_range(100_000, eager=True).hash(n) for n in range(8)})
    wide.write_parquet(tmp_path / "wide.parquet", row_group_size=10_000)
    bucket.upload(tmp_path, "wide")
    size = (tmp_path / "wide.parquet").stat().st_size
    fetched, fetch = [], S3File._fetch_range

    def counted(file, start, end):
        fetched.append(end - start)
        return fetch(file, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", counted)
    part = read_rows(UPath("s3://apps/wide/wide.parquet"), 20_000, 20_000, ["c3"])
    assert part["c3"].equals(wide["c3"][20_000:40_000])
    footer = 65_536  # bytes that pyarrow reads from the end
    assert sum(fetched) < footer + size * 2 / 80 * 1.1
