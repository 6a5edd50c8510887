"""Evaluate a run: score a split with its best checkpoint, then exact metrics of what was scored."""

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predict import predict, truth_column
from msrec.launch.evaluation.predictions import load_predictions
from msrec.launch.evaluation.results import Results, results_of, save_results
from msrec.launch.evaluation.slices import Slice, check_clock, slice_rows
from msrec.launch.evaluation.tensorboard import write_tensorboard
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.trained_run import find_run, load_run_config, open_run
from msrec.launch.training.skipped_rows import report_bad_rows
from msrec.model.metrics.exact import MetricOptions


def predictions_folder(
    run: Path, split: Split, checkpoint: Path | None = None, data: AnyPath | None = None
) -> Path:
    """Where predictions of a run are kept, each kind apart from all others.

    Args:
        run: a run folder.
        split: which rows.
        checkpoint: which weights, where others than those with the best validation are asked for.
        data: another dataset folder than the run's own.

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
    checkpoint: Path | None = None,
    by: Sequence[Slice] = (),
    data: AnyPath | None = None,
    judging: MetricOptions | None = None,
) -> Results | None:
    """Predict and judge a split.

    Writes predictions with `results.json` in it, see `predictions_folder`; TensorBoard gets the
    same numbers. The results of the run's
    best checkpoint on its own test split stand in the run folder too.

    Args:
        run: a run folder, or a checkpoint in one.
        process: this rank.
        split: which rows.
        checkpoint: which weights; None takes the one with the best validation.
        by: slices of the rows besides the scenarios.
        data: another dataset folder, whose ids are matched by value, see `VocabularyAlignment`.
        judging: places of the rankings and the making of intervals.

    Returns:
        The results on rank 0, None on the others.

    Raises:
        FileNotFoundError: there is no run, no committed checkpoint or no such split.
        ValueError: the checkpoint, the store or the data do not fit the config.
    """
    run_dir, named = find_run(run)
    checkpoint = checkpoint or named
    config = load_run_config(run_dir)
    check_clock(data or config.dataset, by)
    restored = open_run(run_dir, process, checkpoint, data, config)
    schema, dataset = restored.schema, restored.scored.dataset
    loader = build_loader(
        config,
        split,
        process,
        restored.knowledge,
        eval_batch(config, process.world_size),
        shuffle=False,
        extra=truth_column(dataset, split),
        scored=restored.scored,
    )
    out = predictions_folder(run_dir, split, checkpoint, data)
    bad = predict(restored.model, loader, schema, process, dataset, restored.checkpoint, split, out)
    if not process.is_main:
        return None
    report_bad_rows(bad, loader.reader.quarantine, run_dir if data is None else out, split)
    predictions = load_predictions(out)
    slices = slice_rows(predictions, config.dataset, by, config.faults, restored.scored)
    results = results_of(predictions, schema, judging or MetricOptions(), slices)
    if data is not None:
        results = results.model_copy(update={"data": str(data)})
    saved = save_results(results, out)
    if data is None:
        write_tensorboard(results, run_dir)
    if split == "test" and checkpoint is None and data is None:
        shutil.copyfile(saved, run_dir / saved.name)
    return results
