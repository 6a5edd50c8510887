"""Rule for paths that commands write: files of others are never replaced or deleted.

A path may be written if nothing exists there, if it is empty, or if it holds what an earlier call
of the same kind wrote and nothing else. It must be apart from the inputs of the command.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from msrec.data.io.exclusive_files import exclusive, exclusive_remote
from msrec.data.io.parquet_files import parquet_names
from msrec.data.io.paths import AnyPath, is_remote, to_path
from msrec.data.io.remote_folders import (
    Send,
    partial_mark,
    remote_files,
    replace_remote_folder,
    send_files,
)

SCRATCH_MARK = ".msrec-partial"
"""File of a folder in which `new_folder` prepares another one."""
SEARCHED_BYTES = 1 << 16
_KILLED_WRITE = re.compile(r"^\.(.+)\.(?:partial|\d+)$")
"""Name of a file that a killed process had not completed, see `atomic_path`."""


@dataclass(frozen=True)
class FolderKind:
    """Folders that a command writes.

    Attributes:
        what: name for messages, such as "a dataset folder".
        marker: file that each complete folder has; None if an incomplete one is also replaced.
        files: patterns of all files, relative to the folder. `*` stands for a part of a name, and
            `**` at the end for everything below.
    """

    what: str
    marker: str | None
    files: tuple[str, ...]

    def foreign(self, names: Iterable[str]) -> str | None:
        """Returns a name, below a folder, that this kind does not have; None if there is none."""
        for name in names:
            if not any(_matches(PurePosixPath(name), pattern) for pattern in self.files):
                return name
        return None


@dataclass(frozen=True)
class FileKind:
    """Files that a command writes; `is_own` recognises an earlier one by its contents."""

    what: str
    is_own: Callable[[Path], bool]


DATASET = FolderKind(
    "a dataset folder",
    "dataset.yaml",
    (
        *("dataset.yaml", "users.parquet", "items.parquet", "vocabularies/*.parquet"),
        *("train/part-*.parquet", "valid/part-*.parquet", "test/part-*.parquet"),
        *("histories/*/*.npy", "histories/*/manifest.json"),
    ),
)


def contains(signature: str) -> Callable[[Path], bool]:
    """Returns a test of whether a text file has a signature near its beginning."""

    def is_own(path: Path) -> bool:
        with path.open("rb") as file:
            return signature.encode() in file.read(SEARCHED_BYTES)

    return is_own


def has_columns(are_own: Callable[[list[str]], bool]) -> Callable[[Path], bool]:
    """Returns a test of whether a file is Parquet with columns whose names pass a test."""

    def is_own(path: Path) -> bool:
        try:
            return are_own(list(parquet_names(path)))
        except ValueError:
            return False

    return is_own


PAGE = FileKind("a page of msrec", contains("<title>msrec "))


def check_output(
    out: AnyPath,
    kind: FolderKind | FileKind,
    inputs: Iterable[AnyPath | None] = (),
    *,
    overwrite: bool = True,
) -> None:
    """Refuses a path whose contents would be lost, or that overlaps an input.

    Args:
        out: file or folder to write.
        kind: what the command writes.
        inputs: files and folders that the command reads.
        overwrite: whether an earlier output may be replaced. An empty one always may.

    Raises:
        ValueError: names the path and what was found.
    """
    check_apart(out, inputs)
    if isinstance(out, Path) and not os.path.lexists(out):
        return
    if isinstance(kind, FolderKind):
        names = _names(out)
        if _is_empty(out, kind, names):
            return
        _check_folder(out, kind, names)
        if is_remote(out) and kind.marker not in names:
            return  # an earlier call was stopped while it wrote the folder
    elif not isinstance(out, Path) or (out.is_file() and out.stat().st_size == 0):
        return
    else:
        _check_file(out, kind)
    if not overwrite:
        raise ValueError(
            f"{out} must not exist yet, so that nothing is lost; it does. Choose another folder or "
            "overwrite it (--overwrite)."
        )


def check_apart(out: AnyPath, inputs: Iterable[AnyPath | None]) -> None:
    """Refuses an output that is an input, or one in the other.

    Raises:
        ValueError: names both.
    """
    for source in inputs:
        if source is not None and (is_within(out, source) or is_within(source, out)):
            raise ValueError(
                f"{out} must not be, be in or hold an input of the command; it overlaps {source}. "
                "Choose another place to write to."
            )


@contextmanager
def new_folder(
    out: AnyPath | str,
    kind: FolderKind = DATASET,
    inputs: Iterable[AnyPath | None] = (),
    *,
    overwrite: bool = False,
    work: Path | None = None,
    send: Send = send_files,
) -> Iterator[Path]:
    """Yields a scratch folder that becomes `out` when the block ends without an error.

    A killed process may leave the scratch folder, which the next one removes. An older `out` stays
    until the new one is complete, and is put back if a process was killed between both. A remote
    `out` is replaced at the end, and is incomplete meanwhile: see `replace_remote_folder`.

    Args:
        out: folder to make.
        kind: what it is.
        inputs: files and folders that the command reads.
        overwrite: whether an older one may be replaced.
        work: place of the scratch folder of a remote `out`; that of temporary files if None.
        send: copies the files to a remote `out`.

    Raises:
        ValueError: see `check_output`; or another job is writing the same folder.
        OSError: the folder around it cannot be written.
    """
    out = to_path(out)
    check_output(out, kind, inputs, overwrite=overwrite)
    if not isinstance(out, Path):
        assert kind.marker is not None, "a remote folder must have a marker"
        with (
            exclusive_remote(out, kind.marker, f"{out} must be written") as check_lock,
            TemporaryDirectory(dir=work) as scratch_name,
        ):
            yield Path(scratch_name)
            check_lock()
            check_output(out, kind, overwrite=overwrite)
            replace_remote_folder(Path(scratch_name), out, kind.marker, send)
        return
    out = out.resolve()
    with _scratch_folder(out.with_name(f".{out.name}.partial"), out) as scratch:
        check_output(out, kind, overwrite=overwrite)  # again: an older one may have been put back
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)


def emptied_folder(out: Path, kind: FolderKind, inputs: Iterable[AnyPath | None] = ()) -> Path:
    """Deletes what an earlier call left in a folder, and returns it empty but for its marker.

    The marker is there all the time, so that the next call may go on if this one is killed.

    Raises:
        ValueError: see `check_output`.
    """
    check_output(out, kind, inputs)
    out.resolve().mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != kind.marker:
            path.unlink()
    if kind.marker is not None:
        (out / kind.marker).write_text(f"{kind.what}; its files are deleted by the next call\n")
    return out


@contextmanager
def _scratch_folder(scratch: Path, out: Path) -> Iterator[Path]:
    """Yields an empty folder that only this process uses, and removes it."""
    mark = scratch / SCRATCH_MARK
    with exclusive(out, f"{out} must be written"):
        if scratch.exists() and not mark.is_file() and any(scratch.iterdir()):
            raise ValueError(
                f"{scratch} must not exist, because msrec prepares {out} there; it holds other "
                "files. Move it away."
            )
        scratch.mkdir(exist_ok=True)
        mark.touch()
        if (scratch / "old").exists() and not out.exists():
            (scratch / "old").rename(out)
        try:
            for name in ("new", "old"):
                shutil.rmtree(scratch / name, ignore_errors=True)
            yield scratch
        finally:
            for name in ("new", "old"):  # the mark last: a kill here must leave it
                shutil.rmtree(scratch / name, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)


ADVICE = "Remove it yourself or choose another place."


def _check_file(out: Path, kind: FileKind) -> None:
    """Refuses an existing path that is not a file of a kind."""
    if not out.is_file() or not kind.is_own(out):
        raise ValueError(
            f"{out} must be {kind.what} to be overwritten; it is something else. {ADVICE}"
        )


def _check_folder(out: AnyPath, kind: FolderKind, names: Sequence[str]) -> None:
    """Refuses an existing path that is not a folder of a kind, complete or stopped."""
    if isinstance(out, Path) and not out.is_dir():
        raise ValueError(f"{out} must be a folder, {kind.what}; it is a file. {ADVICE}")
    marks = {kind.marker, partial_mark(kind.marker)} if kind.marker else set(names)
    if marks.isdisjoint(names):
        raise ValueError(
            f"{out} must hold {kind.marker} to be overwritten, as {kind.what} does; it holds other "
            f"files. {ADVICE}"
        )
    if foreign := kind.foreign(names):
        raise ValueError(
            f"{out} must hold the files of {kind.what} and no others to be overwritten; found "
            f"{out / foreign}, which would be lost. Move that file or choose another place."
        )


def _names(folder: AnyPath) -> list[str]:
    """Returns all files below a folder, links to folders included, and does not follow links."""
    if not isinstance(folder, Path):
        return sorted(remote_files(folder))
    return [
        str(path.relative_to(folder))
        for root, folders, files in os.walk(folder)
        for path in (Path(root) / name for name in sorted([*files, *folders]))
        if path.is_symlink() or not path.is_dir()
    ]


def _is_empty(out: AnyPath, kind: FolderKind, names: Sequence[str]) -> bool:
    """Returns whether a path is a folder without files.

    A folder is also empty if a process was killed while it wrote the first file.
    """
    if isinstance(out, Path) and not out.is_dir():
        return False
    is_killed = (_KILLED_WRITE.match(PurePosixPath(name).name) for name in names)
    return all(is_killed) and kind.foreign(names) is None


def is_within(inner: AnyPath, outer: AnyPath) -> bool:
    """Returns whether a path is another one or below it, through links of any kind."""
    if not isinstance(inner, Path) or not isinstance(outer, Path):
        first, second = (f"{os.path.normpath(str(path))}/" for path in (inner, outer))
        return type(inner) is type(outer) and first.startswith(second)
    inner, outer = inner.resolve(), outer.resolve()
    if not outer.exists():
        return inner.is_relative_to(outer)
    return any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def _matches(path: PurePosixPath, pattern: str) -> bool:
    names = path.with_name(_KILLED_WRITE.sub(r"\1", path.name)).parts
    patterns = PurePosixPath(pattern).parts
    if patterns[-1] == "**":
        patterns = patterns[:-1]
        return len(names) > len(patterns) and all(map(fnmatchcase, names, patterns))
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))
