"""Comparison of an export with its run: both score the same rows."""

import numpy as np
from rich.progress import track

from msrec.data.histories.reader import HistoryReader
from msrec.data.schema import Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predict import click_scores
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.serving.export_folder import Parity
from msrec.launch.serving.request_histories import RequestHistories
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import TrainedRun
from msrec.model.metrics.exact import exact_metrics

LARGEST_AUC_DIFFERENCE = 1e-4
"""Largest difference of the AUC on many rows."""
LARGEST_MEAN_DIFFERENCE = 5e-3
"""Largest mean difference of a score; int8 tables move scores by about 1e-4."""


def compare_with_run(run: TrainedRun, scorer: Scorer, process: Process, split: Split) -> Parity:
    """Scores a split with a run and with its export.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: the scores differ by more than `LARGEST_MEAN_DIFFERENCE` on average, or the
            AUCs by more than `allowed_auc_difference`; or the AUCs are not defined.
    """
    label, run_score, export_score = _score_with_both(run, scorer, process, split)
    auc_run, auc_export = _auc(run_score, label), _auc(export_score, label)
    if auc_run is None or auc_export is None:
        raise ValueError(
            f"the {split} split must hold both labels, so that an export can be compared with its "
            f"run; all of its {len(label)} rows have the same one. Choose another: --split valid."
        )
    difference = np.abs(export_score.astype(np.float64) - run_score)
    parity = Parity(
        split=split,
        rows=len(label),
        auc_run=auc_run,
        auc_export=auc_export,
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )
    allowed = allowed_auc_difference(label)
    if parity.mean_difference > LARGEST_MEAN_DIFFERENCE or abs(parity.auc_difference) > allowed:
        raise ValueError(
            f"an export must have the scores of its run within {LARGEST_MEAN_DIFFERENCE:g} on "
            f"average and its AUC within {allowed:.2g}; on {len(label):,} {split} rows the scores "
            f"differ by {parity.mean_difference:.2g} on average, the run has the AUC {auc_run:.6f} "
            f"and the export {auc_export:.6f}. Nothing was written: try --tables float16 or "
            "--dense float32."
        )
    return parity


def allowed_auc_difference(label: np.ndarray) -> float:
    """Returns the largest difference of two AUCs that rounding may cause.

    One pair of a positive and a negative row that changes its order moves the AUC by one over the
    number of such pairs, which is much on few rows. About one pair in a thousand has scores that
    are close enough; their changes partly cancel, so their sum grows with the root of the pairs.

    Args:
        label: (rows,), 0 or 1; has both.

    Example:
        >>> round(allowed_auc_difference(np.repeat([0.0, 1.0], [50, 10])), 4)
        0.0105
        >>> allowed_auc_difference(np.repeat([0.0, 1.0], 10_000))
        0.0001
    """
    positives = int(np.count_nonzero(label > 0))
    pairs = positives * (len(label) - positives)
    return max(LARGEST_AUC_DIFFERENCE, float(3 + 0.1 * np.sqrt(pairs)) / pairs)


def _score_with_both(
    run: TrainedRun, scorer: Scorer, process: Process, split: Split
) -> tuple[np.ndarray, ...]:
    """Returns label, score of the run and score of the export, (rows,), float32 each."""
    loader = build_loader(
        run.config, split, process, run.knowledge, eval_batch(run.config, 1), shuffle=False
    )
    # The export holds all events of a user; a row of the split must see the earlier ones only.
    histories = None
    if scorer.manifest.interest is not None:
        assert run.knowledge.sequences is not None
        max_len = run.config.sequence.max_len
        histories = HistoryReader(run.knowledge.sequences, max_len, split)
    labels, run_scores, export_scores = [], [], []
    outcomes = BatchPipeline(run.model, process).outcomes(loader.batches())
    for outcome in track(outcomes, "compare with the run", total=len(loader), transient=True):
        row_id = outcome.row_id.cpu().numpy()
        real = row_id >= 0  # padding and excluded rows have -1
        if not real.any():
            continue
        labels.append(outcome.label[:, 0].cpu().numpy()[real])
        run_scores.append(click_scores(outcome).cpu().numpy()[real])
        columns = loader.reader.take(row_id[real])
        rows = scorer.encoder.encode(columns)
        if histories is not None:
            user, item = (columns[side].astype(np.int64) for side in ("user", "item"))
            events = histories.events(row_id[real], user, item, None)
            rows = rows.with_histories(RequestHistories.of_batch(events, item))
        export_scores.append(scorer.score(rows))
    return tuple(map(np.concatenate, (labels, run_scores, export_scores)))


def _auc(score: np.ndarray, label: np.ndarray) -> float | None:
    same_group = np.zeros(len(label), dtype=np.int64)
    return exact_metrics(score, label, same_group, same_group, ["all"]).all.auc
