"""What a process leaves that was killed in the middle of a write; the next one goes on."""

import shutil
import threading

import numpy as np
import pytest
from llm_data import part_columns

from msrec.data.io.atomic_files import atomic_path, write_text
from msrec.data.io.outputs import FolderKind, check_output, emptied_folder, new_folder
from msrec.data.llm.store_writer import StoreWriter
from msrec.launch.evaluation.predict_files import PREDICTED

SETTINGS = {"storage": "float32", "level": "user"}
KIND = FolderKind("a folder of tests", "mark", ("mark", "a/*", "b/*"))


def test_the_next_writer_of_a_file_uses_up_what_a_killed_one_left(tmp_path):
    (tmp_path / ".x.json.partial").write_text("a long text, cut in the midd")
    write_text(tmp_path / "x.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "new"


def test_writers_of_one_file_take_turns(tmp_path):
    texts = [str(number) * 10_000 for number in range(8)]
    barrier = threading.Barrier(len(texts))

    def write(text):
        barrier.wait()
        for _ in range(5):
            with atomic_path(tmp_path / "x") as scratch, scratch.open("w") as file:
                for start in range(0, len(text), 1000):
                    file.write(text[start : start + 1000])
                    file.flush()

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_leaves_the_old_file_and_no_scratch_file(tmp_path):
    write_text(tmp_path / "x", "old")

    def failing(path):
        with atomic_path(path) as scratch:
            scratch.write_text("new")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        failing(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("name", ["._request.json.partial", "._request.json.4711"])
def test_a_job_that_was_killed_in_its_first_write_starts_again(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{")
    check_output(tmp_path / "out", PREDICTED)


@pytest.mark.parametrize("name", [".notes.partial", "notes.1", ".x.txt.17", "_request.json.1"])
def test_a_file_of_others_is_not_taken_for_a_killed_write(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="must hold"):
        check_output(tmp_path, PREDICTED)


def test_a_level_of_a_store_goes_on_from_every_killed_step(tmp_path):
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / ".settings.json.partial").write_text('{"stor')
    writer = StoreWriter(folder, SETTINGS)
    (folder / "parts/000000/.part-00000.parquet.partial").write_text("PAR1")
    writer.write(part_columns(range(2), ["a", "b"]), np.ones((2, 3), np.float32))
    parts = shutil.copytree(folder / "parts", tmp_path / "parts")
    writer.finish({"keys": 2, "no_history": 0, "left_out": 0})
    writer.merge()
    files = sorted(path.name for path in folder.iterdir())
    assert files == [".lock", "keys.parquet", "manifest.json", "settings.json", "vectors.npy"]
    shutil.copytree(parts, folder / "parts")  # killed after the manifest
    assert StoreWriter(folder, SETTINGS).is_complete
    assert sorted(path.name for path in folder.iterdir()) == files


def test_a_kill_while_a_folder_is_emptied_leaves_its_marker(tmp_path, monkeypatch):
    folder = emptied_folder(tmp_path / "out", KIND)
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "file").touch()

    def killed(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            emptied_folder(folder, KIND)
    assert (folder / "mark").is_file()
    emptied_folder(folder, KIND)
    assert [path.name for path in folder.iterdir()] == ["mark"]


def test_a_kill_while_the_scratch_folder_is_removed_leaves_its_mark(tmp_path, monkeypatch):
    removed = []

    def killed(path, **_):
        removed.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with new_folder(tmp_path / "out", KIND) as folder:
            (folder / "mark").touch()
    assert removed[-3:] == ["new", "old", ".out.partial"]
    with new_folder(tmp_path / "out", KIND, overwrite=True) as folder:
        (folder / "mark").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
