"""Cells of trainings that were never run."""

from msrec.data.io.atomic_files import write_json
from msrec.launch.evaluation.results import Results
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics
from msrec.tools.experiment.cell import CELL_FILE, Cell


def made_cell(auc, choice, options=(), split=None, seconds=10.0):
    """Returns a cell; every group of rows has the same metrics."""
    results = None
    if split is not None:
        group = Metrics(rows=10, positives=4, auc=auc, log_loss=0.5, gauc=0.6)
        results = Results(
            dataset="d",
            split=split,
            checkpoint="c",
            rows=10,
            metrics=ScenarioMetrics(group, {"feed": group}),
            slices={"user_history": {"1-4": group, "0": group}},
        )
    return Cell(
        choice=choice,
        options=list(options),
        valid=auc,
        epochs=2,
        seconds=seconds,
        rows_per_s=1000.0,
        parameters=7,
        table_parameters=70,
        results=results,
    )


def save_cell(training, auc, seconds=10.0):
    """Writes the cell of a planned training."""
    cell = made_cell(auc, training.choice, training.options, training.split, seconds)
    training.folder.mkdir(parents=True, exist_ok=True)
    write_json(training.folder / CELL_FILE, cell.model_dump(mode="json"))
    return cell
