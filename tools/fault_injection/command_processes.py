"""Starts commands of msrec in processes that can be killed, and compares the files they leave."""

import multiprocessing
import os
import runpy
import sys
import zlib
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["msrec.tools.cli.main", "msrec.tools.fault_injection.killed_ranks"]
"""Modules that import the libraries of most commands. Kills then hit the work of a command."""
Contents = Mapping[str, int]
"""Path of each file below a folder -> CRC-32 of its bytes; 0 for a folder."""


def contents(path: Path, without: Sequence[str] = ()) -> Contents:
    """Returns the files and folders of a folder, or a file; nothing if the path is absent."""
    if path.is_file():
        return {"": zlib.crc32(path.read_bytes())}
    files = {str(file.relative_to(path)): file for file in path.rglob("*")}
    return {
        name: zlib.crc32(file.read_bytes()) if file.is_file() else 0
        for name, file in files.items()
        if not name.startswith(tuple(without))
    }


def differences(found: Contents, expected: Contents) -> list[str]:
    """Returns what is wrong with the found files: kinds of differences, with up to three files."""
    kinds = {
        "left over": sorted(set(found) - set(expected)),
        "missing": sorted(set(expected) - set(found)),
        "different": sorted(p for p in found if found[p] != expected.get(p, found[p])),
    }
    return [f"{kind}: {', '.join(names[:3])}" for kind, names in kinds.items() if names]


def file_states(folder: Path) -> set[tuple[str, int, int]]:
    """Returns path, size and time of change of all files of a folder in use."""
    found = set()
    for root, _, names in os.walk(folder):
        for path in (os.path.join(root, name) for name in names):
            try:
                status = os.stat(path)
            except FileNotFoundError:  # gone since it was listed
                continue
            found.add((path, status.st_size, status.st_mtime_ns))
    return found


def run_command(words: Sequence[str], log: Path) -> None:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; names its log.
    """
    process = start_command(words, log)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"msrec {' '.join(words)} failed by itself; see {log}.")


def start_command(words: Sequence[str], log: Path) -> BaseProcess:
    """Starts a command in a process that has imported the libraries, so that kills hit its work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    process = context.Process(target=_run, args=(list(words), log))
    process.start()
    return process


def _run(words: list[str], log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["msrec", *words]
    runpy.run_module("msrec", run_name="__main__", alter_sys=False)
