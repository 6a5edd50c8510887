"""One job writes a remote folder at a time; a dead one never blocks."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from threading import Barrier

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_store import store
from upath import UPath

from msrec.data.io import exclusive_files
from msrec.data.io.exclusive_files import exclusive_remote
from msrec.data.io.outputs import DATASET, new_folder

MARK = ".dataset.yaml.partial"
WORK = "s3://apps/{} must be written"


@pytest.fixture(scope="module")
def bucket():
    with store() as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """A cache of this test's, and seconds of waiting in place of half a minute."""
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exclusive_files, "STALE_S", 2.0)
    monkeypatch.setattr(exclusive_files, "REMOTE_REFRESH_S", 0.3)


def hold(name, marker="dataset.yaml"):
    return exclusive_remote(UPath(f"s3://apps/{name}"), marker, WORK.format(name))


def other(**changes):
    """Content of the lock of a process on another machine."""
    holder = replace(exclusive_files._own(), host="node7", machine="other", pid=41, **changes)
    return json.dumps(asdict(holder)).encode()


def test_a_second_writer_on_this_machine_is_refused_and_told_who_writes(bucket):
    with hold("one"):
        message = rf"s3://apps/one must be written by one job at a time; process {os.getpid()} on"
        with pytest.raises(ValueError, match=message), hold("one"):
            raise AssertionError
        with hold("two"):
            assert MARK in bucket.names("two")
    assert bucket.names("one") == bucket.names("two") == []


def test_a_writer_on_another_machine_that_lives_is_refused(bucket, monkeypatch, tmp_path):
    with hold("far"):
        monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "elsewhere"))  # no file lock in common
        message = rf"process {os.getpid()} on .* does. Wait for its end, or stop process"
        with pytest.raises(ValueError, match=message), hold("far"):
            raise AssertionError
    assert bucket.names("far") == []


def test_a_lock_that_nobody_writes_is_taken_over_after_a_wait(bucket, caplog):
    bucket.write(f"dead/{MARK}", other())
    start = time.monotonic()
    with caplog.at_level("INFO"), hold("dead"):
        assert time.monotonic() - start >= 2
    assert "took over the lock of process 41 on node7" in caplog.text
    assert bucket.names("dead") == []


def test_a_restart_of_the_same_job_takes_over_at_once(bucket, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    monkeypatch.setattr(exclusive_files, "STALE_S", 3600.0)
    bucket.write(f"again/{MARK}", other())
    with hold("again"):
        pass


def test_of_many_writers_in_the_same_moment_one_writes(bucket, monkeypatch):
    """Each has a cache of its own, as processes on different machines have."""
    begin, done = Barrier(6), Barrier(6)

    def write(number):
        own = replace(exclusive_files._own(), machine=str(number), pid=number)
        begin.wait()
        mark = UPath(f"s3://apps/race/{MARK}")
        try:
            exclusive_files._acquire_remote(mark, WORK, own)
        except ValueError:
            return None
        finally:
            done.wait()
        return number

    for content in (None, b"", other()):  # no lock, one of a failed job, one of a dead job
        bucket.delete(f"race/{MARK}")
        if content is not None:
            bucket.write(f"race/{MARK}", content)
        monkeypatch.setattr(exclusive_files, "STALE_S", 1.0)
        monkeypatch.setattr(exclusive_files, "_is_alive", lambda _, holder: holder.pid != 41)
        with ThreadPoolExecutor(6) as pool:
            writers = [number for number in pool.map(write, range(6)) if number is not None]
        assert len(writers) == 1
        assert exclusive_files._read(UPath(f"s3://apps/race/{MARK}")).pid == writers[0]


def test_who_lost_the_lock_replaces_nothing(bucket):
    bucket.write("lost/dataset.yaml", b"theirs")

    def write():
        with new_folder("s3://apps/lost", DATASET, overwrite=True) as new:
            (new / "dataset.yaml").write_text("ours")
            bucket.write(f"lost/{MARK}", other())
            time.sleep(0.7)  # a refresh must not take it back

    with pytest.raises(ValueError, match="s3://apps/lost must be written by one .* 41 on node7"):
        write()
    assert bucket.names("lost") == [MARK, "dataset.yaml"]
    assert UPath("s3://apps/lost/dataset.yaml").read_bytes() == b"theirs"


def test_the_lock_of_a_job_that_failed_stays_empty_over_half_a_folder(bucket):
    bucket.write("half/train/part-00000.parquet", b"")
    with pytest.raises(RuntimeError), hold("half"):
        raise RuntimeError
    assert UPath(f"s3://apps/half/{MARK}").read_bytes() == b""
    with new_folder("s3://apps/half", DATASET) as new:
        (new / "dataset.yaml").write_text("ours")
    assert bucket.names("half") == ["dataset.yaml"]


KILLED = """
import os, sys
from msrec.data.io.exclusive_files import exclusive_remote
from upath import UPath
with exclusive_remote(UPath(sys.argv[1]), "dataset.yaml", "x"):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_killed_process_of_this_machine_does_not_make_the_next_one_wait(bucket, monkeypatch):
    monkeypatch.setattr(exclusive_files, "STALE_S", 3600.0)
    code = subprocess.run([sys.executable, "-c", KILLED, "s3://apps/killed"]).returncode
    assert (code, bucket.names("killed")) == (-9, [MARK])
    with hold("killed"):
        pass
    assert bucket.names("killed") == []


def test_a_store_that_replaces_what_exists_is_named_and_refuses_a_known_writer(
    monkeypatch, caplog, tmp_path
):
    put = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda self, path, data, mode=None: put(self, path, data)
    )
    folder = UPath("memory://apps/plain")
    with exclusive_remote(folder, "dataset.yaml", "plain must be written"):
        assert "the file system replaces files that exist" in caplog.text
        monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "elsewhere"))
        with pytest.raises(ValueError, match="plain must be written by one job at a time"):
            with exclusive_remote(folder, "dataset.yaml", "plain must be written"):
                raise AssertionError
    assert not folder.fs.find(folder.path)


def test_a_store_with_an_error_of_its_own_for_what_exists_keeps_writers_apart(
    monkeypatch, tmp_path
):
    """SeaweedFS's, by s3fs."""
    put = MemoryFileSystem.pipe_file

    def refuse(self, path, data, mode=None):
        if mode == "create" and self.exists(path):
            raise OSError(22, "At least one of the pre-conditions you specified did not hold")
        put(self, path, data)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    folder = UPath("memory://apps/other")
    with exclusive_remote(folder, "dataset.yaml", "other must be written"):
        monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "elsewhere"))
        with pytest.raises(ValueError, match="other must be written by one job at a time"):
            with exclusive_remote(folder, "dataset.yaml", "other must be written"):
                raise AssertionError
    assert not folder.fs.find(folder.path)
