"""Files that exist whole or not at all, even if the process is killed; locks and checksums."""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from msrec.data.io.paths import AnyPath


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a scratch path that becomes `path` on success and is deleted on an error.

    The scratch path of a killed process is used by the next one that writes the same file, so that
    none is left. Processes that write the same file take turns.
    """
    scratch = path.with_name(f".{path.name}.partial")
    with _scratch_file(scratch) as lock:
        try:
            yield scratch
            scratch.replace(path)
        except BaseException as error:
            scratch.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno and error.filename is None:
                error.filename = str(path)  # a full disk: writes to an open file name none
            raise
        finally:  # the scratch path may be another process's from here on
            with suppress(OSError):  # a forked process may have the file open, too
                fcntl.flock(lock, fcntl.LOCK_UN)


def _scratch_file(scratch: Path) -> BinaryIO:
    """Opens a scratch file that no other process uses; waits for one that does."""
    while True:
        file = scratch.open("ab")
        with suppress(OSError):  # the file system has no such locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(scratch.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # the other process has completed its file


@contextmanager
def writable(output: Path) -> Iterator[None]:
    """Names the output whose folder cannot be written, in place of a file that nobody knows.

    Raises:
        OSError: the folder is read-only, full, or another user's.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the folder of {output} must be writable; {error.strerror or error} (at "
            f"{error.filename}). Choose another place, or allow writing there."
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock of a local file; it ends with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text in one step: a reader sees the old file or the whole new one."""
    write_bytes(path, text.encode())
    return path


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes a file in one step, here or on a remote file system, where writes are atomic."""
    if isinstance(path, Path):
        with atomic_path(path) as scratch:
            scratch.write_bytes(data)
    else:
        path.fs.pipe_file(path.path, data)


def write_json(path: AnyPath, value: object) -> AnyPath:
    """Writes JSON in one step, here or on a remote file system."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
    return path


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Returns path below `folder` -> CRC-32 of the file, 8 hexadecimal digits.

    A CRC finds damage (every single burst of up to 32 bits), not manipulation.
    """
    return {str(path.relative_to(folder)): _crc32(path) for path in paths}


def check_files(folder: Path, expected: dict[str, str], advice: str) -> None:
    """Compares files with their checksums.

    Raises:
        ValueError: a file is missing or has changed; names it.
    """
    for name, value in expected.items():
        path = folder / name
        actual = _crc32(path) if path.is_file() else "no file"
        if actual != value:
            raise ValueError(
                f"{path} must have the CRC-32 {value}, as when it was written; found {actual}. "
                f"{advice}"
            )


def _crc32(path: Path, block: int = 1 << 22) -> str:
    total = 0
    with path.open("rb") as file:
        while data := file.read(block):
            total = zlib.crc32(data, total)
    return f"{total:08x}"
