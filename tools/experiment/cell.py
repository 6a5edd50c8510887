"""Trains one run of a sweep, and keeps its figures in one JSON file, the cell."""

import logging
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import AliasChoices, Field

from msrec.data.io.atomic_files import write_json
from msrec.data.io.outputs import FolderKind, emptied_folder
from msrec.data.io.validation import StrictModel
from msrec.data.schema import Split
from msrec.launch.config.run_config import RunConfig, load_config, save_config
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import Results
from msrec.launch.evaluation.slices import HISTORIES
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.trainer import Trainer
from msrec.model.metrics.definitions import DIRECTION

CELL_FILE = "cell.json"
CONFIG_FILE = "config.yaml"
OUTPUT_FILE = "output.txt"
"""Progress and warnings of the training."""
CELL = FolderKind("a training of a sweep", OUTPUT_FILE, ("**",))
NOT_KEPT = ("checkpoints", "predictions", "tensorboard")
"""Folders of a run that are deleted after it."""
Choice = dict[str, float]
"""Tuned values by name."""


class Cell(StrictModel):
    """Figures of a finished training."""

    choice: Choice = {}
    options: list[str]
    """Overrides that it was trained with, those of `choice` included."""
    valid: float | None = Field(validation_alias=AliasChoices("valid", "valid_auc"))
    """Validation `metric` of the best epoch; None if the loss became infinite. Cells of an older
    version call it `valid_auc`."""
    metric: str = "auc/all"
    """Name of the metric that chose the best epoch, see `metric_name`."""
    epochs: int
    seconds: float
    """Of training and evaluation together."""
    rows_per_s: float
    """Training rows per second, the median of the log."""
    parameters: int
    """Of the dense part."""
    table_parameters: int
    results: Results | None = None
    """On the evaluated split, if any."""

    @property
    def gain(self) -> float | None:
        """The validation metric with the sign that makes higher values better."""
        direction = DIRECTION[self.metric.split("/")[0]]
        return None if self.valid is None else direction * self.valid

    @property
    def evaluation(self) -> Results:
        """Results of a training that was evaluated."""
        assert self.results is not None, "the training must be evaluated"
        return self.results


@dataclass(frozen=True)
class PlannedTraining:
    """A training to run.

    Attributes:
        folder: run folder.
        config: YAML file of a run.
        options: overrides of the config.
        choice: tuned values, which are also part of `options`.
        split: evaluated with the best weights; None evaluates none.
    """

    folder: Path
    config: Path
    options: list[str]
    choice: Choice
    split: Split | None

    def __str__(self) -> str:
        return str(self.folder)

    def cell(self) -> Cell | None:
        """Reads the cell; None if there is none, or if its config or its split are others."""
        cell = load_cell(self.folder)
        if cell is None or cell.options != self.options or not self._has_trained_this():
            return None
        return cell if cell.results is None or cell.results.split == self.split else None

    def run_config(self) -> RunConfig:
        """Loads the config of the run."""
        run_folder = [f"run_root={self.folder.parent}", f"run_id={self.folder.name}"]
        return load_config(self.config, [*self.options, *run_folder])

    def _has_trained_this(self) -> bool:
        """Whether the run in the folder had this config, whose file may have changed since."""
        saved = self.folder / CONFIG_FILE
        if not saved.is_file():
            return True
        try:
            configs = [load_config(saved), self.run_config()]
        except ValueError:  # an option of an older version
            return False
        values = [config.model_dump() for config in configs]
        for each in values:
            del each["llm"]["batch_tokens"]  # changes the speed of encoding only
        return values[0] == values[1]


def load_cell(folder: Path) -> Cell | None:
    """Reads the cell of a folder; None if its training is not finished."""
    path = folder / CELL_FILE
    return Cell.model_validate_json(path.read_text()) if path.is_file() else None


def train_cell(training: PlannedTraining) -> Cell:
    """Trains in this process and writes the cell; a training that was killed starts again."""
    logging.getLogger("msrec").setLevel(logging.WARNING)
    quiet_libraries()
    folder = training.folder
    emptied_folder(folder, CELL)
    with (
        (folder / OUTPUT_FILE).open("w") as output,
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        cell = _train(training)
    for name in NOT_KEPT:
        shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / CELL_FILE, cell.model_dump(mode="json"))
    return cell


def _train(training: PlannedTraining) -> Cell:
    started = time.monotonic()
    folder, split = training.folder, training.split
    config = training.run_config()
    save_config(config, folder / CONFIG_FILE)
    with process_group("cpu") as process:
        trainer = Trainer(config, process)
        parameters = {False: 0, True: 0}
        for name, parameter in trainer.model.named_parameters():
            parameters[".ebc." in name] += parameter.numel()
        try:
            progress = trainer.fit().progress
        except ValueError as error:
            if "the loss must be finite" not in str(error):
                raise
            progress = None
        results = evaluate(folder, process, split, by=HISTORIES) if split and progress else None
    _, speeds = load_metric_log(folder).curve("train", "rows_per_s")
    return Cell(
        choice=training.choice,
        options=training.options,
        valid=progress.best_value if progress else None,
        metric=progress.metric if progress else "auc/all",
        epochs=progress.epoch if progress else 0,
        seconds=time.monotonic() - started,
        rows_per_s=median(speeds or [0.0]),
        parameters=parameters[False],
        table_parameters=parameters[True],
        results=results,
    )
