"""Commit-marked checkpoints: a new folder per step, COMMIT written last, never overwritten."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.files import write_json

COMMIT = "COMMIT"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    A folder is `step-00001234/`: DCP's files (model, fused and dense optimizer state, any world
    size reads them) and COMMIT, a JSON file with the trainer's state. A folder without COMMIT is
    what a crash left, is never read, and is removed at the next save.

    Args:
        folder: where they go.
        keep: newest ones kept; the best one is kept besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, model: nn.Module, optimizer: CombinedOptimizer, state: dict[str, Any]) -> Path:
        """Write one; every rank calls this with the same `state`, with `step` and `best_step`.

        Raises:
            OSError: the disk is full or the folder is not writable; older checkpoints are intact.
        """
        path = self.folder / f"step-{state['step']:08d}"
        if (path / COMMIT).exists():
            raise FileExistsError(
                f"{path} is committed already; a checkpoint is never overwritten."
            )
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(path, ignore_errors=True)  # what a crash left, never committed
        dist.barrier()
        try:
            save({"model": model.state_dict(), "optim": optimizer.state_dict()}, checkpoint_id=path)
        except (CheckpointException, OSError) as error:
            self._discard(path)
            raise OSError(self._failure(path, error)) from None
        self._commit(path, state)
        return path

    def newest(self) -> Path | None:
        """The newest committed checkpoint."""
        committed = self._committed()
        return committed[-1] if committed else None

    def best(self) -> Path | None:
        """The committed checkpoint with the best validation, by the newest one's word."""
        newest = self.newest()
        if newest is None:
            return None
        best = self.folder / f"step-{read_state(newest)['best_step']:08d}"
        return best if (best / COMMIT).exists() else newest

    def _committed(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"step-*/{COMMIT}"))

    def _commit(self, path: Path, state: dict[str, Any]) -> None:
        """Rank 0 writes the marker after all ranks wrote their files; all learn if that failed."""
        failure: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                write_json(path / COMMIT, state)
                self._prune(state["best_step"])
            except OSError as error:
                failure = [self._failure(path, error)]
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            self._discard(path)
            raise OSError(failure[0])

    def _prune(self, best_step: int | None) -> None:
        committed = self._committed()
        for path in committed[: -self._keep]:
            if path.name != f"step-{best_step or 0:08d}":
                # The marker goes first: a half-removed folder must not look whole.
                (path / COMMIT).unlink()
                shutil.rmtree(path)
        for path in self.folder.glob("step-*"):
            if not (path / COMMIT).exists():
                log.info("removed %s, which was never committed", path)
                shutil.rmtree(path)

    def _discard(self, path: Path) -> None:
        if dist.get_rank() == 0 and not (path / COMMIT).exists():
            shutil.rmtree(path, ignore_errors=True)

    def _failure(self, path: Path, error: BaseException) -> str:
        newest = self.newest()
        left = f"the newest one, {newest}, is intact" if newest else "there is no older one"
        return f"checkpoint {path} could not be written: {_cause(error)}; {left}."


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: CombinedOptimizer | None
) -> dict[str, Any]:
    """Read weights, and optimizer state where an optimizer is given, on any world size and plan.

    Returns:
        The trainer's state that was saved with it.

    Raises:
        FileNotFoundError: it is not there or was never committed.
        ValueError: it is of another model; names the first differing keys.
    """
    state = read_state(path)
    reader = FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {"model": model.state_dict()}
    _check_keys(
        path, {k[6:]: v for k, v in saved.items() if k.startswith("model.")}, wanted["model"]
    )
    if optimizer is not None:
        optimizer.init_state(set())  # else DCP silently skips Adam's moments
        wanted["optim"] = optimizer.state_dict()
    load(wanted, storage_reader=reader)
    model.load_state_dict(wanted["model"])
    if optimizer is not None:
        optimizer.load_state_dict(wanted["optim"])
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The trainer's state inside a COMMIT file."""
    marker = path / COMMIT
    if not marker.is_file():
        raise FileNotFoundError(f"{path} must be a committed checkpoint; it has no {COMMIT} file.")
    state: dict[str, Any] = json.loads(marker.read_text())
    return state


def _check_keys(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"{path} is a checkpoint of another model: it lacks {_some(missing)} and has "
            f"{_some(extra)} besides. Use the config in its run folder."
        )
    for key, tensor in wanted.items():
        sizes = tuple(getattr(saved[key], "size", tensor.size()))
        if sizes != tuple(tensor.size()):
            raise ValueError(
                f"{path} is a checkpoint of another model: {key} has shape {sizes} there and "
                f"{tuple(tensor.size())} here. Use the config in its run folder."
            )


def _some(keys: list[str]) -> str:
    return "nothing" if not keys else ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else error
    return str(cause).splitlines()[0].rstrip(".")
