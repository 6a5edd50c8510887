"""Copy of a run in an object store while it is trained, so that it continues on other machines.

Each host may have a run folder on a disk of its own. A checkpoint is complete in the store, where
the files of all ranks come together; its COMMIT is sent last.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from msrec.data.io.atomic_files import checksums
from msrec.data.io.local_copies import fetch_files
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.io.remote_folders import (
    delete_files,
    local_files,
    remote_files,
    send_checked,
    send_file,
)
from msrec.launch.checkpointing.commit import (
    CHECKPOINTS,
    COMMIT,
    best_of,
    committed,
    committed_names,
    read_commit,
)
from msrec.launch.checkpointing.remote_runs import NOT_COPIED
from msrec.model.distributed.collectives import T, from_rank_0

logger = logging.getLogger(__name__)


class RunStore:
    """Copy of one run in an object store; every rank has one and calls its methods together.

    The caller holds the lock of the remote folder.

    Args:
        run_dir: the run folder on this host.
        remote: the folder in the store.
        keep: number of newest checkpoints to keep there; the best one is always kept.
        is_first: whether this is the first rank of its host, which fetches for the others.
    """

    def __init__(self, run_dir: Path, remote: AnyPath, keep: int, *, is_first: bool) -> None:
        self._run_dir, self._remote, self._keep = run_dir, remote, keep
        self._is_first = is_first
        # Ranks wait here for files, which may take longer than any other collective.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._unsent: tuple[Path, list[str]] | None = None
        """Newest checkpoint whose sending failed, and the names of this rank's files in it."""
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of each sent file outside the checkpoints."""

    def fetch(self) -> None:
        """Brings the run folder of each host to the newest checkpoint of the store.

        If this host has a newer one that was not sent, it is sent first, provided that all hosts
        still have their files of it. Otherwise it is deleted, and the run goes on from the one in
        the store.

        Raises:
            OSError: the store cannot be read or written, or a disk is full; on every rank.
        """
        is_shared = self._shares_folder_of_rank_0()
        self._is_first = self._is_first and not is_shared
        names = self._on_main(lambda: sorted(remote_files(self._remote)))
        stored, (newest, crc32) = committed_names(names), self._on_main(self._newest_here)
        if newest and newest > max(stored, default=""):
            if self._send_whole(newest, crc32):
                stored.append(newest)
                names += [f"{CHECKPOINTS}/{newest}/{name}" for name in (*crc32, COMMIT)]
            elif dist.get_rank() == 0:
                logger.warning(
                    "%s was not sent to %s before its hosts were lost; the run goes on from %s",
                    *(newest, self._remote, max(stored, default="its beginning")),
                )
        self._agree(lambda: self._fetch(stored, names) if self._is_first else None)
        self._complete()

    def send(self, checkpoint: Path, own: list[str]) -> None:
        """Sends a committed checkpoint, its marker last, and deletes old ones in the store.

        A failure is logged; the next checkpoint, or `finish`, sends again.

        Args:
            checkpoint: its folder.
            own: names of the files that this rank wrote in it.
        """
        if self._unsent is not None and self._unsent[0] == checkpoint:
            own = self._unsent[1] or own
        self._unsent = (checkpoint, own)
        try:
            self._send_unsent()
        except OSError as error:
            if dist.get_rank() == 0:
                logger.warning("%s is not in the store yet: %s", checkpoint, error)

    def finish(self) -> None:
        """Sends what is not in the store yet, at the end of a training.

        Raises:
            OSError: it cannot be sent; on every rank.
        """
        self._send_unsent()
        self._on_main(self._send_run_files)

    def _send_unsent(self) -> None:
        if self._unsent is not None:
            checkpoint, own = self._unsent
            self._agree(lambda: self._send_own(checkpoint, own))
            self._on_main(lambda: self._commit(checkpoint))
            self._complete()
            self._unsent = None

    def _complete(self) -> None:
        """Sends the best checkpoint if it is not there, then deletes old ones, here and there."""
        best, crc32 = self._on_main(self._missing_best)
        if best and not self._send_whole(best, crc32) and dist.get_rank() == 0:
            logger.warning("%s, the best one, cannot be sent: a host with its files is lost", best)
        self._on_main(self._delete_old)
        self._delete_pieces(self._on_main(self._steps_here))

    def _missing_best(self) -> tuple[str, dict[str, str]]:
        """Returns the best checkpoint of this host and its checksums; "" if the store has it."""
        best = best_of(committed(self._run_dir / CHECKPOINTS))
        if best is None or is_file(self._remote / CHECKPOINTS / best.name / COMMIT):
            return "", {}
        return best.name, read_commit(best).crc32

    def _steps_here(self) -> list[str]:
        return [path.name for path in committed(self._run_dir / CHECKPOINTS)]

    def _delete_pieces(self, kept: list[str]) -> None:
        """Deletes this host's files of checkpoints that rank 0 has deleted."""
        if self._is_first:
            for path in (self._run_dir / CHECKPOINTS).glob("step-*"):
                if path.name not in kept:
                    shutil.rmtree(path)

    def _shares_folder_of_rank_0(self) -> bool:
        """Returns whether another rank has the run folder of rank 0, which then does the work."""

        def touch() -> str:
            name = f".copy-{uuid.uuid4().hex}"
            self._run_dir.mkdir(parents=True, exist_ok=True)
            (self._run_dir / name).touch()
            return name

        token = self._run_dir / self._on_main(touch)
        is_shared = token.is_file()
        dist.barrier(self._group)
        if dist.get_rank() == 0:
            token.unlink()
        return is_shared and dist.get_rank() != 0

    def _newest_here(self) -> tuple[str, dict[str, str]]:
        """Returns the newest checkpoint of this host and its checksums; "" if there is none."""
        paths = committed(self._run_dir / CHECKPOINTS)
        return (paths[-1].name, read_commit(paths[-1]).crc32) if paths else ("", {})

    def _send_whole(self, step: str, crc32: dict[str, str]) -> bool:
        """Sends a checkpoint of rank 0's host with the files of all hosts, if they are all there.

        Returns:
            Whether they were, the same on every rank.
        """
        path = self._run_dir / CHECKPOINTS / step
        here = [name for name in crc32 if (path / name).is_file()] if self._is_first else []
        sums = checksums(path, [path / name for name in here])
        whole = [name for name in here if sums[name] == crc32[name]]
        of_ranks: list[list[str]] = [[]] * dist.get_world_size()
        dist.all_gather_object(of_ranks, whole, group=self._group)
        if set().union(*of_ranks) != crc32.keys():
            return False
        self._agree(lambda: self._send_own(path, whole))
        self._on_main(lambda: self._commit(path))
        return True

    def _fetch(self, stored: list[str], names: list[str]) -> None:
        """Fetches the newest and the best checkpoint; on rank 0 also the other files of a run."""
        folder = self._run_dir / CHECKPOINTS
        newest = max(stored, default="")
        for path in committed(folder):
            if path.name > newest:  # pieces of a checkpoint that the store lacks
                (path / COMMIT).unlink()
                shutil.rmtree(path)
        if not stored:
            return
        best = best_of([self._remote / CHECKPOINTS / step for step in sorted(stored)])
        assert best is not None
        is_new = not (folder / newest / COMMIT).is_file()
        for step in sorted({best.name, newest}):
            self._fetch_checkpoint(step, names)
        if is_new and dist.get_rank() == 0:
            others = [n for n in names if n.split("/")[0] not in (CHECKPOINTS, *NOT_COPIED)]
            fetch_files(self._remote, [n for n in others if n[0] != "."], self._run_dir)

    def _fetch_checkpoint(self, step: str, names: list[str]) -> None:
        remote, path = self._remote / CHECKPOINTS / step, self._run_dir / CHECKPOINTS / step
        commit = read_commit(remote)
        is_whole = all((path / name).is_file() for name in (*commit.crc32, COMMIT))
        if is_whole and read_commit(path) == commit:
            return
        logger.info("copying %s to %s", remote, path)
        scratch = path.with_name(f".{step}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        inside = f"{CHECKPOINTS}/{step}/"
        own = [name.removeprefix(inside) for name in names if name.startswith(inside)]
        fetch_files(remote, own, scratch)
        shutil.rmtree(path, ignore_errors=True)  # this host's files of it, which the copy has too
        scratch.rename(path)

    def _send_own(self, checkpoint: Path, own: Iterable[str]) -> None:
        remote = self._remote / CHECKPOINTS / checkpoint.name
        send_checked({name: checkpoint / name for name in own}, remote)

    def _commit(self, checkpoint: Path) -> None:
        """Sends the run's other files, then the marker."""
        remote = self._remote / CHECKPOINTS / checkpoint.name
        crc32 = read_commit(checkpoint).crc32
        if missing := sorted(crc32.keys() - remote_files(remote).keys()):
            raise OSError(f"{remote / missing[0]} must exist before {COMMIT}; it does not.")
        self._send_run_files()
        send_file(checkpoint / COMMIT, remote / COMMIT)
        logger.info("%s is complete", remote)

    def _delete_old(self) -> None:
        """Deletes checkpoints of the store that are too old, and pieces of some."""
        names = sorted(remote_files(self._remote))
        stored = committed_names(names)
        best = best_of([self._remote / CHECKPOINTS / step for step in stored])
        if best is None:
            return
        kept = {*stored[-self._keep :], best.name}
        old = {name for name in names if "" < _step(name) < stored[-1] and _step(name) not in kept}
        marks = {name for name in old if name.endswith(f"/{COMMIT}")}
        delete_files(self._remote, marks)  # first: half a checkpoint must not look complete
        delete_files(self._remote, old - marks)

    def _send_run_files(self) -> None:
        """Sends the files outside the checkpoints that have changed."""
        for name, path in sorted(local_files(self._run_dir).items()):
            if name.split("/")[0] in (CHECKPOINTS, "export", "jobs", "logs", "ranks"):
                continue
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(name) != state:
                send_file(path, self._remote / name)
                self._sent[name] = state

    def _on_main(self, compute: Callable[[], T]) -> T:
        return from_rank_0(compute, self._group)

    def _agree(self, work: Callable[[], Any]) -> None:
        """Does work on every rank; raises the error of one on all."""
        failure = None
        try:
            work()
        except (OSError, ValueError) as error:
            failure = str(error)
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure, group=self._group)
        for failure in failures:
            if failure is not None:
                raise OSError(failure)


def _step(name: str) -> str:
    """Returns the checkpoint of a file below a run folder; "" if it is in none."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and parts[0] == CHECKPOINTS else ""
