"""Damaged Parquet and JSON files are refused with a sentence that names the file."""

import errno
import json
import os
from pathlib import Path

import polars as pl
import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_rows import raw_tables
from tiny import tiny_schema

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.vocabulary import load_vocabularies
from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.json_files import read_json_object
from msrec.data.io.parquet_files import parquet_names, read_parquet
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.text.templates import load_template
from msrec.launch.checkpointing.commit import committed, read_commit
from msrec.launch.evaluation.drift import measure_drift
from msrec.launch.serving.score_file import _read_json
from msrec.tools.convert import summary_table

MANY = settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.parquet"
    pl.DataFrame({"value": range(50), "word": ["a"] * 50}).write_parquet(path)
    return path


@MANY
@given(st.data())
def test_a_damaged_parquet_file_is_read_or_refused_by_name(good, tmp_path, data):
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    for read in (
        parquet_names,
        lambda p: read_parquet(p, ["value"]),
        lambda p: measure_drift(p, good),
    ):
        try:
            read(path)
        except (ValueError, OSError) as error:
            text = str(error)
        else:
            continue
        assert str(path) in text
        assert "\n" not in text


@MANY
@given(st.binary(max_size=40) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_a_json_file_holds_an_object_or_is_refused_by_name(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{path} must (be JSON|hold a JSON object)"):
        read_json_object(path)


def test_drift_refuses_broken_empty_and_mixed_files_by_name(good, tmp_path):
    (tmp_path / "empty.parquet").touch()
    with pytest.raises(ValueError, match=r"empty.parquet must be a whole Parquet file"):
        measure_drift(good, tmp_path / "empty.parquet")
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, values in (("a", [1]), ("b", ["x"])):
        pl.DataFrame({"value": values}).write_parquet(folder / f"{name}.parquet")
    with pytest.raises(
        ValueError, match=r"b.parquet must have the columns .*a.parquet; .* in value"
    ):
        measure_drift(folder, good)


def test_a_truncated_vocabulary_is_named(good, tmp_path):
    dataset = tmp_path / "data"
    write_dataset(raw_tables(rows=300), dataset, SplitChoice("time", fractions=(0.7, 0.1, 0.2)))
    path = dataset / "vocabularies" / "age.parquet"
    path.write_bytes(good.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"age.parquet must be a whole Parquet file"):
        load_vocabularies(dataset)
    pl.DataFrame({"other": [1]}).write_parquet(path)
    with pytest.raises(ValueError, match=r"age.parquet must have the column 'value'; found other"):
        load_vocabularies(dataset)


@pytest.mark.parametrize("manifest", ["[]", '"a"', "7", "null", "{", "", "[" * 100_000])
def test_a_manifest_that_is_no_object_is_named(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"manifest.json must .* Encode again"):
        KnowledgeStore.open(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b"{}", b"\xff", b'{"state": [], "crc32": {}}']
)
def test_a_commit_that_no_save_wrote_is_named(tmp_path, content):
    (tmp_path / "COMMIT").write_bytes(content)
    with pytest.raises(ValueError, match=r"COMMIT must (be|hold) .* Delete the folder"):
        read_commit(tmp_path)


def test_a_commit_of_another_step_is_refused(tmp_path):
    folder = tmp_path / "step-00000032"
    folder.mkdir()
    for step in (32, 999):
        (folder / "COMMIT").write_text(json.dumps({"state": {"step": step}, "crc32": {}}))
        if step == 32:
            assert read_commit(folder).state["step"] == 32
    with pytest.raises(ValueError, match="must have the step of its folder; it has step 999"):
        read_commit(folder)


@pytest.mark.parametrize(
    "line", [b'{"a":' * 100_000, b'{"a": "\xff"}', b'{"a": ' + b"1" * 5000 + b"}", b"[1]", b"{"]
)
def test_a_bad_line_to_score_is_named_by_its_row(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n")

    class Encoder:
        def table(self, rows, where, first_row):
            return rows

    with pytest.raises(ValueError, match=f"{path}: row 1 must be"):
        list(_read_json(path, Encoder()))


def test_a_full_disk_is_named_by_the_file_that_was_written(tmp_path):
    path = tmp_path / "scores.parquet"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        with atomic_path(path), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_must_not_be_read_are_not_taken_as_none(tmp_path, monkeypatch):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "COMMIT").touch()
    assert [path.name for path in committed(tmp_path)] == ["step-00000001"]
    assert committed(tmp_path / "none") == []

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refused)
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
        committed(tmp_path)


@pytest.mark.parametrize("counts", [{"rows": 3}, {"rows": []}, {"rows": {"train": {}}}])
def test_counts_that_do_not_know_a_scenario_are_refused(counts):
    with pytest.raises(ValueError, match="counts.rows must have a number for each scenario"):
        summary_table(tiny_schema(counts=counts))


def test_a_negative_seed_and_an_unknown_template_are_sentences():
    with pytest.raises(ValueError, match="split seed must be at least 0; got -1"):
        SplitChoice("random", -1)
    with pytest.raises(ValueError, match="must hold template 'nope'; it holds default"):
        load_template("nope")
