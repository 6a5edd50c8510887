"""Knowledge stores in an object store: encoded on this machine, then sent level by level."""

import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msrec.data.io.atomic_files import locked
from msrec.data.io.exclusive_files import exclusive_remote
from msrec.data.io.local_copies import local_copy, require_one_host
from msrec.data.io.outputs import FolderKind, check_output
from msrec.data.io.paths import AnyPath, cache_folder, entries, is_file
from msrec.data.io.remote_folders import (
    change_remote_folder,
    replace_remote_folder,
    require_writable,
)
from msrec.data.llm.store import (
    ITEM_SOURCES,
    KEYS,
    LEVELS,
    LSA_FILE,
    MANIFEST,
    PROJECTION,
    SCALES,
    VECTORS,
)
from msrec.data.llm.store_writer import SETTINGS

log = logging.getLogger(__name__)
LEVEL = FolderKind(
    "a level of a knowledge store",
    MANIFEST,
    (
        *(KEYS, VECTORS, SCALES, PROJECTION, LSA_FILE, MANIFEST, SETTINGS),
        *("projection-*.npz", "codes-*.npz"),
    ),
)


@contextmanager
def written_store(store: AnyPath, complete: Callable[[Path], None]) -> Iterator[Path]:
    """Yields the folder in which a store is encoded: a local store itself.

    Of a remote one it is a folder of this machine, which stays if a process is killed, so that the
    next call goes on. It begins with the finished levels. At the end, the levels that are finished
    and not there yet are sent, the manifest last, and then deleted here.

    Args:
        store: the store.
        complete: adds to the folder what the readers of a remote store share; called before levels
            are sent.

    Raises:
        ValueError: a remote store has files of others, or is encoded on several hosts.
        OSError: it cannot be read or written.
    """
    if isinstance(store, Path):
        yield store
        return
    require_one_host(store)
    name = f"{store.name}-{zlib.crc32(str(store).encode()):08x}"
    work = cache_folder() / "stores" / name
    work.mkdir(parents=True, exist_ok=True)
    lock = work.with_name(f".{name}.lock")
    with locked(lock):
        require_writable(store, MANIFEST)
        for level in _levels(store):
            _begin(store / level, work / level)
    yield work
    with locked(lock):
        complete(work)
        for level in _levels(work):
            if (work / level / MANIFEST).is_file():
                remote = store / level
                with exclusive_remote(remote, MANIFEST, f"{remote} must be written"):
                    _send(work / level, remote)


def _levels(store: AnyPath) -> list[str]:
    """Returns the paths in a store of its levels and item sources, finished or not."""
    names = [path.name for path in entries(store / ITEM_SOURCES)]
    sources = [f"{ITEM_SOURCES}/{name}" for name in names if not name.startswith(".")]
    return [*LEVELS, *sources]


def _begin(remote: AnyPath, local: Path) -> None:
    """Takes a finished level from the store, to be compared and completed."""
    if not is_file(remote / MANIFEST):
        check_output(remote, LEVEL)
    elif not _is_same(remote, local):
        scratch = local.with_name(f".{local.name}.partial")
        for folder in (scratch, local):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(local_copy(remote, MANIFEST), scratch, copy_function=os.link)
        scratch.rename(local)


def _send(local: Path, remote: AnyPath) -> None:
    """Sends a finished level, or the files that were added to it, and deletes it here."""
    check_output(remote, LEVEL)
    if not is_file(remote / MANIFEST):
        replace_remote_folder(local, remote, MANIFEST)
    elif _is_same(remote, local):
        change_remote_folder(local_copy(remote, MANIFEST), local, remote, [MANIFEST])
    else:
        raise ValueError(
            f"{remote} must be encoded by one job at a time; another one has finished it. The "
            f"vectors of this job are in {local}."
        )
    log.info("%s is complete", remote)
    shutil.rmtree(local)


def _is_same(remote: AnyPath, local: Path) -> bool:
    file = local / MANIFEST
    return file.is_file() and file.read_bytes() == (remote / MANIFEST).read_bytes()
