"""The calibration of a checkpoint: finds it, checks whose it is, and makes a module of it."""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from msrec.launch.calibration.calibration_file import (
    CALIBRATION_FILE,
    Calibration,
    IsotonicMap,
    LabelCalibration,
    PlattMap,
    ScoreMap,
    read_calibration,
)
from msrec.launch.checkpointing.commit import COMMIT
from msrec.model.calibration import IsotonicCalibration, PlattCalibration

logger = logging.getLogger(__name__)


def calibration_module(calibration: Calibration, labels: Sequence[str]) -> nn.Module:
    """Returns a module that maps the scores (B, T) of some labels, see `model.calibration`."""
    maps = [
        [_map(calibration.labels.get(label), scenario) for label in labels]
        for scenario in calibration.scenarios
    ]
    if calibration.method == "isotonic":
        return IsotonicCalibration(
            [[(m.x, m.y) if isinstance(m, IsotonicMap) else None for m in row] for row in maps]
        )
    return PlattCalibration(
        [[(m.a, m.b) if isinstance(m, PlattMap) else None for m in row] for row in maps]
    )


def _map(label: LabelCalibration | None, scenario: str) -> ScoreMap | None:
    return None if label is None else label.scenarios.get(scenario, label.all)


def commit_crc32(checkpoint: Path) -> int:
    """Returns the checksum by which a calibration recognises its checkpoint."""
    return zlib.crc32((checkpoint / COMMIT).read_bytes())


def load_calibration(
    run_dir: Path, checkpoint: Path, scenarios: Sequence[str], *, is_best: bool
) -> Calibration | None:
    """Reads the calibration of a checkpoint; None if the run has none.

    A calibration of another checkpoint is refused for the best checkpoint. For a checkpoint that
    was chosen by name there is none then, and a warning says so.

    Args:
        run_dir: a run folder.
        checkpoint: the checkpoint whose scores are to be calibrated.
        scenarios: names of the run's scenarios.
        is_best: whether the checkpoint is the one with the best validation.

    Raises:
        ValueError: the file is broken, or belongs to another checkpoint or other scenarios.
    """
    calibration, path = read_calibration(run_dir), run_dir / CALIBRATION_FILE
    if calibration is None:
        return None
    owner = (calibration.checkpoint, calibration.commit_crc32, calibration.scenarios)
    if owner == (checkpoint.name, commit_crc32(checkpoint), list(scenarios)):
        return calibration
    if is_best:
        raise ValueError(
            f"{path} must belong to the best checkpoint, {checkpoint.name}; it was fitted on "
            f"another one, {calibration.checkpoint}. Run `msrec calibrate` again, or delete it."
        )
    logger.warning(
        "%s belongs to %s: scores of %s are not calibrated",
        *(path, calibration.checkpoint, checkpoint),
    )
    return None
