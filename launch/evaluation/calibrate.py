"""Calibrates a run: fits maps of its probabilities on validation, and measures them on test."""

from pathlib import Path

import numpy as np
import torch

from msrec.data.schema import Schema, Split
from msrec.launch.calibration.calibration_file import (
    ALL,
    Calibration,
    Errors,
    LabelCalibration,
    Method,
    save_calibration,
)
from msrec.launch.calibration.checkpoint_calibration import calibration_module, commit_crc32
from msrec.launch.calibration.fitting import fit_label
from msrec.launch.checkpointing.commit import CHECKPOINTS
from msrec.launch.distributed import Process, exclusive_job
from msrec.launch.evaluation.evaluate import score_split
from msrec.launch.evaluation.exact_results import label_rows
from msrec.launch.evaluation.scored_rows.predictions import Predictions, load_predictions
from msrec.launch.trained_run import open_run
from msrec.model.metrics.definitions import Metrics
from msrec.model.metrics.exact import NO_INTERVALS, Grouping

FITTED: Split = "valid"
MEASURED: tuple[Split, ...] = (FITTED, "test")


def calibrate(run_dir: Path, process: Process, method: Method) -> Calibration | None:
    """Fits the probabilities of the best checkpoint, per scenario and binary label.

    Writes `calibration.json` in the run folder, and the predictions of the model as it is to
    `predictions/uncalibrated/SPLIT`. A scenario with few rows or one class gets the map of all
    rows; a label with one class gets none.

    Args:
        run_dir: a run folder.
        process: this rank; all ranks must call this function.
        method: kind of the maps.

    Returns:
        The calibration, with its errors on validation and test, on rank 0; None on the others.

    Raises:
        FileNotFoundError, ValueError: see `open_run`.
    """
    out = run_dir / "predictions" / "uncalibrated"
    with exclusive_job(out, "calibrated"):
        trained = open_run(run_dir, process, calibrated=False)
        for split in MEASURED:
            score_split(trained, run_dir, process, split, out / split, (), NO_INTERVALS)
        if not process.is_main:
            return None
        checkpoint = run_dir / CHECKPOINTS / trained.checkpoint
        scored = {split: load_predictions(out / split) for split in MEASURED}
        calibration = fit(scored[FITTED], trained.schema, method, commit_crc32(checkpoint))
        errors = {
            split: calibration_errors(predictions, trained.schema, calibration)
            for split, predictions in scored.items()
        }
        calibration = calibration.model_copy(update={"errors": errors})
        save_calibration(calibration, run_dir)
    return calibration


def fit(predictions: Predictions, schema: Schema, method: Method, commit_crc32: int) -> Calibration:
    """Fits the maps of all binary labels of uncalibrated predictions."""
    commit = predictions.commit
    names = [scenario.name for scenario in schema.scenarios]
    labels: dict[str, LabelCalibration] = {}
    left_out = {}
    for label, rows in zip(commit.labels, predictions.labels, strict=True):
        if schema.label(label).kind != "binary":
            continue
        columns = (rows.score, rows.label, rows.weight, predictions.scenario)
        try:
            labels[label] = fit_label(*columns, names, method)
        except ValueError as error:
            left_out[label] = str(error)
    return Calibration(
        method=method,
        checkpoint=commit.checkpoint,
        commit_crc32=commit_crc32,
        dataset=commit.dataset,
        split=commit.split,
        scenarios=names,
        labels=labels,
        left_out=left_out,
    )


def calibration_errors(
    predictions: Predictions, schema: Schema, calibration: Calibration
) -> dict[str, Errors]:
    """Returns the calibration errors of each label, of all rows and by scenario, before and after.

    Args:
        predictions: uncalibrated.
        schema: names the scenarios.
        calibration: its maps are applied.
    """
    commit = predictions.commit
    module = calibration_module(calibration, commit.labels)
    scores = torch.from_numpy(np.stack([rows.score for rows in predictions.labels], axis=1))
    mapped = module(scores, torch.from_numpy(predictions.scenario)).numpy()
    scenarios = Grouping([scenario.name for scenario in schema.scenarios], predictions.scenario)
    errors: dict[str, Errors] = {}
    for number, label in enumerate(commit.labels):
        if label not in calibration.labels:
            continue
        pair: list[dict[str, Metrics]] = []
        for score in (scores.numpy()[:, number], mapped[:, number]):
            rows = label_rows(predictions, number, NO_INTERVALS, "binary", score)
            pair.append({ALL: rows.metrics()} | rows.metrics_by(scenarios))
        errors[label] = {
            group: (before.calibration_error, pair[1][group].calibration_error)
            for group, before in pair[0].items()
        }
    return errors
