"""Calibration of a checkpoint: `calibration.json` in its run folder."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import StrictModel, first_error

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
