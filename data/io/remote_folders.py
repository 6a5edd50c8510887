"""Folders of a remote file system, which has no step that makes a folder appear as a whole.

Readers take a folder with its marker for a complete one, and the marker is written last. A second
file says that msrec was writing the folder, so that the next call may replace a part of one. It is
the lock of the process that writes, see `exclusive_remote`::

    .dataset.yaml.partial   written first, deleted last
    dataset.yaml            the marker: deleted before all other files, written after them
"""

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from msrec.data.io.atomic_files import write_bytes
from msrec.data.io.paths import AnyPath, is_file, reachable

WRITERS = 8
"""Files that a process sends or deletes at the same time."""
MUST_WRITE = "be writable, and what is written readable and deletable"
Send = Callable[[Sequence[tuple[Path, AnyPath]]], object]
"""Function that copies files to remote paths."""
log = logging.getLogger(__name__)


def partial_mark(marker: str) -> str:
    """Returns the name of the file that a folder has while it is written."""
    return f".{marker}.partial"


def remote_files(folder: AnyPath) -> dict[str, int]:
    """Returns the path below a remote folder -> size in bytes of each file.

    Raises:
        OSError: the folder cannot be listed; also if there is no such bucket.
    """
    return {name: info["size"] for name, info in remote_entries(folder).items()}


def remote_entries(folder: AnyPath) -> dict[str, dict[str, Any]]:
    """Returns the path below a remote folder -> entry in the listing of each file.

    An entry has the size, and what the file system knows of the content: a checksum or a time.

    Raises:
        OSError: the folder cannot be listed; also if there is no such bucket.
    """
    root = f"{folder.path.rstrip('/')}/"  # type: ignore[union-attr]
    with reachable(folder):
        folder.fs.invalidate_cache()  # type: ignore[union-attr]
        found = folder.fs.find(folder.path, detail=True)  # type: ignore[union-attr]
    files = {path: info for path, info in found.items() if info["type"] == "file"}
    return {path.removeprefix(root): info for path, info in files.items() if path != root}


def require_writable(folder: AnyPath, marker: str) -> None:
    """Writes and deletes a file of a remote folder.

    Raises:
        OSError: one of them failed.
    """
    trial = folder / f".{marker}.{uuid.uuid4().int}"
    with reachable(trial, MUST_WRITE):
        write_bytes(trial, b"")
        delete_files(folder, [trial.name])


def delete_files(folder: AnyPath, names: Iterable[str]) -> None:
    """Deletes files of a remote folder, several at the same time."""
    paths = [(folder / name).path for name in names]  # type: ignore[union-attr]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(folder.fs.rm_file, paths))  # type: ignore[union-attr]


def send_file(source: Path, target: AnyPath) -> None:
    """Copies a file to a remote path.

    Raises:
        OSError: it cannot be written.
    """
    with reachable(target, MUST_WRITE):
        try:
            target.fs.put_file(str(source), target.path)  # type: ignore[union-attr]
        except FileExistsError:  # sent again, to a file system that replaces no file
            target.fs.rm_file(target.path)  # type: ignore[union-attr]
            target.fs.put_file(str(source), target.path)  # type: ignore[union-attr]


def send_files(files: Sequence[tuple[Path, AnyPath]]) -> None:
    """Copies files to remote paths, several at the same time."""
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(send_file, *zip(*files, strict=True)))


def replace_remote_folder(new: Path, folder: AnyPath, marker: str, send: Send = send_files) -> None:
    """Makes a remote folder hold the files of a local one and no others, but for its lock.

    Args:
        new: the local folder, which has the marker.
        folder: the remote folder.
        marker: name of the file that each complete folder has.
        send: copies the files.

    Raises:
        OSError: the folder cannot be written, or has not all files afterwards.
    """
    mark = folder / partial_mark(marker)
    files = local_files(new)
    with reachable(mark, MUST_WRITE):
        delete_files(folder, [marker] if is_file(folder / marker) else [])
        delete_files(folder, remote_files(folder).keys() - {mark.name})
    send_checked({name: files[name] for name in files if name != marker}, folder, send)
    send_file(files[marker], folder / marker)


def change_remote_folder(
    old: Path, new: Path, folder: AnyPath, marks: Collection[str] = ()
) -> None:
    """Sends what differs in a local folder from a copy of a remote one, and deletes what it lacks.

    Args:
        old: the copy.
        new: the folder, whose unchanged files are links to those of the copy. Hidden files, such
            as locks, are left out.
        folder: the remote folder.
        marks: names of files that say that others are complete: deleted first, sent last.

    Raises:
        OSError: the remote folder cannot be written, or has not all files afterwards.
    """
    before, after = local_files(old), local_files(new)
    changed = {
        name for name, path in after.items() if not (name in before and path.samefile(before[name]))
    }
    replaced = (before.keys() - after.keys()) | (changed & before.keys())
    last = {name for name in changed | replaced if PurePosixPath(name).name in marks}
    with reachable(folder, MUST_WRITE):
        delete_files(folder, replaced & last)
        delete_files(folder, replaced - last - changed)
    send_checked({name: after[name] for name in changed - last}, folder)
    send_checked({name: after[name] for name in changed & last}, folder)
    log.info("sent %d changed files to %s", len(changed), folder)


def local_files(folder: Path) -> dict[str, Path]:
    """Returns the path below a local folder -> path of each file, without hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path for path in files}


def send_checked(files: Mapping[str, Path], folder: AnyPath, send: Send = send_files) -> None:
    """Sends files, and compares their sizes with those that the remote folder has then.

    Args:
        files: path below the folder -> local file.
        folder: the remote folder.
        send: copies the files.

    Raises:
        OSError: a file cannot be written, or is not whole.
    """
    if not files:
        return
    send([(files[name], folder / name) for name in sorted(files)])
    found = remote_files(folder)
    for name in sorted(files):
        size = files[name].stat().st_size
        if found.get(name) != size:
            raise OSError(
                f"{folder / name} must have {size} bytes after it was written; found "
                f"{found.get(name, 'no file')}. Give workers the same store and the same rights."
            )
