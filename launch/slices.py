"""Metrics by how much the training split knows of a row's user or item."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msrec.data.parquet import SplitFiles
from msrec.data.schema import Schema
from msrec.launch.metrics import Metrics, exact_metrics
from msrec.launch.predictions import Predictions

Slice = Literal["user_history", "item_history"]
SLICES: tuple[Slice, ...] = ("user_history", "item_history")
EDGES = (0, 1, 5, 20, 50, 100, 200, 500)
"""Lowest number of training rows of each bucket; the last one is open."""


def bucket_names() -> list[str]:
    """The buckets' names.

    Example:
        >>> bucket_names()[:4], bucket_names()[-1]
        (['0', '1-4', '5-19', '20-49'], '500+')
    """
    names = [f"{low}-{high - 1}" for low, high in zip(EDGES, EDGES[1:], strict=False)]
    return ["0", *names[1:], f"{EDGES[-1]}+"]


def sliced(
    predictions: Predictions,
    dataset: Path,
    schema: Schema,
    by: Sequence[Slice],
    score: NDArray[np.float32] | None = None,
) -> dict[str, dict[str, Metrics]]:
    """Exact metrics per bucket of training rows, for each of `by`; empty buckets are left out.

    Args:
        predictions: of a split of the dataset.
        dataset: its folder.
        schema: of the dataset.
        by: whose training rows are counted.
        score: judged instead of the predictions' own, such as the true probability.

    Returns:
        slice -> bucket -> metrics.
    """
    found: dict[str, dict[str, Metrics]] = {}
    for name in by:
        column = name.removesuffix("_history")
        size = schema.num_users if column == "user" else schema.num_items
        rows = SplitFiles(dataset, schema, "train", only=[column]).read()[column]
        seen = np.bincount(rows, minlength=size)
        judged = SplitFiles(dataset, schema, predictions.commit.split, only=[column])
        entity = judged.read()[column][predictions.row_id]
        bucket = np.searchsorted(EDGES, seen[entity], side="right") - 1
        p, judged_score = predictions, predictions.score if score is None else score
        metrics = exact_metrics(judged_score, p.label, bucket, p.user, bucket_names(), p.weight)
        found[name] = {n: m for n, m in metrics.scenarios.items() if m.rows}
    return found
