"""Folders of a remote file system, which has no step that makes a folder appear as a whole.

Readers take a folder with its marker for a complete one, and the marker is written last. A second
file says that msrec was writing the folder, so that the next call may replace a part of one::

    .dataset.yaml.partial   written first, deleted last
    dataset.yaml            the marker: deleted before all other files, written after them
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msrec.data.io.atomic_files import write_bytes
from msrec.data.io.paths import AnyPath, is_file, reachable

WRITERS = 8
"""Files that a process sends or deletes at the same time."""
MUST_WRITE = "be writable, and what is written readable and deletable"
Send = Callable[[Sequence[tuple[Path, AnyPath]]], object]
"""Function that copies files to remote paths."""


def partial_mark(marker: str) -> str:
    """Returns the name of the file that a folder has while it is written."""
    return f".{marker}.partial"


def remote_files(folder: AnyPath) -> dict[str, int]:
    """Returns the path below a remote folder -> size in bytes of each file.

    Raises:
        OSError: the folder cannot be listed; also if there is no such bucket.
    """
    root = f"{folder.path.rstrip('/')}/"  # type: ignore[union-attr]
    with reachable(folder):
        folder.fs.invalidate_cache()  # type: ignore[union-attr]
        found = folder.fs.find(folder.path, detail=True)  # type: ignore[union-attr]
    files = {path: info["size"] for path, info in found.items() if info["type"] == "file"}
    return {path.removeprefix(root): size for path, size in files.items() if path != root}


def require_writable(folder: AnyPath, marker: str) -> None:
    """Writes and deletes a file of a remote folder.

    Raises:
        OSError: one of them failed.
    """
    mark = folder / partial_mark(marker)
    with reachable(mark, MUST_WRITE):
        if not is_file(mark):
            write_bytes(mark, b"")
            delete_files(folder, [mark.name])


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
        if is_file(target):  # a part that is done again: some file systems replace no file
            target.fs.rm_file(target.path)  # type: ignore[union-attr]
        target.fs.put_file(str(source), target.path)  # type: ignore[union-attr]


def send_files(files: Sequence[tuple[Path, AnyPath]]) -> None:
    """Copies files to remote paths, several at the same time."""
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(send_file, *zip(*files, strict=True)))


def replace_remote_folder(new: Path, folder: AnyPath, marker: str, send: Send = send_files) -> None:
    """Makes a remote folder hold the files of a local one and no others.

    Args:
        new: the local folder, which has the marker.
        folder: the remote folder.
        marker: name of the file that each complete folder has.
        send: copies the files.

    Raises:
        OSError: the folder cannot be written, or has not all files afterwards.
    """
    mark = folder / partial_mark(marker)
    files = {str(path.relative_to(new)): path for path in new.rglob("*") if path.is_file()}
    with reachable(mark, MUST_WRITE):
        write_bytes(mark, b"")
        delete_files(folder, [marker] if is_file(folder / marker) else [])
        delete_files(folder, remote_files(folder).keys() - {mark.name})
    send([(path, folder / name) for name, path in sorted(files.items()) if name != marker])
    sizes = {name: path.stat().st_size for name, path in files.items()}
    found = {**remote_files(folder), marker: sizes[marker]}
    if wrong := next((name for name in sorted(files) if found.get(name) != sizes[name]), None):
        raise OSError(
            f"{folder / wrong} must have {sizes[wrong]} bytes after it was written; found "
            f"{found.get(wrong, 'no file')}. Give workers the same store and the same rights."
        )
    send_file(files[marker], folder / marker)
    with reachable(mark, MUST_WRITE):
        delete_files(folder, [mark.name])
