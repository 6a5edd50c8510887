"""Copies of remote folders: whole, shared, made once, and changed files go back."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ConnectionClosedError
from fsspec.implementations.memory import MemoryFileSystem
from object_store import store
from upath import UPath

from msrec.data.io import local_copies
from msrec.data.io.local_copies import changed_copy, local_copy, require_one_host
from msrec.data.io.remote_folders import replace_remote_folder

FILES = {"done.json": b"{}", "rows/a.bin": b"a" * 1000, "rows/b.bin": b"b" * 10}


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))
    folder = UPath("memory://apps/thing")
    for name, data in FILES.items():
        write(folder, name, data)
    yield folder
    folder.fs.rm(folder.path, recursive=True)
    release()


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that were read from the store."""
    names, get = [], MemoryFileSystem.get_file

    def counted(self, rpath, lpath, **options):
        names.append(rpath.rpartition("/")[2])
        return get(self, rpath, lpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counted)
    return names


def write(folder, name, data):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def remote_contents(folder):
    names = folder.fs.find(folder.path)
    return {name.removeprefix(f"{folder.path}/"): folder.fs.cat_file(name) for name in names}


def release():
    """Ends the use of all copies, as the end of the process does."""
    while local_copies._in_use:
        os.close(local_copies._in_use.pop())


def test_a_local_folder_is_itself(tmp_path):
    assert local_copy(tmp_path, "done.json") == tmp_path
    with changed_copy(tmp_path, "done.json") as folder:
        assert folder == tmp_path


def test_a_copy_has_the_name_and_the_files_and_is_made_once(remote, fetched):
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: local_copy(remote, "done.json"), range(4)))
    (copy,) = copies
    assert copy.name == "thing"
    assert contents(copy) == FILES
    assert sorted(fetched) == ["a.bin", "b.bin", "done.json"]


def test_a_changed_folder_is_another_copy_that_reads_only_what_changed(remote, fetched):
    before = local_copy(remote, "done.json")
    write(remote, "rows/b.bin", b"c" * 10)
    fetched.clear()
    after = local_copy(remote, "done.json")
    assert fetched == ["b.bin"]
    assert contents(after) == FILES | {"rows/b.bin": b"c" * 10}
    assert contents(before) == FILES  # it is in use
    assert (before / "rows/a.bin").samefile(after / "rows/a.bin")
    release()
    write(remote, "rows/b.bin", b"d" * 10)
    local_copy(remote, "done.json")
    assert not before.exists()
    assert not after.exists()


def test_copies_of_other_parts_share_what_both_have(remote, fetched):
    small = local_copy(remote, "done.json", lambda names: ["done.json", "rows/b.bin"], "small")
    whole = local_copy(remote, "done.json")
    assert sorted(fetched) == ["a.bin", "b.bin", "done.json"]
    assert (small / "rows/b.bin").samefile(whole / "rows/b.bin")
    release()
    local_copy(remote, "done.json", lambda names: ["done.json"], "small")  # deletes its own only
    assert contents(whole) == FILES


def test_the_locks_of_writers_are_not_copied(remote, fetched):
    write(remote, ".done.json.partial", b"a holder")
    copy = local_copy(remote, "done.json")
    write(remote, ".done.json.partial", b"a holder that is alive")
    assert local_copy(remote, "done.json") == copy
    assert contents(copy) == FILES


def test_a_copy_that_was_not_completed_is_never_used(remote, monkeypatch, tmp_path):
    get = MemoryFileSystem.get_file

    def fail(self, rpath, lpath, **options):
        get(self, rpath, lpath, **options)
        if rpath.endswith("b.bin"):
            raise ConnectionResetError("reset")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", fail)
        message = "memory://apps/thing/rows/b.bin must be readable; ConnectionResetError: reset"
        with pytest.raises(ConnectionError, match=message):
            local_copy(remote, "done.json")
    assert not list((tmp_path / "cache").rglob("listing.json"))
    assert contents(local_copy(remote, "done.json")) == FILES


def test_a_folder_without_its_marker_is_refused(remote):
    (remote / "done.json").unlink()
    message = "memory://apps/thing/done.json must exist, since it is written last; it does not"
    with pytest.raises(FileNotFoundError, match=message):
        local_copy(remote, "done.json")


def test_a_folder_that_changes_meanwhile_is_refused(remote, monkeypatch):
    get = MemoryFileSystem.get_file

    def change(self, rpath, lpath, **options):
        get(self, rpath, lpath, **options)
        write(remote, "rows/new.bin", b"new")

    monkeypatch.setattr(MemoryFileSystem, "get_file", change)
    with pytest.raises(OSError, match="must not change while it is copied; it did"):
        local_copy(remote, "done.json")


def test_a_disk_without_room_is_one_sentence(remote, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"must have 0.0 MiB for the copy of .* Set MSREC_CACHE"):
        local_copy(remote, "done.json")


def test_what_changes_in_a_working_copy_is_sent_with_the_marks_last(remote, monkeypatch):
    sent, put = [], MemoryFileSystem.put_file

    def counted(self, lpath, rpath, **options):
        sent.append(rpath.rpartition("/")[2])
        return put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", counted)
    with changed_copy(remote, "done.json", marks=["done.json", "END"]) as folder:
        (folder / "rows/a.bin").unlink()
        (folder / "END").write_bytes(b"")
        (folder / "rows/c.bin").write_bytes(b"c")
        (folder / "rows/.lock").touch()
    assert sent == ["c.bin", "END"]
    expected = {name: data for name, data in FILES.items() if name != "rows/a.bin"}
    assert remote_contents(remote) == expected | {"rows/c.bin": b"c", "END": b""}
    assert contents(local_copy(remote, "done.json")) == remote_contents(remote)


def test_a_working_copy_that_fails_changes_nothing(remote):
    def fail():
        with changed_copy(remote, "done.json") as folder:
            (folder / "rows/a.bin").unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert remote_contents(remote) == FILES
    copy = local_copy(remote, "done.json")
    assert contents(copy) == FILES
    assert sorted(p.name for p in copy.parent.parent.iterdir()) == [".lock", copy.parent.name]


def test_ranks_of_several_hosts_do_not_share_a_remote_folder(remote, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "4")
    require_one_host(remote)
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="of 4 ranks 2 are on one host"):
        require_one_host(remote)


@pytest.mark.slow
def test_connections_that_are_lost_are_retried_by_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))
    send, requests, lost = AIOHTTPSession.send, [], []

    async def lose_some(session, request):
        requests.append(request.method)
        if len(requests) % 5 == 0:
            lost.append(request.method)
            raise ConnectionClosedError(endpoint_url=request.url)
        return await send(session, request)

    source = tmp_path / "source"
    for name, data in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    with store():
        monkeypatch.setattr(AIOHTTPSession, "send", lose_some)
        for _ in range(3):
            replace_remote_folder(source, UPath("s3://apps/thing"), "done.json")
            assert contents(local_copy(UPath("s3://apps/thing"), "done.json")) == FILES
    assert {"PUT", "GET"} <= set(lost)
    release()
