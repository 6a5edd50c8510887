"""Comparison of an export with its run: both score the same rows."""

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from msrec.data.histories.reader import HistoryReader
from msrec.data.schema import Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predict import RunScores
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.serving.export_folder import Parity
from msrec.launch.serving.request_histories import RequestHistories
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import TrainedRun, unwrapped
from msrec.model.metrics.exact import exact_metrics
from msrec.model.tasks import Task

LARGEST_AUC_DIFFERENCE = 1e-4
"""Largest difference of the AUC on many rows."""
LARGEST_MEAN_DIFFERENCE = 5e-3
"""Largest mean difference of a score; int8 tables move scores by about 1e-4."""
CALIBRATED = 3
"""Factor on the allowed difference of AUCs of calibrated scores. Isotonic maps give many rows the
same score, and rounding moves rows into and out of such a tie."""


def compare_with_run(run: TrainedRun, scorer: Scorer, process: Process, split: Split) -> Parity:
    """Scores a split with a run and with its export.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: the scores differ by more than `LARGEST_MEAN_DIFFERENCE` on average, or the
            AUCs of a label by more than `allowed_auc_difference`; or no AUC is defined.
    """
    tasks = unwrapped(run.model).loss.scales.tasks
    labels, run_scores, export_scores = _score_with_both(run, scorer, process, split)
    factor = CALIBRATED if run.calibration is not None else 1
    return compare_scores(tasks, labels, run_scores, export_scores, split, factor)


def compare_scores(
    tasks: Sequence[Task],
    labels: np.ndarray,
    run_scores: np.ndarray,
    export_scores: np.ndarray,
    split: Split,
    factor: float = 1,
) -> Parity:
    """Compares the scores of a run and of its export; errors as in `compare_with_run`.

    `factor` multiplies the allowed difference of AUCs.

    Shape:
        labels: (N, T), NaN where a label is missing.
        run_scores, export_scores: (N, C), the scores of the labels first.
    """
    aucs, allowed = {}, {}
    for number, task in enumerate(tasks):
        label = labels[:, number]
        has = ~np.isnan(label)
        if not task.is_binary or len(np.unique(label[has])) < 2:
            continue
        of_run = _auc(run_scores[has, number], label[has])
        aucs[task.name] = (of_run, _auc(export_scores[has, number], label[has]))
        allowed[task.name] = factor * allowed_auc_difference(label[has])
    if any(task.is_binary for task in tasks) and not aucs:
        raise ValueError(
            f"the {split} split must hold both classes of a label, so that an export can be "
            f"compared with its run; all of its {len(labels)} rows have the same one. Choose "
            "another: --split valid."
        )
    difference = np.abs(export_scores.astype(np.float64) - run_scores)
    is_probability = [task.is_binary for task in tasks]
    for column in range(difference.shape[1]):
        if column >= len(tasks) or not is_probability[column]:
            difference[:, column] /= max(float(run_scores[:, column].std()), 1e-12)
    parity = Parity(
        split=split,
        rows=len(labels),
        auc=aucs,
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean(axis=0).max()),
    )
    far = [name for name, (one, two) in aucs.items() if abs(two - one) > allowed[name]]
    if far or parity.mean_difference > LARGEST_MEAN_DIFFERENCE:
        shown = [f"{n} {one:.6f} and {two:.6f}" for n, (one, two) in aucs.items()]
        limits = [f"{value:.2g}" for value in allowed.values()]
        raise ValueError(
            f"an export must have the scores of its run within {LARGEST_MEAN_DIFFERENCE:g} on "
            f"average and the AUC of each label within {', '.join(limits)}; on {len(labels):,} "
            f"{split} rows the scores differ by {parity.mean_difference:.2g} on average, and the "
            f"AUCs of run and export are {', '.join(shown)}. Nothing was written: try --tables "
            "float16 or --dense float32."
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
    """Returns labels (rows, T), scores of the run and of the export, (rows, C), float32 each."""
    loader = build_loader(
        run.config, split, process, run.knowledge, eval_batch(run.config, 1), shuffle=False
    )
    # The export holds all events of a user; a row of the split must see the earlier ones only.
    histories = None
    if scorer.manifest.sequence is not None:
        assert run.knowledge.sequences is not None
        max_len = run.config.sequence.max_len
        histories = HistoryReader(run.knowledge.sequences, max_len, split)
    labels, run_scores, export_scores = [], [], []
    scores = RunScores(run)
    outcomes = BatchPipeline(run.model, process).outcomes_on_host(loader.batches())
    for outcome in track(outcomes, "compare with the run", total=len(loader), transient=True):
        row_id = outcome.row_id.numpy()
        real = row_id >= 0  # padding and excluded rows have -1
        if not real.any():
            continue
        labels.append(outcome.label.numpy()[real])
        run_scores.append(scores.array(outcome)[real])
        columns = loader.reader.take(row_id[real])
        rows = scorer.encoder.encode(columns)
        if histories is not None:
            user, item = (columns[side].astype(np.int64) for side in ("user", "item"))
            events = histories.events(row_id[real], user, item, None)
            rows = rows.with_histories(RequestHistories.of_batch(events, item))
        export_scores.append(scorer.score(rows))
    return tuple(map(np.concatenate, (labels, run_scores, export_scores)))


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    same_group = np.zeros(len(label), dtype=np.int64)
    auc = exact_metrics(score, label, same_group, same_group, ["all"]).all.auc
    assert auc is not None
    return auc
