"""Calibration of a checkpoint: `calibration.json` in its run folder."""

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from torch import nn

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import StrictModel, first_error
from msrec.launch.checkpointing.commit import COMMIT
from msrec.model.calibration import IsotonicCalibration, PlattCalibration

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.json"
ALL = "all"
"""Name of the group of all rows."""
Method = Literal["isotonic", "platt"]
Errors = dict[str, tuple[float | None, float | None]]
"""Group of rows -> calibration error before and after; None if it is undefined."""


class FittedRows(StrictModel):
    """Rows that a map was fitted on."""

    rows: int
    positives: int


class IsotonicMap(FittedRows):
    """Knots of a piecewise linear map, constant beyond the first and the last."""

    x: list[float]
    """Scores, rising."""
    y: list[float]
    """Calibrated probabilities."""


class PlattMap(FittedRows):
    """The map sigmoid(a * logit(p) + b)."""

    a: float
    b: float


ScoreMap = IsotonicMap | PlattMap


class LabelCalibration(StrictModel):
    """Maps of a label: of all rows, and of each scenario that has one."""

    all: ScoreMap
    scenarios: dict[str, ScoreMap] = {}
    fallbacks: dict[str, str] = {}
    """Scenario that has the map of all rows -> reason."""


class Calibration(StrictModel):
    """Calibration of the binary labels of a checkpoint."""

    method: Method
    checkpoint: str
    """Name of the checkpoint's folder."""
    commit_crc32: int
    """CRC-32 of the checkpoint's COMMIT file."""
    dataset: str
    split: str
    """Split whose predictions the maps were fitted on."""
    scenarios: list[str]
    """Scenarios of the run, in the order of their ids."""
    labels: dict[str, LabelCalibration]
    left_out: dict[str, str] = {}
    """Label without maps -> reason."""
    errors: dict[str, dict[str, Errors]] = {}
    """Split -> label -> calibration errors before and after."""

    def module(self, labels: Sequence[str]) -> nn.Module:
        """Returns a module that maps the scores (B, T) of some labels, see `model.calibration`."""
        maps = [
            [self._map(self.labels.get(label), scenario) for label in labels]
            for scenario in self.scenarios
        ]
        if self.method == "isotonic":
            return IsotonicCalibration(
                [[(m.x, m.y) if isinstance(m, IsotonicMap) else None for m in row] for row in maps]
            )
        return PlattCalibration(
            [[(m.a, m.b) if isinstance(m, PlattMap) else None for m in row] for row in maps]
        )

    @staticmethod
    def _map(label: LabelCalibration | None, scenario: str) -> ScoreMap | None:
        return None if label is None else label.scenarios.get(scenario, label.all)


def commit_crc32(checkpoint: Path) -> int:
    """Returns the checksum by which a calibration recognises its checkpoint."""
    return zlib.crc32((checkpoint / COMMIT).read_bytes())


def save_calibration(calibration: Calibration, run_dir: Path) -> Path:
    """Writes `calibration.json` in one step."""
    text = calibration.model_dump_json(indent=2) + "\n"
    return write_text(run_dir / CALIBRATION_FILE, text)


def read_calibration(run_dir: Path) -> Calibration | None:
    """Reads `calibration.json`, of whatever checkpoint; None if there is none.

    Raises:
        ValueError: the file does not hold a calibration; the message names the field.
    """
    path = run_dir / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        return Calibration.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None


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
