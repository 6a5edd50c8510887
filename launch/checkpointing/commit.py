"""The COMMIT file, which marks a checkpoint as complete and holds the state of the trainer."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from msrec.data.io.atomic_files import check_files
from msrec.data.io.json_files import read_json_object
from msrec.data.io.paths import AnyPath, PathT, is_file

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run folder."""
COMMIT = "COMMIT"


class Commit(NamedTuple):
    """Content of a COMMIT file: the trainer's state, and the CRC-32 of each other file."""

    state: dict[str, Any]
    crc32: dict[str, str]


def read_commit(path: AnyPath) -> Commit:
    """Reads the COMMIT file of a checkpoint.

    Raises:
        FileNotFoundError: the checkpoint was never committed.
        ValueError: the file is not what a save writes.
    """
    marker = path / COMMIT
    if not is_file(marker):
        raise FileNotFoundError(f"{path} must be a committed checkpoint; it has no {COMMIT} file.")
    advice = "Delete the folder to go on from an older checkpoint."
    content = read_json_object(marker, advice)
    try:
        commit = Commit(dict(content["state"]), dict(content["crc32"]))
        step = int(commit.state["step"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{marker} must hold the trainer's state and checksums; it does not. {advice}"
        ) from None
    if path.name.startswith("step-") and path.name != step_name(step):
        raise ValueError(f"{marker} must have the step of its folder; it has step {step}. {advice}")
    return commit


def step_name(step: int) -> str:
    """Returns the name of a checkpoint's folder."""
    return f"step-{step:08d}"


def committed(folder: Path) -> list[Path]:
    """Returns the committed checkpoints of a folder, by step.

    Raises:
        PermissionError: the folder or a checkpoint must not be read; a glob would find none.
    """
    if not folder.is_dir():
        return []
    steps = [path for path in folder.iterdir() if path.name.startswith("step-")]
    return sorted(path for path in steps if (path / COMMIT).is_file())


def committed_names(names: Iterable[str]) -> list[str]:
    """Returns the steps whose COMMIT is among the names of files below a run folder, in order."""
    parts = (name.split("/") for name in names)
    return sorted(p[1] for p in parts if len(p) == 3 and (p[0], p[2]) == (CHECKPOINTS, COMMIT))


def best_of(checkpoints: Sequence[PathT]) -> PathT | None:
    """Returns the one with the best validation of committed checkpoints by step.

    The newest one records it. If that is not there, it is the newest one.
    """
    if not checkpoints:
        return None
    name = step_name(read_commit(checkpoints[-1]).state["best_step"] or 0)
    return next((path for path in checkpoints if path.name == name), checkpoints[-1])


def verify_checkpoint(path: Path) -> Commit:
    """Compares all files with the checksums in COMMIT; every rank calls this.

    Each rank reads its share of the files, and all ranks raise the error of one.

    Raises:
        FileNotFoundError: the checkpoint was never committed.
        ValueError: a file was changed or lost since it was written.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    commit = read_commit(path)
    files = sorted(commit.crc32.items())
    failure = None
    try:
        older = [p.name for p in committed(path.parent) if p.name < path.name]
        instead = f"; the one before it is {older[-1]}" if older else ""
        advice = f"The checkpoint is damaged: delete its folder{instead}."
        check_files(path, dict(files[rank::world_size]), advice)
    except ValueError as error:
        failure = str(error)
        if not all((path / name).is_file() for name in commit.crc32):
            failure += (
                " If it was trained with trainer.copy_to on hosts without a shared folder, this "
                "host has its own files only: read the run in the store instead."
            )
    failures: list[str | None] = [None] * world_size
    dist.all_gather_object(failures, failure)
    for failure in failures:
        if failure is not None:
            raise ValueError(failure)
    return commit
