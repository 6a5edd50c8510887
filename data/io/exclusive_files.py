"""Locks of folders against a second job: they name host, process and time, and outlive no job."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from msrec.data.io.atomic_files import writable

REFRESH_S = 5.0
"""Seconds between two writes of a lock by its holder."""
STALE_S = 30.0
"""Seconds without such a write after which the holder, on another machine, counts as dead."""
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


def _is_alive(path: Path, holder: Holder) -> bool:
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
    content = json.dumps(asdict(holder) | {"seen": time.time()}).encode()
    os.ftruncate(file.fileno(), _BYTES)
    os.pwrite(file.fileno(), content.ljust(_BYTES), 0)


def _read(path: Path) -> Holder | None:
    """Reads who holds a lock; None if the file is gone, empty, or not what a holder writes."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _name(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.pid} on {holder.host}, since {holder.since}"


def _refusal(work: str, holder: Holder | None) -> str:
    stop = "it" if holder is None else f"process {holder.pid}"
    return f"{work} by one job at a time; {_name(holder)} does. Wait for its end, or stop {stop}."
