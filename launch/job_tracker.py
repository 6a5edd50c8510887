"""Records trainings with the trackers of torchx (`.torchxconfig`), such as its fsspec tracker."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msrec.data.io.atomic_files import write_text
from msrec.data.io.paths import AnyPath, is_file
from msrec.launch.config.run_config import RunConfig

logger = logging.getLogger(__name__)

TRACKERS = "TORCHX_TRACKERS"
"""Variable with the names of the trackers; torchx sets it from `.torchxconfig`."""
JOB_FILE = "torchx_job.txt"
"""File in a run folder with the torchx name of the job that trained it last."""


class JobTracker:
    """Records a training: its config, dataset, parent and checkpoints. Without trackers a no-op.

    Args:
        config: of the run.
        first_step: step from which the job continues.
        world_size: number of ranks.

    Raises:
        ValueError: a tracker cannot start.
    """

    def __init__(self, config: RunConfig, first_step: int, world_size: int) -> None:
        self._run = _app_run()
        if self._run is None:
            return
        job_file = config.run_dir / JOB_FILE
        # Not run_id, which is an argument of torchx's trackers; the config has it.
        values: dict[str, Any] = {
            "dataset": str(config.dataset),
            "run_dir": str(config.run_dir.absolute()),
        }
        values["config"] = config.model_dump(mode="json")
        self._run.add_metadata(**values, first_step=first_step, world_size=world_size)
        if config.init_from is not None:
            self._run.add_source(_job_of(config.init_from), "init_from")
        if job_file.is_file() and job_file.read_text() != self._run.id:
            self._run.add_source(job_file.read_text(), "resumed")
        write_text(job_file, self._run.id)

    def record_checkpoint(self, path: Path, state: Mapping[str, Any]) -> None:
        """Records a committed checkpoint by the name of its folder.

        A name has one path: torchx's fsspec tracker returns any record of a name, not the last.

        Args:
            path: its folder.
            state: of the trainer, with `step`.
        """
        if self._run is None:
            return
        try:
            self._run.add_artifact(path.name, str(path.absolute()), {"step": state["step"]})
        except Exception as error:  # noqa: BLE001 - each tracker has its own errors
            logger.warning("torchx's tracker did not record %s: %s; training goes on", path, error)


def _app_run() -> Any:
    """Returns torchx's AppRun of this job; None if no tracker is configured."""
    if TRACKERS not in os.environ:
        return None
    from torchx.tracker.api import AppRun

    names = os.environ[TRACKERS]
    try:
        run = AppRun.run_from_env()
    except Exception as error:
        raise ValueError(
            f"torchx's tracker {names} must start; it does not: {error}. Check its section in "
            ".torchxconfig, and that its root_path exists on the node of rank 0."
        ) from None
    if not run.backends:
        raise ValueError(f"torchx must have the tracker {names}; no package registers it.")
    return run


def _job_of(source: AnyPath) -> str:
    """Returns the torchx job that trained a run or checkpoint, or its folder as a URI."""
    folder = source.parents[1] if source.parent.name == "checkpoints" else source
    file = folder / JOB_FILE
    if is_file(file):
        return file.read_text()
    return folder.absolute().as_uri() if isinstance(folder, Path) else str(folder)
