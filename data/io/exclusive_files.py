"""Locks of folders against a second job: they name host, process and time, and outlive no job."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from msrec.data.io.atomic_files import writable, write_bytes
from msrec.data.io.paths import AnyPath, cache_folder, is_file, reachable
from msrec.data.io.remote_folders import (
    MUST_WRITE,
    delete_files,
    partial_mark,
    remote_files,
    require_writable,
)

REFRESH_S = 5.0
"""Seconds between two writes of a lock by its holder."""
STALE_S = 30.0
"""Seconds without such a write after which the holder, on another machine, counts as dead."""
REMOTE_REFRESH_S = 10.0
"""Seconds between two writes of the lock of a remote folder."""
_BYTES = 512
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock.

    Attributes:
        machine: differs between machines, also of one name.
        job: torchrun's name of the job, the same for all its restarts; "" without torchrun.
        since: time of its start, UTC.
        seen: seconds since 1970 of its last write.
    """

    host: str
    machine: str
    pid: int
    job: str
    since: str
    seen: float


@contextmanager
def exclusive(output: Path, work: str) -> Iterator[None]:
    """Holds the lock of an output while its body runs, so that no second job does the same work.

    On one machine the kernel ends the lock with its process. A holder on another machine is alive
    as long as it writes the file; a lock that nobody writes is taken over after `STALE_S`, and one
    of an earlier start of the same job at once.

    Args:
        output: file or folder on a local or a shared file system; see `lock_file`.
        work: the work, for the error: "runs/a must be trained".

    Raises:
        ValueError: another process does the work; names its host, process and start.
        OSError: the lock cannot be written.
    """
    path = lock_file(output)
    missing = [folder for folder in path.parents if not folder.exists()]
    own = _own()
    with writable(output):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, work, own)
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(file, own, ended), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        ended.set()
        refresher.join()
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # a job that failed at once leaves no empty folder
            for folder in missing:
                folder.rmdir()


@contextmanager
def exclusive_remote(
    folder: AnyPath, marker: str, work: str, name: str = ""
) -> Iterator[Callable[[], None]]:
    """Holds the lock of a remote folder while its body runs; see `exclusive`.

    The lock is `.MARKER.partial` in the folder, created only if there is none. One of a killed
    process is taken over: at once on the same machine with the same cache, otherwise if nobody has
    written it for `STALE_S`. Afterwards it is deleted. An empty one stays if the folder has files
    and no marker, so that the next job may replace them.

    Args:
        folder: the folder.
        marker: file that each complete folder has.
        work: the work, for the error.
        name: name of the lock in place of the marker, for another kind of work in the folder.

    Yields:
        A function that raises a ValueError if another job has taken the lock, as it may after a
        long loss of the network. To be called before anything is replaced.

    Raises:
        ValueError: another job holds the lock; names its host, process and start.
        OSError: the folder cannot be read, written or changed.
    """
    require_writable(folder, marker)
    mark = folder / partial_mark(name or marker)
    locks = cache_folder() / "locks"
    # The kernel ends the lock of a file with its process, but only among those that see the file.
    with exclusive(locks / f"{folder.name}-{zlib.crc32(str(mark).encode()):08x}", work):
        stat = locks.stat()
        own = _own()
        own = replace(own, machine=f"{own.machine}:{stat.st_dev}:{stat.st_ino}")
        _acquire_remote(mark, work, own)
        ended = threading.Event()
        refresher = threading.Thread(target=_refresh_remote, args=(mark, own, ended), daemon=True)
        refresher.start()

        def check() -> None:
            if not _is_own(holder := _read(mark), own):
                raise ValueError(_refusal(work, holder))

        try:
            yield check
        finally:
            ended.set()
            refresher.join()
            try:
                _release(mark, folder / marker, own)
            except OSError as error:  # the next job takes it over
                log.warning("%s stays: %s", mark, error)


def _acquire_remote(mark: AnyPath, work: str, own: Holder) -> None:
    """Makes this process the holder of a lock, or refuses it."""
    while True:
        # Looking first keeps jobs apart even where a created file replaces another one.
        if not is_file(mark) and _create(mark, own):
            return
        holder = _read(mark)
        if not is_file(mark):
            continue  # its holder ended in this moment
        if holder is not None:
            is_earlier = holder.machine == own.machine or own.job == holder.job != ""
            if not is_earlier and _is_alive(mark, holder):
                raise ValueError(_refusal(work, holder))
            log.info("%s: took over the lock of %s, which is gone", mark, _name(holder))
        if _read(mark) == holder:
            with reachable(mark, MUST_WRITE), suppress(FileNotFoundError):
                delete_files(mark.parent, [mark.name])


def _create(mark: AnyPath, own: Holder) -> bool:
    """Creates a lock; returns False if there is one."""
    data = _content(own)
    with reachable(mark, MUST_WRITE):
        try:
            mark.fs.pipe_file(mark.path, data, mode="create")  # type: ignore[union-attr]
            mark.fs.pipe_file(mark.path, data, mode="create")  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - FileExistsError, or another one of the file system's
            if is_file(mark):
                return _is_own(_read(mark), own)
            write_bytes(mark, data)
    log.warning(
        "%s: the file system replaces files that exist. Two jobs that start in the same moment are "
        "not kept apart.",
        mark,
    )
    return True


def _refresh_remote(mark: AnyPath, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(REMOTE_REFRESH_S):
        try:
            if _is_own(_read(mark), own):
                write_bytes(mark, _content(own))
        except Exception as error:  # noqa: BLE001 - tried again
            log.warning("%s could not be refreshed: %s", mark, error)


def _release(mark: AnyPath, marker: AnyPath, own: Holder) -> None:
    if not _is_own(_read(mark), own):
        return
    with reachable(mark, MUST_WRITE):
        if is_file(marker) or remote_files(mark.parent).keys() <= {mark.name}:
            delete_files(mark.parent, [mark.name])
        else:
            write_bytes(mark, b"")


def _is_own(holder: Holder | None, own: Holder) -> bool:
    return holder is not None and replace(holder, seen=0.0) == own


def lock_file(output: Path) -> Path:
    """Returns the lock of an output: `.NAME.lock` beside it, the same for all links to it."""
    output = output.resolve()
    return output.with_name(f".{output.name}.lock")


def _acquire(path: Path, work: str, own: Holder) -> BinaryIO:
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        is_local = _flock(file)
        if is_local is None:
            holder = _read(path)
            file.close()
            if holder is None and not path.exists():
                continue  # it ended in this moment
            raise ValueError(_refusal(work, holder))
        if not _is_same(path, file):  # its holder deleted it before the kernel's lock was ours
            file.close()
            continue
        holder = _read(path)
        is_earlier = holder is not None and (
            (is_local and holder.machine == own.machine) or own.job == holder.job != ""
        )
        if holder is not None and not is_earlier and _is_alive(path, holder):
            file.close()
            raise ValueError(_refusal(work, holder))
        if holder is not None:
            log.info("%s: took over the lock of %s, which is gone", path, _name(holder))
        _write(file, own)
        return file


def _flock(file: BinaryIO) -> bool | None:
    """Returns whether the kernel's lock is ours; None if it is another's, False without one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # the file system has no such locks
        return False
    return True


def _is_same(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _is_alive(path: AnyPath, holder: Holder) -> bool:
    """Returns whether the holder, on another machine, writes its lock. No clocks are compared."""
    log.info("%s: waits for up to %.0f s for a sign of %s", path, STALE_S, _name(holder))
    before, deadline = _read(path), time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(min(REFRESH_S / 5, 1))
        if _read(path) != before:
            return True
    return False


def _refresh(file: BinaryIO, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_S):
        try:
            _write(file, own)
        except OSError as error:
            log.warning("the lock could not be refreshed: %s", error)


def _own() -> Holder:
    host = socket.gethostname()
    machine = _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else host
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    return Holder(host, machine, os.getpid(), "" if job == "none" else job, since, 0.0)


def _write(file: BinaryIO, holder: Holder) -> None:
    os.ftruncate(file.fileno(), _BYTES)
    os.pwrite(file.fileno(), _content(holder).ljust(_BYTES), 0)


def _content(holder: Holder) -> bytes:
    return json.dumps(asdict(holder) | {"seen": time.time()}).encode()


def _read(path: AnyPath) -> Holder | None:
    """Reads who holds a lock; None if the file is gone, empty, or not what a holder writes."""
    try:
        with reachable(path):
            # In one request: opened files of s3fs refuse one that is replaced meanwhile.
            data = path.read_bytes() if isinstance(path, Path) else path.fs.cat_file(path.path)
        return Holder(**json.loads(data))
    except FileNotFoundError:
        return None
    except OSError:
        if isinstance(path, Path):
            return None
        raise
    except (ValueError, TypeError):
        return None


def _name(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.pid} on {holder.host}, since {holder.since}"


def _refusal(work: str, holder: Holder | None) -> str:
    stop = "it" if holder is None else f"process {holder.pid}"
    return f"{work} by one job at a time; {_name(holder)} does. Wait for its end, or stop {stop}."
