"""Commit-marked checkpoints: a new folder per step, COMMIT written last, never overwritten."""

import json
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.io.atomic_files import check_files, checksums, write_json
from msrec.launch.checkpointing.dcp_storage import INDEX, JsonReader, JsonWriter, read_index
from msrec.launch.checkpointing.snapshot import num_bytes, snapshot

COMMIT = "COMMIT"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    A folder is `step-00001234/`: DCP's files (model, fused and dense optimizer state, metrics; any
    world size reads them) and COMMIT, a JSON file with the trainer's state and the checksums of the
    other files. A folder without COMMIT is what a crash left, is never read, and is removed at the
    next save.

    A save copies the state and returns; a thread writes the copy, over a gloo group of its own. One
    save at a time: the next one waits for it, and says if it failed.

    Args:
        folder: where they go.
        keep: newest ones kept; the best one is kept besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep
        self._group: dist.ProcessGroup | None = None
        self._writer: threading.Thread | None = None
        self._failure: str | None = None
        self._copy: Any = None
        """Kept for the next save: writing needs this memory anyway."""

    def save(
        self,
        model: nn.Module,
        optimizer: CombinedOptimizer,
        state: dict[str, Any],
        metrics: Mapping[str, torch.Tensor] | None = None,
    ) -> Path:
        """Begin to write one; every rank calls this with the same `state` and `metrics`.

        Args:
            model: the sharded model.
            optimizer: of `optimizers`.
            state: goes into COMMIT; has `step` and `best_step`.
            metrics: tensors to keep beside the weights.

        Returns:
            Where it will be; `wait` says when.

        Raises:
            OSError: the save before this one failed; older checkpoints are intact.
        """
        self.wait()
        path = self._of_step(state["step"])
        if (path / COMMIT).exists():
            raise FileExistsError(
                f"{path} is committed already; a checkpoint is never overwritten."
            )
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        # Rates and other settings are the config's; only tensors are kept.
        values = {"model": model.state_dict(), "optim": optimizer.state_dict()["state"]}
        if metrics:
            values["metrics"] = dict(metrics)
        self._copy = snapshot(values, self._group, self._copy)
        work = (path, self._copy, dict(state), self._group)
        self._writer = threading.Thread(target=self._write, args=work, name="msrec-checkpoint")
        self._writer.start()
        return path

    def amend(self, state: dict[str, Any]) -> bool:
        """Change the trainer's state in the committed checkpoint of its step, if there is one.

        Its weights are those that the run has, since both are of the same step: a run that stopped
        before it validated has validated now.

        Returns:
            Whether there is one; every rank learns the same.

        Raises:
            OSError: it could not be written; it is as it was.
        """
        self.wait()
        path = self._of_step(state["step"])
        said: list[bool | str] = [False]
        if dist.get_rank() == 0 and (path / COMMIT).exists():
            try:
                commit = read_commit(path)
                write_json(path / COMMIT, commit._replace(state=dict(state))._asdict())
                said = [True]
            except OSError as error:
                said = [self._sentence(path, error)]
        dist.broadcast_object_list(said, src=0)
        if isinstance(said[0], str):
            raise OSError(said[0])
        return said[0]

    def wait(self) -> None:
        """Return when the last save is committed.

        Raises:
            OSError: it could not be written (the disk is full, the folder not writable); older
                checkpoints are intact.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise OSError(failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except OSError as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # the error that ended the run is the one to tell

    def newest(self) -> Path | None:
        """The newest committed checkpoint."""
        paths = committed(self.folder)
        return paths[-1] if paths else None

    def best(self) -> Path | None:
        """The committed checkpoint with the best validation, by the newest one's word."""
        newest = self.newest()
        if newest is None:
            return None
        best = self._of_step(read_state(newest)["best_step"])
        return best if (best / COMMIT).exists() else newest

    def _of_step(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(
        self, path: Path, values: dict[str, Any], state: dict[str, Any], group: dist.ProcessGroup
    ) -> None:
        """In a thread of every rank: all files, then the marker; every rank learns of a fault."""
        try:
            self._failure = self._written(path, values, state, group)
        except Exception as error:  # noqa: BLE001 - of another rank's end too; told by `wait`
            self._failure = self._sentence(path, error)

    def _written(
        self, path: Path, values: dict[str, Any], state: dict[str, Any], group: dist.ProcessGroup
    ) -> str | None:
        rank = dist.get_rank(group)
        if rank == 0:
            shutil.rmtree(path, ignore_errors=True)  # what a crash left, never committed
        failure: str | None = None
        try:
            self._check_space(num_bytes(values, rank), group)
            save(values, storage_writer=JsonWriter(path), process_group=group)
            own = [*path.glob(f"__{rank}_*"), *([path / INDEX] if rank == 0 else [])]
            sums = checksums(path, own)
        except (CheckpointException, OSError) as error:
            failure, sums = self._sentence(path, error), {}
        found: list[tuple[str | None, dict[str, str]]] = [(None, {})] * dist.get_world_size(group)
        dist.all_gather_object(found, (failure, sums), group=group)
        failure = next((said for said, _ in found if said), None)
        if rank == 0:
            if failure is None:
                files = {name: value for _, sums in found for name, value in sums.items()}
                failure = self._commit(path, state, files)
            if failure is not None and not (path / COMMIT).exists():
                shutil.rmtree(path, ignore_errors=True)
        said = [failure]
        dist.broadcast_object_list(said, src=0, group=group)
        return said[0]

    def _check_space(self, own_bytes: int, group: dist.ProcessGroup) -> None:
        """Torch does not say that a disk is full, so it is looked at before.

        Raises:
            OSError: it has less room than all ranks need, on every rank.
        """
        needed = torch.tensor(own_bytes, dtype=torch.int64)
        dist.all_reduce(needed, group=group)
        told: list[int | str] = [""]
        if dist.get_rank(group) == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                told = [shutil.disk_usage(self.folder).free]
            except OSError as error:
                told = [str(error)]
        dist.broadcast_object_list(told, src=0, group=group)
        free = told[0]
        if isinstance(free, str):
            raise OSError(free)
        if free < needed:
            raise OSError(
                f"no space left on the disk of {self.folder}: a checkpoint takes "
                f"{needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free"
            )

    def _commit(self, path: Path, state: dict[str, Any], files: dict[str, str]) -> str | None:
        try:
            write_json(path / COMMIT, Commit(state, files)._asdict())
            self._prune(state["best_step"])
        except OSError as error:
            return self._sentence(path, error)
        return None

    def _prune(self, best_step: int | None) -> None:
        paths = committed(self.folder)
        for path in paths[: -self._keep]:
            if path != self._of_step(best_step or 0):
                # The marker goes first: a half-removed folder must not look whole.
                (path / COMMIT).unlink()
                shutil.rmtree(path)
        for path in self.folder.glob("step-*"):
            if not (path / COMMIT).exists():
                log.info("removed %s, which was never committed", path)
                shutil.rmtree(path)

    def _sentence(self, path: Path, error: BaseException) -> str:
        newest = self.newest()
        left = f"the newest one, {newest}, is intact" if newest else "there is no older one"
        return f"checkpoint {path} could not be written: {_cause(error)}; {left}."


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: CombinedOptimizer | None,
    metrics: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Read weights, and optimizer state where an optimizer is given, on any world size and plan.

    Args:
        path: a committed checkpoint.
        model: the sharded model.
        optimizer: of `optimizers`.
        metrics: tensors that get what was kept beside the weights.

    Returns:
        The trainer's state that was saved with it.

    Raises:
        FileNotFoundError: it is not there or was never committed.
        ValueError: it is of another model (names the first differing keys), or damaged.
    """
    state = verify_checkpoint(path).state
    wanted: dict[str, Any] = {"model": model.state_dict()}
    if metrics:
        wanted["metrics"] = dict(metrics)
    if optimizer is not None:
        optimizer.init_state(set())  # else DCP silently skips Adam's moments
        settings = optimizer.state_dict()
        wanted["optim"] = settings["state"]
    saved = {k.removeprefix("model."): v for k, v in read_index(path).items() if k[:6] == "model."}
    _check_keys(path, saved, wanted["model"])
    load(wanted, storage_reader=JsonReader(path))
    model.load_state_dict(wanted["model"])
    if optimizer is not None:
        optimizer.load_state_dict(settings | {"state": wanted["optim"]})
    return state


def verify_checkpoint(path: Path) -> "Commit":
    """Compare the files with the checksums in COMMIT, each on one rank; all ranks learn of a fault.

    Returns:
        What COMMIT says.

    Raises:
        ValueError: a file was changed or lost since it was written.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    commit = read_commit(path)
    files = sorted(commit.crc32.items())
    said: list[str | None] = [None] * world_size
    try:
        older = [p.name for p in committed(path.parent) if p.name < path.name]
        instead = f"; the one before it is {older[-1]}" if older else ""
        advice = f"The checkpoint is damaged: delete its folder{instead}."
        check_files(path, dict(files[rank::world_size]), advice)
        failure = None
    except ValueError as error:
        failure = str(error)
    dist.all_gather_object(said, failure)
    for failure in said:
        if failure is not None:
            raise ValueError(failure)
    return commit


def read_state(path: Path) -> dict[str, Any]:
    """The trainer's state inside a COMMIT file.

    Raises:
        FileNotFoundError: it was never committed.
    """
    return read_commit(path).state


class Commit(NamedTuple):
    """What a COMMIT file says: the trainer's state, and the CRC-32 of each other file."""

    state: dict[str, Any]
    crc32: dict[str, str]


def read_commit(path: Path) -> Commit:
    """Read the marker of a checkpoint.

    Raises:
        FileNotFoundError: it was never committed.
        ValueError: it is not what a save writes.
    """
    marker = path / COMMIT
    if not marker.is_file():
        raise FileNotFoundError(f"{path} must be a committed checkpoint; it has no {COMMIT} file.")
    try:
        found = json.loads(marker.read_text())
        commit = Commit(dict(found["state"]), dict(found["crc32"]))
        int(commit.state["step"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{marker} must be JSON with the trainer's state and checksums; it is not. Delete the "
            "folder to go on from an older checkpoint."
        ) from None
    return commit


def committed(folder: Path) -> list[Path]:
    """Checkpoints of a folder that are whole, by step."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMMIT}"))


def _check_keys(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(
            f"{path} is a checkpoint of another model: it lacks {_some(missing)} and has "
            f"{_some(extra)} besides. Use the config in its run folder."
        )
    for key, tensor in wanted.items():
        sizes = tuple(saved[key]["size"])
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
