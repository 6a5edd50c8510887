"""Metrics by how much the training split knows of a row's user or item."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from msrec.data.bad_rows import Policy
from msrec.data.parquet import SplitFiles
from msrec.data.paths import AnyPath
from msrec.data.schema import Schema
from msrec.launch.metrics import Metrics, exact_metrics
from msrec.launch.predictions import Predictions
from msrec.launch.ranking import Array, Ints

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


def buckets(
    predictions: Predictions,
    dataset: AnyPath,
    schema: Schema,
    by: Sequence[Slice],
    faults: Policy = "fail",
) -> dict[Slice, Ints]:
    """The bucket of each prediction, (N,), for each of `by`: how many training rows there are."""
    found = {}
    for name in by:
        column: Literal["user", "item"] = "user" if name == "user_history" else "item"
        train = SplitFiles(dataset, schema, "train", only=[column], faults=faults)
        rows = train.read_good()[column]
        seen = np.bincount(rows, minlength=schema.size_of(column))
        split = predictions.commit.split
        judged = SplitFiles(dataset, schema, split, only=[column], faults=faults)
        entity = judged.read()[column][predictions.row_id]
        found[name] = np.searchsorted(EDGES, seen[entity], side="right") - 1
    return found


def sliced(
    predictions: Predictions, score: Array, bucket: Mapping[Slice, Ints]
) -> dict[str, dict[str, Metrics]]:
    """Exact metrics per bucket of training rows; empty buckets are left out.

    Args:
        predictions: whose rows, labels and weights.
        score: what is judged, (N,): that of the predictions, or the true probability.
        bucket: as `buckets` gives it.

    Returns:
        slice -> bucket -> metrics.
    """
    p, found = predictions, dict[str, dict[str, Metrics]]()
    for name, places in bucket.items():
        metrics = exact_metrics(score, p.label, places, p.user, bucket_names(), p.weight)
        found[name] = {n: m for n, m in metrics.scenarios.items() if m.rows}
    return found
