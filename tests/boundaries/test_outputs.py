"""No command replaces or deletes what msrec did not make, however a path is written."""

import os
from pathlib import Path

import polars as pl
import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msrec.data.io.outputs import (
    DATASET,
    PAGE,
    SCRATCH_MARK,
    FolderKind,
    check_output,
    emptied_folder,
    has_columns,
    new_folder,
)
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.launch.config.run_config import check_run_folder, load_config
from msrec.launch.reporting.page import render_page
from msrec.launch.serving.score_file import SCORES
from msrec.tools.fault_injection.torture import TORTURE, torture
from msrec.tools.zoo import write_page

NAMES = st.sampled_from(
    ["a.txt", "dataset.yaml", "train", "part-00000.parquet", ".git", "x y", "ü", "test", "1.npy"]
)
OWN = {"dataset.yaml", "train/part-00000.parquet", "test/part-00000.parquet"}
FILES = st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=4)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "app"
    synthesize(folder, rows=1000, users=20, items=20)
    return folder


def contents(folder):
    """Returns every file below a folder with its bytes, and every link with its target."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            files[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


@given(FILES)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_files_of_others_survive_every_kind_of_output(tmp_path, names):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    for name in sorted(names):
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        except OSError:
            pass  # a name is a file and a folder
    before = contents(folder)
    for kind in (DATASET, TORTURE, FolderKind("a cell", "output.txt", ("**",))):
        is_dataset = "dataset.yaml" in before and set(before) <= OWN
        if before and not (kind is DATASET and is_dataset):
            with pytest.raises(ValueError, match="must"):
                emptied_folder(folder, kind)
            with pytest.raises(ValueError, match="must"), new_folder(folder, kind, overwrite=True):
                pass
            assert contents(folder) == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "train/mine.parquet", "train/.hidden", "data/x", "histories/a/b/c.npy"]
)
def test_a_foreign_file_in_a_dataset_keeps_it_from_being_overwritten(tmp_path, app, name):
    out = tmp_path / "app"
    synthesize(out, rows=1000, users=20, items=20)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    before = contents(out)
    with pytest.raises(ValueError, match=f"{Path(name).name}, which would be lost"):
        synthesize(out, rows=1000, users=20, items=20, overwrite=True)
    assert contents(out) == before
    (out / name).unlink()
    synthesize(out, rows=2000, users=20, items=20, overwrite=True)
    assert pl.read_parquet(out / "train").height == 1600


def test_a_link_to_a_folder_of_others_is_never_followed(tmp_path, app):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-00000.parquet").write_text("mine")
    synthesize(tmp_path / "app", rows=1000, users=20, items=20)
    (tmp_path / "app" / "extra").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="extra, which would be lost"):
        synthesize(tmp_path / "app", rows=1000, users=20, items=20, overwrite=True)
    assert (tmp_path / "mine" / "part-00000.parquet").read_text() == "mine"


def test_an_output_is_apart_from_the_inputs_however_it_is_written(tmp_path, monkeypatch):
    rows, folder = tmp_path / "rows.jsonl", tmp_path / "raw"
    folder.mkdir()
    rows.write_text("{}")
    (tmp_path / "hard.jsonl").hardlink_to(rows)
    (tmp_path / "soft.jsonl").symlink_to(rows)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for out in (rows, "../rows.jsonl", tmp_path / "hard.jsonl", tmp_path / "soft.jsonl"):
        with pytest.raises(ValueError, match="overlaps"):
            check_output(Path(out), SCORES[".jsonl"], [rows])
    for out in (".", "x/..", "new", "../link/new", "..", "../raw"):
        with pytest.raises(ValueError, match="overlaps"):
            check_output(Path(out), DATASET, [folder])
    check_output(tmp_path / "raw2", DATASET, [folder])
    assert rows.read_text() == "{}"


def test_remote_outputs_are_compared_with_the_inputs():
    from msrec.data.io.paths import to_path

    for out in ("memory://b/app", "memory://b/app/x", "memory://b", "memory://b/x/../app"):
        with pytest.raises(ValueError, match="overlaps"):
            check_output(to_path(out), DATASET, [to_path("memory://b/app")])
    check_output(to_path("memory://b/app2"), DATASET, [to_path("memory://b/app")])
    (to_path("memory://outputs") / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must hold dataset\.yaml to be overwritten"):
        check_output(to_path("memory://outputs"), DATASET)


def test_torture_deletes_neither_its_data_set_nor_a_folder_of_others(tmp_path, app):
    before = contents(app)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for out in (app, app.parent, app / "train", app / "new", mine):
        with pytest.raises(ValueError, match="must"):
            torture(app, out, kills=1, ranks=[1], seed=0)
    assert contents(app) == before
    assert (mine / "notes.txt").read_text() == "mine"


def test_only_a_page_of_msrec_is_replaced_by_one(tmp_path):
    page = tmp_path / "page.html"
    for text in ("<title>my thesis</title>", "x", "{}"):
        page.write_text(text)
        with pytest.raises(ValueError, match="must be a page of msrec"):
            check_output(page, PAGE)
        with pytest.raises(ValueError, match="must be the page of msrec zoo"):
            write_page(page)
        assert page.read_text() == text
    page.write_text("")
    check_output(page, PAGE)
    page.write_text(render_page("msrec report: a", "a", []))
    check_output(page, PAGE)
    for other in (Path("/dev/null"), tmp_path):
        with pytest.raises(ValueError, match="must be a page"):
            check_output(other, PAGE)


def test_only_scores_are_replaced_by_scores(tmp_path):
    scores = pl.DataFrame({"user_key": [1], "item_key": [2], "scenario": ["a"], "score": [0.5]})
    scores.write_parquet(tmp_path / "a.parquet")
    scores.write_ndjson(tmp_path / "a.jsonl")
    scores.drop("score").write_parquet(tmp_path / "b.parquet")
    scores.drop("score").write_ndjson(tmp_path / "b.jsonl")
    for suffix, kind in SCORES.items():
        check_output(tmp_path / f"a{suffix}", kind)
        with pytest.raises(ValueError, match="must be a file of scores"):
            check_output(tmp_path / f"b{suffix}", kind)
    (tmp_path / "c.parquet").write_text("no Parquet")
    assert not has_columns(["score"])(tmp_path / "c.parquet")


def test_training_overwrites_no_folder_of_others(tmp_path, app):
    def check(run_root, run_id):
        check_run_folder(
            load_config(None, [f"dataset={app}", f"run_root={run_root}", f"run_id={run_id}"])
        )

    for root, name in ((app.parent, "app"), (app, "new"), (app.parent.parent, app.parent.name)):
        with pytest.raises(ValueError, match="overlaps"):
            check(root, name)
    (tmp_path / "mine").mkdir()
    for file in ("config.yaml", "notes.txt"):
        (tmp_path / "mine" / file).write_text("theirs: 1")
        with pytest.raises(ValueError, match=rf"{file}.* (something else|would be lost)"):
            check(tmp_path, "mine")
        (tmp_path / "mine" / file).unlink()
    check(tmp_path, "mine")
    (tmp_path / "mine" / "config.yaml").write_text(f"dataset: {app}\nrun_id: mine\n")
    check(tmp_path, "mine")


def test_the_scratch_folder_of_others_is_kept_and_one_process_writes_at_a_time(tmp_path):
    mine = tmp_path / ".out.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"\.out\.partial must not exist"),
        new_folder(tmp_path / "out"),
    ):
        pass
    (mine / "notes.txt").unlink()
    with new_folder(tmp_path / "out") as first:
        (first / "dataset.yaml").write_text("first")
        with (
            pytest.raises(ValueError, match="one job at a time; process"),
            new_folder(tmp_path / "out"),
        ):
            pass
    assert (tmp_path / "out" / "dataset.yaml").read_text() == "first"


def test_a_data_set_that_was_moved_aside_when_a_process_was_killed_comes_back(tmp_path):
    old = tmp_path / ".out.partial" / "old"
    old.mkdir(parents=True)
    (old / "dataset.yaml").write_text("old")
    (tmp_path / ".out.partial" / SCRATCH_MARK).touch()
    with pytest.raises(ValueError, match="must not exist yet"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "dataset.yaml").read_text() == "old"
