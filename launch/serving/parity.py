"""Does an export score as its run does? Both score the same rows."""

import numpy as np
import torch
from rich.progress import track

from msrec.data.schema import Split
from msrec.launch.distributed import Process
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.serving.export_folder import Parity
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import TrainedRun
from msrec.model.metrics.exact import exact_metrics
from msrec.model.ranker import Outcome

LARGEST_AUC_DIFFERENCE = 1e-4


def compare(run: TrainedRun, scorer: Scorer, process: Process, split: Split) -> Parity:
    """Score a split with both.

    Raises:
        FileNotFoundError: there is no such split.
        ValueError: the AUCs differ by more than `LARGEST_AUC_DIFFERENCE`, or there is none.
    """
    loader = build_loader(
        run.config, split, process, run.knowledge, eval_batch(run.config, 1), shuffle=False
    )
    labels, ours, theirs = [], [], []
    steps = track(loader.batches(), "compare with the run", total=len(loader), transient=True)
    for batch in steps:
        with torch.no_grad():
            outcome = Outcome(*run.model(batch.to(process.device))[1])
        row_id = outcome.row_id.cpu().numpy()
        real = row_id >= 0
        if not real.any():
            continue
        labels.append(outcome.label[:, 0].cpu().numpy()[real])
        ours.append(torch.sigmoid(outcome.logits[:, 0]).cpu().numpy()[real])
        theirs.append(scorer.score(scorer.maker.rows(loader.reader.take(row_id[real]))))
    label, run_score, score = map(np.concatenate, (labels, ours, theirs))
    aucs = [_auc(values, label) for values in (run_score, score)]
    if None in aucs:
        raise ValueError(
            f"the {split} split must hold both labels for an export to be compared with its run; "
            f"all of its {len(label)} rows have one. Name another: --split valid."
        )
    difference = np.abs(score.astype(np.float64) - run_score)
    found = Parity(
        split=split,
        rows=len(label),
        auc_run=aucs[0],
        auc_export=aucs[1],
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
    )
    if abs(found.auc_difference) >= LARGEST_AUC_DIFFERENCE:
        raise ValueError(
            f"an export must have the AUC of its run within {LARGEST_AUC_DIFFERENCE:g}; on "
            f"{found.rows:,} {split} rows the run has {found.auc_run:.6f} and the export "
            f"{found.auc_export:.6f}. Nothing was written: try --tables float16, --dense "
            "float32 or more rows."
        )
    return found


def _auc(score: np.ndarray, label: np.ndarray) -> float | None:
    one = np.zeros(len(label), dtype=np.int64)
    return exact_metrics(score, label, one, one, ["all"]).all.auc
