"""Evaluates a run: scores a split with its best checkpoint and computes exact metrics."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split
from msrec.launch.distributed import Process, shared_folder
from msrec.launch.evaluation.exact_results import evaluate_predictions
from msrec.launch.evaluation.predict import predict, truth_columns
from msrec.launch.evaluation.results import ResultHistory, Results, save_results
from msrec.launch.evaluation.scored_rows.commit import PREDICTIONS
from msrec.launch.evaluation.slices import Slice, check_timestamps, row_groups
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.trained_run import TrainedRun, find_run, load_run_config, open_run
from msrec.launch.training.skipped_rows import report_bad_rows
from msrec.model.metrics.exact import MetricOptions


def predictions_folder(
    run: Path, split: Split, checkpoint: AnyPath | None = None, data: AnyPath | None = None
) -> Path:
    """Returns the folder for predictions of a run; no two kinds of predictions share one.

    Args:
        run: a run folder.
        split: the split that is scored.
        checkpoint: the checkpoint, if it is not the one with the best validation.
        data: the dataset folder, if it is not the run's own.

    Example:
        >>> predictions_folder(Path("runs/a"), "test", data=Path("/data/monday"))
        PosixPath('runs/a/predictions/monday-29b3ff31/test')
    """
    folder = run / "predictions"
    if checkpoint is not None:
        folder /= checkpoint.name
    if data is not None:
        whole = data.resolve() if isinstance(data, Path) else data
        folder /= f"{whole.name}-{zlib.crc32(str(whole).encode()):08x}"
    return folder / split


def evaluate(
    run: Path,
    process: Process,
    split: Split = "test",
    checkpoint: AnyPath | None = None,
    by: Sequence[Slice] = (),
    data: AnyPath | None = None,
    metric_options: MetricOptions | None = None,
) -> Results | None:
    """Scores a split and computes its metrics.

    Writes the predictions and their `results.json` to `predictions_folder`, and the metrics to
    TensorBoard unless `data` is given. The results of the best checkpoint on the run's own test
    split are copied to the run folder.

    Args:
        run: a run folder, or a checkpoint in one.
        process: this rank.
        split: the split to score.
        checkpoint: the checkpoint to use; None means the one with the best validation.
        by: slices of the rows besides the scenarios.
        data: another dataset folder, whose ids are matched by value, see `VocabularyAlignment`.
        metric_options: cutoff of the rankings and resamples for intervals.

    Returns:
        The results on rank 0, None on the others.

    Raises:
        FileNotFoundError: there is no run, no committed checkpoint or no such split.
        ValueError: the checkpoint, the store or the data do not fit the config.
    """
    run_dir, named = find_run(run)
    checkpoint = checkpoint or named
    config = load_run_config(run_dir)
    check_timestamps(data or config.dataset, by)
    out = predictions_folder(run_dir, split, checkpoint, data)
    trained = open_run(run_dir, process, checkpoint, data, config)
    results = score_split(trained, run_dir, process, split, out, by, metric_options)
    if results is None:
        return None
    if split == "test" and checkpoint is None and data is None:
        save_results(results, run_dir)
    if data is None:
        write_tensorboard(results, run_dir)
    return results


def score_split(
    trained: TrainedRun,
    run_dir: Path,
    process: Process,
    split: Split,
    out: Path,
    by: Sequence[Slice] = (),
    metric_options: MetricOptions | None = None,
) -> Results | None:
    """Writes the predictions of a split and their `results.json` to `out`; every rank calls this.

    Returns:
        The results on rank 0, None on the others.
    """
    with shared_folder(out, PREDICTIONS) as folder:
        _predict(trained, run_dir, process, split, out, folder)
        if not process.is_main:
            return None
        config, scored = trained.config, trained.scored
        slices = row_groups(config.dataset, split, by, config.faults, scored)
        options = metric_options or MetricOptions()
        results = evaluate_predictions(folder, trained.schema, options, slices)
        other_data = None if scored.alignment is None else str(scored.dataset)
        update = {
            "history": _history(trained),
            "data": other_data,
            "precision": config.trainer.precision,
        }
        results = results.model_copy(update=update)
        save_results(results, folder)
    return results


def _predict(
    trained: TrainedRun, run_dir: Path, process: Process, split: Split, out: Path, folder: Path
) -> None:
    """Writes the predictions to `folder`, later `out`, and reports bad rows."""
    config, scored = trained.config, trained.scored
    loader = build_loader(
        config,
        split,
        process,
        trained.knowledge,
        eval_batch(config, process.world_size),
        shuffle=False,
        extra=list(truth_columns(scored.dataset, split, trained.schema).values()),
        scored=scored,
    )
    excluded = predict(trained, loader, process, split, folder)
    if not process.is_main:
        return
    quarantine = loader.reader.quarantine
    if scored.alignment is None:
        report_bad_rows(excluded, quarantine, run_dir, split)
    else:
        report_bad_rows(excluded, quarantine, folder, split, final_folder=out)


def _history(run: TrainedRun) -> ResultHistory | None:
    """Returns the ordered histories that a run reads."""
    index = run.knowledge.sequences
    if index is None:
        return None
    return ResultHistory(
        protocol=index.manifest.protocol,
        events=index.manifest.events,
        max_len=run.config.sequence.max_len,
    )


def write_tensorboard(results: Results, run_dir: Path) -> None:
    """Adds the metrics of an evaluation to the run's TensorBoard."""
    with SummaryWriter(str(run_dir / "tensorboard")) as board:
        for name, value, step in results.logged_values():
            board.add_scalar(name, value, step)
