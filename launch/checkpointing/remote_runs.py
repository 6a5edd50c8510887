"""Runs in an object store: their copies on this machine, and the results that go back to them."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from msrec.data.io.local_copies import changed_copy, local_copy, require_one_host
from msrec.data.io.paths import AnyPath, to_path
from msrec.launch.checkpointing.commit import CHECKPOINTS, COMMIT, best_of, committed_names
from msrec.launch.config.run_config import CONFIG_FILE

NOT_COPIED = ("export", "jobs", "logs", "ranks", "tensorboard")
"""Folders of a remote run that no command reads."""
MARKS = ("_COMMIT", "results.json", "calibration.json")
"""Files of predictions, evaluations and calibrations that are written after all others."""


class _RemoteRun(NamedTuple):
    """Remote run, and the files of it that a command needs."""

    folder: AnyPath
    step: str
    """Name of the checkpoint that the path named; empty if it named none."""
    weights: bool

    @classmethod
    def of(cls, path: AnyPath, *, weights: bool) -> "_RemoteRun":
        """Returns the run of a remote path: a run folder, or a checkpoint in one."""
        if path.parent.name == CHECKPOINTS:
            return cls(path.parent.parent, path.name, weights)
        return cls(path, "", weights)

    @property
    def part(self) -> str:
        """Name of the choice of files."""
        return "weights" if self.weights else "without weights"

    @property
    def inside(self) -> Path:
        """Path in the run that was named."""
        return Path(CHECKPOINTS, self.step) if self.step else Path()

    def choose(self, names: Collection[str]) -> list[str]:
        """Returns the files to copy: of the checkpoints the markers, and one with its tensors.

        That is the named one, or the one with the best validation.
        """
        marked = committed_names(names)
        steps = [self.folder / CHECKPOINTS / step for step in marked]
        step = self.step
        if self.weights and not step and (best := best_of(steps)) is not None:
            step = best.name
        kept = [name for name in names if name.split("/")[0] not in (*NOT_COPIED, CHECKPOINTS)]
        kept += [f"{CHECKPOINTS}/{name}/{COMMIT}" for name in marked]
        if self.weights and step in marked:
            inside = f"{CHECKPOINTS}/{step}/"
            kept += [n for n in names if n.startswith(inside) and n != f"{inside}{COMMIT}"]
        return kept


def local_run(path: AnyPath, *, weights: bool = True) -> Path:
    """Returns a run folder or checkpoint on this machine; a remote one is copied, see `local_copy`.

    Args:
        path: a run folder, or a checkpoint in one.
        weights: whether to copy the tensors of the checkpoint, or of the best one.

    Raises:
        FileNotFoundError: there is no run.
    """
    if isinstance(path, Path):
        return path
    run = _RemoteRun.of(path, weights=weights)
    return local_copy(run.folder, CONFIG_FILE, run.choose, run.part) / run.inside


@contextmanager
def changed_run(path: AnyPath | str) -> Iterator[Path]:
    """Yields a run folder or checkpoint to read, and to write results in the run.

    The files that rank 0 writes in a working copy of a remote run are sent at the end.

    Args:
        path: a run folder, or a checkpoint in one.

    Raises:
        ValueError: the run is remote, and the ranks are on several hosts.
    """
    path = to_path(path)
    if isinstance(path, Path):
        yield path
        return
    require_one_host(path)
    if int(os.environ.get("RANK", 0)) > 0:
        yield local_run(path)
        return
    run = _RemoteRun.of(path, weights=True)
    with changed_copy(run.folder, CONFIG_FILE, run.choose, run.part, MARKS) as folder:
        yield folder / run.inside
