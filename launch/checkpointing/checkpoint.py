"""Saves the checkpoints of a run: a new folder per step, COMMIT written last."""

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.io.atomic_files import checksums, write_json
from msrec.launch.checkpointing.commit import (
    COMMIT,
    Commit,
    best_of,
    committed,
    read_commit,
    step_name,
)
from msrec.launch.checkpointing.dcp_storage import INDEX, JsonWriter
from msrec.launch.checkpointing.run_store import RunStore
from msrec.launch.checkpointing.snapshot import num_bytes, snapshot
from msrec.model.distributed.collectives import from_rank_0
from msrec.model.frozen_items import without_frozen

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; a context that waits for the last save.

    A folder `step-00001234/` holds DCP's files (model, optimizer state, metrics; readable with any
    world size) and COMMIT, a JSON file with the trainer's state and the checksums of the other
    files. A folder without COMMIT was left by a crash. It is never read, and the next save removes
    it. A committed folder is never overwritten.

    A save copies the state and returns. A thread writes the copy, over its own gloo group, so that
    its collectives do not mix with those of the training. There is one save at a time: the next
    one waits for it and raises its error.

    Args:
        folder: parent of the checkpoints.
        keep: number of newest checkpoints to keep; the best one is always kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep
        self.on_commit: Callable[[Path, Mapping[str, Any]], None] | None = None
        """Called on rank 0 with the folder and the state of each committed checkpoint."""
        self.store: RunStore | None = None
        """Object store to which each committed checkpoint is sent."""
        self._group: dist.ProcessGroup | None = None
        self._writer: threading.Thread | None = None
        self._failure: str | None = None
        self._copy: Any = None
        """Copy of the last save. The next save fills it again, which is faster than new memory."""

    def save(
        self,
        model: nn.Module,
        optimizer: CombinedOptimizer,
        state: dict[str, Any],
        metrics: Mapping[str, torch.Tensor] | None = None,
    ) -> Path:
        """Starts a save; every rank calls this with the same `state` and `metrics`.

        Args:
            model: the sharded model.
            optimizer: of `optimizers`.
            state: of the trainer, with `step` and `best_step`; goes into COMMIT.
            metrics: tensors to keep with the weights.

        Returns:
            Its folder, which is committed when `wait` returns.

        Raises:
            FileExistsError: the step has a committed checkpoint.
            OSError: the save before this one failed; older checkpoints are intact.
        """
        self.wait()
        path = self._folder_of(state["step"])
        if (path / COMMIT).exists():
            raise FileExistsError(
                f"{path} is committed already; a checkpoint is never overwritten."
            )
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        # Learning rates and other settings come from the config; only tensors are saved.
        values = {
            "model": without_frozen(model.state_dict()),
            "optim": without_frozen(optimizer.state_dict()["state"]),
        }
        if metrics:
            values["metrics"] = dict(metrics)
        self._copy = snapshot(values, self._group, self._copy)
        # Each thread begins on GPU 0, where every rank of a host would open a context.
        has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        gpu = torch.cuda.current_device() if has_gpu else None
        arguments = (path, self._copy, dict(state), self._group, gpu)
        self._writer = threading.Thread(target=self._write, args=arguments, name="msrec-checkpoint")
        self._writer.start()
        return path

    def amend(self, state: dict[str, Any]) -> bool:
        """Replaces the trainer's state in the committed checkpoint of its step, if there is one.

        Used after a validation: a run that was stopped before it has a checkpoint of the same step,
        whose weights are the present ones.

        Returns:
            Whether there is such a checkpoint, the same on every rank.

        Raises:
            OSError: COMMIT could not be written; it is unchanged.
        """
        self.wait()
        path = self._folder_of(state["step"])

        def replace_state() -> bool:
            if not (path / COMMIT).exists():
                return False
            commit = read_commit(path)
            try:
                write_json(path / COMMIT, commit._replace(state=dict(state))._asdict())
            except OSError as error:
                raise OSError(self._failure_message(path, error)) from None
            if self.on_commit is not None:
                self.on_commit(path, state)
            return True

        is_there = from_rank_0(replace_state)
        if is_there and self.store is not None:
            self.store.send(path, [])
        return is_there

    def wait(self) -> None:
        """Returns when the last save is committed.

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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except OSError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)  # the error that ended the run is the one to raise

    def newest(self) -> Path | None:
        """Returns the newest committed checkpoint."""
        paths = committed(self.folder)
        return paths[-1] if paths else None

    def best(self) -> Path | None:
        """Returns the committed checkpoint with the best validation, as the newest one records."""
        return best_of(committed(self.folder))

    def _folder_of(self, step: int) -> Path:
        return self.folder / step_name(step)

    def _write(
        self,
        path: Path,
        values: dict[str, Any],
        state: dict[str, Any],
        group: dist.ProcessGroup,
        gpu: int | None,
    ) -> None:
        """Runs in a thread of every rank."""
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            self._failure = self._write_and_commit(path, values, state, group)
        except Exception as error:  # noqa: BLE001 - also another rank's death; raised by `wait`
            self._failure = self._failure_message(path, error)

    def _write_and_commit(
        self, path: Path, values: dict[str, Any], state: dict[str, Any], group: dist.ProcessGroup
    ) -> str | None:
        """Writes all files, then the marker; returns the message of a failure on every rank.

        The ranks agree twice: rank 0 commits only if every rank has written its files, and every
        rank learns whether rank 0 has committed. So no rank trains on as if a failed save were
        there.
        """
        rank = dist.get_rank(group)
        if rank == 0:
            shutil.rmtree(path, ignore_errors=True)  # left by a crash, never committed
        failure: str | None = None
        sums: dict[str, str] = {}
        try:
            self._check_space(num_bytes(values, rank), group)
            save(values, storage_writer=JsonWriter(path), process_group=group)
            own = [*path.glob(f"__{rank}_*"), *([path / INDEX] if rank == 0 else [])]
            sums = checksums(path, own)
        except (CheckpointException, OSError) as error:
            failure = self._failure_message(path, error)
        answers: list[tuple[str | None, dict[str, str]]] = [(None, {})] * dist.get_world_size(group)
        dist.all_gather_object(answers, (failure, sums), group=group)

        def commit() -> str | None:
            failure = next((message for message, _ in answers if message), None)
            if failure is None:
                crc32 = {name: value for _, sums in answers for name, value in sums.items()}
                failure = self._commit(path, Commit(state, crc32))
            if failure is not None and not (path / COMMIT).exists():
                shutil.rmtree(path, ignore_errors=True)
            return failure

        failure = from_rank_0(commit, group)
        if failure is None and self.store is not None:
            self.store.send(path, list(sums))
        return failure

    def _check_space(self, own_bytes: int, group: dist.ProcessGroup) -> None:
        """Checks the free space before the save, because torch does not report a full disk.

        Raises:
            OSError: there is less than all ranks need together; raised on every rank.
        """
        needed = torch.tensor(own_bytes, dtype=torch.int64)
        dist.all_reduce(needed, group=group)

        def free_bytes() -> int:
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free

        free = from_rank_0(free_bytes, group)
        if free < needed:
            raise OSError(
                f"no space left on the disk of {self.folder}: a checkpoint takes "
                f"{needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free"
            )

    def _commit(self, path: Path, commit: Commit) -> str | None:
        try:
            write_json(path / COMMIT, commit._asdict())
            self._prune(commit.state["best_step"])
        except OSError as error:
            return self._failure_message(path, error)
        if self.on_commit is not None:
            self.on_commit(path, commit.state)
        return None

    def _prune(self, best_step: int | None) -> None:
        for path in committed(self.folder)[: -self._keep]:
            if path != self._folder_of(best_step or 0):
                # The marker goes first: a half-removed folder must not look complete.
                (path / COMMIT).unlink()
                shutil.rmtree(path)
        for path in self.folder.glob("step-*"):
            if not (path / COMMIT).exists():
                logger.info("removed %s, which was never committed", path)
                shutil.rmtree(path)

    def _failure_message(self, path: Path, error: BaseException) -> str:
        failures = getattr(error, "failures", None)  # of a CheckpointException: rank -> error
        cause = next(iter(failures.values()))[0] if failures else error
        reason = str(cause).splitlines()[0].rstrip(".")
        newest = self.newest()
        rest = f"the newest one, {newest}, is intact" if newest else "there is no older one"
        return f"checkpoint {path} could not be written: {reason}; {rest}."
