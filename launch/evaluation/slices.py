"""Groups of rows besides scenarios: by day, and by how much training knows of the user or item."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema, load_schema
from msrec.launch.build import ScoredDataset
from msrec.launch.evaluation.predictions import Predictions
from msrec.model.metrics.definitions import Array
from msrec.model.metrics.exact import Grouping

Slice = Literal["day", "user_history", "item_history"]
HISTORIES: tuple[Slice, ...] = ("user_history", "item_history")
SLICES: tuple[Slice, ...] = ("day", *HISTORIES)
MEANING: dict[str, str] = {
    "day": "day (UTC)",
    "user_history": "training rows of the row's user",
    "item_history": "training rows of the row's item",
}
EDGES = (0, 1, 5, 20, 50, 100, 200, 500)
"""Lowest number of training rows of each bucket; the last one is open."""
PER_DAY = {"s": 86_400, "ms": 86_400_000}


def bucket_names() -> list[str]:
    """The buckets' names.

    Example:
        >>> bucket_names()[:4], bucket_names()[-1]
        (['0', '1-4', '5-19', '20-49'], '500+')
    """
    names = [f"{low}-{high - 1}" for low, high in zip(EDGES, EDGES[1:], strict=False)]
    return ["0", *names[1:], f"{EDGES[-1]}+"]


def slice_rows(
    predictions: Predictions,
    trained: AnyPath,
    by: Sequence[Slice],
    faults: Policy = "fail",
    scored: ScoredDataset | None = None,
) -> dict[str, Grouping]:
    """The groups of each of `by`.

    Args:
        predictions: whose rows are sliced.
        trained: the dataset folder whose training rows count.
        by: slices.
        faults: what to do with rows that break the schema.
        scored: the dataset folder that was scored; None is `trained`.

    Raises:
        ValueError: days are asked for, and there is no clock.
    """
    dataset, alignment = scored or (trained, None)
    schema = load_schema(dataset)

    def column(name: str) -> Any:
        files = SplitReader(dataset, schema, predictions.commit.split, only=[name], faults=faults)
        return files.read()[name][predictions.row_id]

    found: dict[str, Grouping] = {}
    for name in by:
        if name == "day":
            check_clock(dataset, by)
            found[name] = _days(schema, column)
            continue
        side: Literal["user", "item"] = "user" if name == "user_history" else "item"
        own = load_schema(trained)
        train = SplitReader(trained, own, "train", only=[side], faults=faults)
        seen = np.bincount(train.read_good()[side], minlength=own.size_of(side))
        if alignment is not None:  # by key; who is new has no training rows
            seen = np.append(seen, 0)[alignment.entities(side)]
        places = np.searchsorted(EDGES, seen[column(side)], side="right") - 1
        found[name] = Grouping(bucket_names(), places)
    return found


def check_clock(dataset: AnyPath, by: Sequence[Slice]) -> None:
    """Refuse slices by day where nobody knows the day, before anything is scored.

    Raises:
        ValueError: the dataset has no clock.
    """
    if "day" not in by:
        return
    schema = load_schema(dataset)
    if schema.timestamp is None or schema.timestamp_unit is None:
        lacks = "timestamp" if schema.timestamp is None else "timestamp_unit (s or ms since 1970)"
        raise ValueError(
            f"{dataset} must say when a row was, for slices by day; its dataset.yaml has no "
            f"{lacks}. Name it there, or leave day out "
            "of --by."
        )


def _days(schema: Schema, column: Any) -> Grouping:
    assert schema.timestamp is not None
    assert schema.timestamp_unit is not None
    times: Array = column(schema.timestamp)
    days, places = np.unique(times // PER_DAY[schema.timestamp_unit], return_inverse=True)
    return Grouping(days.astype("datetime64[D]").astype(str).tolist(), places)
