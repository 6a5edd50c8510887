"""Rule for paths that commands write: files of others are never replaced or deleted.

A path may be written if nothing exists there, if it is empty, or if it holds what an earlier call
of the same kind wrote and nothing else. It must be apart from the inputs of the command.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.parquet_files import parquet_names
from msrec.data.io.paths import AnyPath, is_file

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

    def foreign_file(self, folder: Path) -> Path | None:
        """Returns a file of the folder that this kind does not have; None if there is none."""
        for path in _files(folder):
            if not any(_matches(path.relative_to(folder), pattern) for pattern in self.files):
                return path
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
        out: file or folder to write. Of a remote folder, only the marker is checked.
        kind: what the command writes.
        inputs: files and folders that the command reads.
        overwrite: whether an earlier output may be replaced. An empty one always may.

    Raises:
        ValueError: names the path and what was found.
    """
    check_apart(out, inputs)
    if not isinstance(out, Path):
        if isinstance(kind, FolderKind):
            _check_remote(out, kind)
        return
    if not os.path.lexists(out) or _is_empty(out, kind):
        return
    _check_own(out, kind)
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
        if source is not None and (_is_within(out, source) or _is_within(source, out)):
            raise ValueError(
                f"{out} must not be, be in or hold an input of the command; it overlaps {source}. "
                "Choose another place to write to."
            )


@contextmanager
def new_folder(
    out: Path | str,
    kind: FolderKind = DATASET,
    inputs: Iterable[AnyPath | None] = (),
    *,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Yields a scratch folder that becomes `out` when the block ends without an error.

    A killed process may leave the scratch folder, which the next one removes. An older `out` stays
    until the new one is complete, and is put back if a process was killed between both.

    Raises:
        ValueError: see `check_output`; or another job is writing the same folder.
        OSError: the folder around it cannot be written.
    """
    check_output(Path(out), kind, inputs, overwrite=overwrite)
    out = Path(out).resolve()
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


def _check_remote(out: AnyPath, kind: FolderKind) -> None:
    has_files = next(iter(out.glob("*")), None) is not None
    if has_files and kind.marker is not None and not is_file(out / kind.marker):
        raise ValueError(
            f"{out} must be empty or hold {kind.marker}, as {kind.what} does; it holds other "
            "files. Choose another place."
        )


def _check_own(out: Path, kind: FolderKind | FileKind) -> None:
    """Refuses an existing path that is not of a kind."""
    advice = "Remove it yourself or choose another place."
    if isinstance(kind, FileKind):
        if not out.is_file() or not kind.is_own(out):
            raise ValueError(
                f"{out} must be {kind.what} to be overwritten; it is something else. {advice}"
            )
        return
    if not out.is_dir():
        raise ValueError(f"{out} must be a folder, {kind.what}; it is a file. {advice}")
    if kind.marker is not None and not (out / kind.marker).is_file():
        raise ValueError(
            f"{out} must hold {kind.marker} to be overwritten, as {kind.what} does; it holds other "
            f"files. {advice}"
        )
    foreign = kind.foreign_file(out)
    if foreign is not None:
        raise ValueError(
            f"{out} must hold the files of {kind.what} and no others to be overwritten; found "
            f"{foreign}, which would be lost. Move that file or choose another place."
        )


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder, links to folders included, and does not follow links."""
    for root, folders, files in os.walk(folder):
        for path in (Path(root) / name for name in sorted([*files, *folders])):
            if path.is_symlink() or not path.is_dir():
                yield path


def _is_empty(out: Path, kind: FolderKind | FileKind) -> bool:
    """Returns whether a path is an empty folder, or an empty regular file for a kind of files.

    A folder is also empty if a process was killed while it wrote the first file.
    """
    if isinstance(kind, FileKind):
        return out.is_file() and out.stat().st_size == 0
    is_killed = (_KILLED_WRITE.match(path.name) is not None for path in _files(out))
    return out.is_dir() and all(is_killed) and kind.foreign_file(out) is None


def _is_within(inner: AnyPath, outer: AnyPath) -> bool:
    """Returns whether a path is another one or below it, through links of any kind."""
    if not isinstance(inner, Path) or not isinstance(outer, Path):
        first, second = (f"{os.path.normpath(str(path))}/" for path in (inner, outer))
        return type(inner) is type(outer) and first.startswith(second)
    inner, outer = inner.resolve(), outer.resolve()
    if not outer.exists():
        return inner.is_relative_to(outer)
    return any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def _matches(path: Path, pattern: str) -> bool:
    path = path.with_name(_KILLED_WRITE.sub(r"\1", path.name))
    names, patterns = PurePosixPath(path).parts, PurePosixPath(pattern).parts
    if patterns[-1] == "**":
        patterns = patterns[:-1]
        return len(names) > len(patterns) and all(map(fnmatchcase, names, patterns))
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))
