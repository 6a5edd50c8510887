"""Copies of remote folders on this machine, for readers that need files.

A folder is copied once per machine, and again when its listing has changed. The processes of a
machine share the copy::

    $MSREC_CACHE/copies/NAME-CRC/PART/   a folder by its URL; $MSREC_CACHE is ~/.cache/msrec
        .lock                       held while the folder is compared and copied
        .partial/                   a copy that is not complete
        KEY/listing.json            names and entries of the files; KEY is the hash of it
        KEY/.used                   locked by the processes that read this copy
        KEY/NAME/                   the copy
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

from msrec.data.io.atomic_files import locked, write_json
from msrec.data.io.exclusive_files import exclusive_remote
from msrec.data.io.json_files import read_json_object
from msrec.data.io.paths import AnyPath, cache_folder, reachable
from msrec.data.io.remote_folders import (
    WRITERS,
    change_remote_folder,
    remote_entries,
)

Choice = Callable[[Collection[str]], Collection[str]]
"""Function that returns the names of the files to copy, of all names in a folder."""
LISTING, PARTIAL = "listing.json", ".partial"
CHANGES = "changes"
"""Name of the lock for changes; another one belongs to the writer of the whole folder."""
_in_use: list[int] = []
"""File descriptors with the locks of the copies that this process reads, until it ends."""
log = logging.getLogger(__name__)


def local_copy(folder: AnyPath, marker: str, choose: Choice = list, part: str = "") -> Path:
    """Returns a local folder as it is, and of a remote one the copy on this machine.

    Files that have not changed since an earlier copy are taken from there, as links. The earlier
    copy is deleted if no process reads it.

    Args:
        folder: the folder.
        marker: file that each complete folder has.
        choose: chooses the files to copy.
        part: name of the choice, if not all files are copied.

    Raises:
        FileNotFoundError: the remote folder lacks the marker.
        OSError: it cannot be read, changes meanwhile, or this disk has no room for it.
    """
    if isinstance(folder, Path):
        return folder
    listing = _listing(folder, marker, choose)
    key = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    place = _place(folder, part)
    with locked(place / ".lock"):
        copy = place / key
        if not copy.is_dir():
            scratch = place / PARTIAL
            shutil.rmtree(scratch, ignore_errors=True)
            _copy(folder, listing, scratch / _name(folder), place)
            if _listing(folder, marker, choose) != listing:
                raise OSError(
                    f"{folder} must not change while it is copied; it did. Start the command again."
                )
            write_json(scratch / LISTING, listing)
            scratch.rename(copy)
        _in_use.append(_lock(copy, fcntl.LOCK_SH))
        _delete_unused(place)
    return copy / _name(folder)


@contextmanager
def changed_copy(
    folder: AnyPath,
    marker: str,
    choose: Choice = list,
    part: str = "",
    marks: Collection[str] = (),
) -> Iterator[Path]:
    """Yields a folder to read and change: a local one as it is, of a remote one a working copy.

    What has changed in a working copy is sent at the end, if there was no error.

    Args:
        folder: the folder.
        marker: file that each complete folder has.
        choose: chooses the files to copy; the others stay as they are.
        part: name of the choice, if not all files are copied.
        marks: names of files that say that others are complete; they are sent last.

    Raises:
        OSError: see `local_copy`; or the remote folder cannot be written.
    """
    if isinstance(folder, Path):
        yield folder
        return
    copy = local_copy(folder, marker, choose, part)
    with locked(_place(folder, part) / ".lock"):
        scratch = Path(mkdtemp(dir=_place(folder, part)))
        lock = _lock(scratch, fcntl.LOCK_SH)
    try:
        work = scratch / copy.name
        shutil.copytree(copy, work, copy_function=os.link)
        changing = f"{folder} must be changed"
        with exclusive_remote(folder, marker, changing, CHANGES) as check_lock:
            yield work
            check_lock()
            change_remote_folder(copy, work, folder, marks)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def require_one_host(folder: AnyPath) -> None:
    """Refuses a remote folder whose parts ranks of several hosts would write.

    Raises:
        ValueError: the launcher of this rank has started others on another host.
    """
    ranks, here = (int(os.environ.get(n, 1)) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks > here:
        raise ValueError(
            f"{folder} must be a folder that all hosts share, because their ranks write to it "
            f"together; it is remote, and of {ranks} ranks {here} are on one host. Use a shared "
            "folder and copy it, or use one host."
        )


def fetch_files(folder: AnyPath, names: Collection[str], target: Path) -> None:
    """Copies files of a remote folder to a local one, several at the same time.

    Raises:
        OSError: one cannot be read.
    """

    def fetch(name: str) -> None:
        source = folder / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with reachable(source):
            source.fs.get_file(source.path, str(target / name))  # type: ignore[union-attr]

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(fetch, names))


def _name(folder: AnyPath) -> str:
    return folder.name or "folder"


def _place(folder: AnyPath, part: str) -> Path:
    """Returns the folder of the copies of a remote folder, or of a part of it."""
    name = f"{_name(folder)}-{zlib.crc32(str(folder).encode()):08x}"
    place = cache_folder() / "copies" / name / (part or "whole")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _listing(folder: AnyPath, marker: str, choose: Choice) -> dict[str, list[Any]]:
    """Returns name -> size and entry in the listing, of the chosen files of a remote folder.

    The entry has a checksum or a time, so that it differs if the content does. Left out are locks
    and other hidden files, and Azure's time of the last access, which reading changes.
    """
    entries = remote_entries(folder)
    if marker not in entries:
        raise FileNotFoundError(
            f"{folder / marker} must exist, since it is written last; it does not. {folder} is not "
            "complete, or is a folder of another kind."
        )
    for entry in entries.values():
        entry.pop("last_accessed_on", None)
    shown = [name for name in entries if PurePosixPath(name).name[0] != "."]
    return {
        name: [entries[name]["size"], str(sorted(entries[name].items()))]
        for name in sorted(choose(shown))
    }


def _copy(folder: AnyPath, listing: dict[str, list[Any]], target: Path, place: Path) -> None:
    """Makes a folder of the files of a listing, from earlier copies and the remote folder."""
    earlier = {
        (name, *entry): copy.parent / target.name / name
        for copy in place.parent.glob(f"*/*/{LISTING}")
        for name, entry in read_json_object(copy).items()
    }
    missing = []
    for name, entry in listing.items():
        source = earlier.get((name, *entry))
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source or "", target / name)
        except FileNotFoundError:  # not there, or just deleted by the users of another part
            missing.append(name)
    num_bytes = sum(listing[name][0] for name in missing)
    log.info(
        "copying %s to %s: %d files, %.1f MiB; %d files were copied earlier",
        *(folder, place, len(missing), num_bytes / 2**20, len(listing) - len(missing)),
    )
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise OSError(
            f"the disk of {place} must have {num_bytes / 2**20:,.1f} MiB for the copy of {folder}; "
            f"{free / 2**20:,.1f} MiB are free. Set MSREC_CACHE to a folder on another disk."
        )
    fetch_files(folder, missing, target)


def _delete_unused(place: Path) -> None:
    """Deletes the copies that no process reads, and working copies of killed processes."""
    for copy in place.iterdir():
        if copy.is_dir() and copy.name != PARTIAL:
            with suppress(OSError):  # in use
                os.close(_lock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB))
                (copy / LISTING).unlink(missing_ok=True)  # first: half a copy is not one
                shutil.rmtree(copy)


def _lock(copy: Path, kind: int) -> int:
    """Locks a copy until the descriptor is closed: shared by its readers."""
    descriptor = os.open(copy / ".used", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
