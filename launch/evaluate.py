"""Evaluate a run: score a split with its best checkpoint, then exact metrics of what was scored."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from msrec.data.schema import Split
from msrec.launch.build import build_loader, eval_batch
from msrec.launch.left_out import keep_bad_rows
from msrec.launch.predict import predict, truth_column
from msrec.launch.predictions import load_predictions
from msrec.launch.process import Process
from msrec.launch.restore import restore
from msrec.launch.results import Results, results_of, save_results
from msrec.launch.slices import Slice, buckets, sliced


def evaluate(
    run_dir: Path,
    process: Process,
    split: Split = "test",
    checkpoint: Path | None = None,
    by: Sequence[Slice] = (),
) -> Results | None:
    """Predict and judge a split.

    Writes `predictions/<split>/` with `results.json` in it; of the test split that file stands in
    the run folder too.

    Args:
        run_dir: a run folder.
        process: this rank.
        split: which rows.
        checkpoint: which weights; None takes the one with the best validation.
        by: slices of the rows besides the scenarios.

    Returns:
        The results on rank 0, None on the others.

    Raises:
        FileNotFoundError: there is no run, no committed checkpoint or no such split.
        ValueError: the checkpoint, the store or the data do not fit the config.
    """
    run = restore(run_dir, process, checkpoint)
    config, schema = run.config, run.schema
    loader = build_loader(
        config,
        split,
        process,
        run.knowledge,
        eval_batch(config, process.world_size),
        shuffle=False,
        extra=truth_column(config.dataset, split),
    )
    out = run_dir / "predictions" / split
    bad = predict(run.model, loader, schema, process, config.dataset, run.checkpoint, split, out)
    if not process.is_main:
        return None
    keep_bad_rows(bad, loader.files.bad_rows, run_dir, split)
    predictions = load_predictions(out)
    bucket = buckets(predictions, config.dataset, schema, by, config.faults)
    slices = {"slices": sliced(predictions, predictions.score, bucket)}
    if predictions.p_click is not None:
        slices["best_slices"] = sliced(predictions, predictions.p_click, bucket)
    results = results_of(predictions, schema).model_copy(update=slices)
    saved = save_results(results, out)
    if split == "test":
        shutil.copyfile(saved, run_dir / saved.name)
    return results
