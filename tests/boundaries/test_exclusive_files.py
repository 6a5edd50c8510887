"""Two jobs on one folder: the second is refused by name; locks of dead jobs are taken over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ranks import run_ranks

from msrec.data.histories.build import build_histories
from msrec.data.io import exclusive_files
from msrec.data.io.exclusive_files import exclusive, lock_file
from msrec.data.io.outputs import new_folder
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.launch.distributed import exclusive_job

HOLD = """
import sys, time
from pathlib import Path
from msrec.data.io.exclusive_files import exclusive
with exclusive(Path(sys.argv[1]), "a must be trained"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_lock(path, **changes):
    """The lock of a process of another machine."""
    values = {"host": "far", "machine": "other", "pid": 7, "job": "", "since": "x", "seen": 0.0}
    path.write_text(json.dumps(values | changes).ljust(512))


def test_a_second_job_is_refused_with_host_process_and_time(tmp_path, holder):
    expected = rf"^a must be trained by one job at a time; process {holder.pid} on \S+, since 20"
    began = time.monotonic()
    with (
        pytest.raises(ValueError, match=expected),
        exclusive(tmp_path / "a", "a must be trained"),
    ):
        raise AssertionError
    assert time.monotonic() - began < 1
    assert (tmp_path / ".a.lock").is_file()


def test_a_killed_job_leaves_no_lock_that_holds(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with exclusive(tmp_path / "a", "a must be trained"):
        assert json.loads((tmp_path / ".a.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".a.lock").exists()


def test_a_failed_job_leaves_no_lock_and_no_new_folder(tmp_path):
    with (
        pytest.raises(RuntimeError, match="fault"),
        exclusive(tmp_path / "runs" / "x" / "a", "a must be trained"),
    ):
        raise RuntimeError("fault")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(exclusive_files, "REFRESH_S", 0.05)
    monkeypatch.setattr(exclusive_files, "STALE_S", 0.5)


def test_a_holder_on_another_machine_that_writes_is_alive(tmp_path, quick):
    path, ended = tmp_path / ".a.lock", threading.Event()

    def refresh():
        while not ended.wait(0.05):
            write_lock(path, seen=time.time())

    write_lock(path)
    thread = threading.Thread(target=refresh)
    thread.start()
    try:
        with (
            pytest.raises(ValueError, match="one job at a time; process 7 on far, since x does"),
            exclusive(tmp_path / "a", "a must be trained"),
        ):
            raise AssertionError
    finally:
        ended.set()
        thread.join()


def test_a_silent_holder_on_another_machine_is_waited_for_and_replaced(tmp_path, quick):
    write_lock(tmp_path / ".a.lock", seen=time.time() + 1e6)  # its clock does not matter
    began = time.monotonic()
    with exclusive(tmp_path / "a", "a must be trained"):
        assert 0.5 <= time.monotonic() - began < 5
        assert json.loads((tmp_path / ".a.lock").read_text())["host"] != "far"


def test_a_restart_of_the_same_job_on_another_machine_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "train-1")
    write_lock(tmp_path / ".a.lock", job="train-1")
    began = time.monotonic()
    with exclusive(tmp_path / "a", "a must be trained"):
        assert time.monotonic() - began < 1


def test_the_lock_is_written_again_while_it_is_held(tmp_path, quick):
    with exclusive(tmp_path / "a", "a must be trained"):
        first = json.loads((tmp_path / ".a.lock").read_text())
        time.sleep(0.3)
        second = json.loads((tmp_path / ".a.lock").read_text())
    assert second["seen"] > first["seen"]
    assert {**second, "seen": 0} == {**first, "seen": 0}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 512])
def test_a_damaged_lock_of_a_dead_job_is_replaced(tmp_path, content):
    (tmp_path / ".a.lock").write_text(content)
    with exclusive(tmp_path / "a", "a must be trained"):
        assert json.loads((tmp_path / ".a.lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("writer", [lambda out: exclusive(out, "a must be trained"), new_folder])
def test_an_output_in_a_folder_that_cannot_be_written_is_named(writer):
    sentence = r"^the folder of /proc/runs/a must be writable; .* \(at /proc/runs\)\. Choose"
    with pytest.raises(OSError, match=sentence), writer(Path("/proc/runs/a")):
        raise AssertionError


def test_two_jobs_write_no_histories_of_one_dataset(tmp_path):
    synthesize(tmp_path / "data", rows=2_000, users=20, items=40)
    work = f"^the histories of {tmp_path}/data must be written by one job at a time; process"
    with new_folder(tmp_path / "data", overwrite=True) as folder:
        shutil.copytree(tmp_path / "data", folder, dirs_exist_ok=True)
        with pytest.raises(ValueError, match=work):
            build_histories(tmp_path / "data")
    assert build_histories(tmp_path / "data").histories.keys() == {"stream", "frozen"}


def test_a_link_to_a_folder_has_the_lock_of_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert lock_file(tmp_path / "b") == lock_file(tmp_path / "a") == tmp_path / ".a.lock"


def attempt(rank, world_size, folder):
    try:
        with exclusive_job(folder, "trained"):
            return "held"
    except ValueError as error:
        return str(error)


def test_every_rank_gets_the_refusal_and_only_rank_0_holds(tmp_path, holder):
    first, second = run_ranks(attempt, 2, tmp_path / "a")
    assert first == second
    assert f"{tmp_path / 'a'} must be trained by one job at a time" in first
    holder.kill()
    holder.wait()
    assert run_ranks(attempt, 2, tmp_path / "a") == ["held", "held"]
    assert list(tmp_path.iterdir()) == []
