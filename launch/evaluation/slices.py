"""Groups rows by day, and by the number of training rows of their user or item."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from msrec.data.io.paths import AnyPath
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.quarantine import Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema, Split, load_schema
from msrec.launch.evaluation.scored_rows.row_groups import RowGroups
from msrec.launch.loaders import ScoredDataset
from msrec.model.metrics.definitions import Array, Ints

Slice = Literal["day", "user_history", "item_history"]
HISTORIES: tuple[Slice, ...] = ("user_history", "item_history")
SLICES: tuple[Slice, ...] = ("day", *HISTORIES)
SCENARIO = "scenario"
SLICE_TITLES: dict[str, str] = {
    "day": "day (UTC)",
    "user_history": "training rows of the row's user",
    "item_history": "training rows of the row's item",
}
EDGES = (0, 1, 5, 20, 50, 100, 200, 500)
"""Lowest number of training rows of each bucket; the last bucket has no upper bound."""
TICKS_PER_DAY = {"s": 86_400, "ms": 86_400_000}
"""Unit of the timestamps -> timestamps per day."""


def bucket_names() -> list[str]:
    """Returns the names of the buckets of training rows.

    Example:
        >>> bucket_names()[:4], bucket_names()[-1]
        (['0', '1-4', '5-19', '20-49'], '500+')
    """
    names = [f"{low}-{high - 1}" for low, high in zip(EDGES, EDGES[1:], strict=False)]
    return ["0", *names[1:], f"{EDGES[-1]}+"]


def check_slices(names: Sequence[str]) -> list[Slice]:
    """Returns the names as slices; "scenario" is accepted and left out, since it is always shown.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in (SCENARIO, *SLICES):
            raise ValueError(
                f"by must name some of {', '.join((SCENARIO, *SLICES))}; got {name!r}."
            )
    slices: dict[str, Slice] = {name: name for name in SLICES}
    return [slices[name] for name in names if name in slices]


def row_groups(
    trained: AnyPath,
    split: Split,
    by: Sequence[Slice],
    faults: Policy = "fail",
    scored: ScoredDataset | None = None,
) -> dict[str, RowGroups]:
    """Returns the groups of the rows of a split, by slice.

    Args:
        trained: folder of the dataset whose training rows are counted.
        split: of the dataset that was scored.
        by: the slices.
        faults: policy for rows that break the schema.
        scored: the dataset that was scored; None means `trained`.

    Raises:
        ValueError: `by` has day, but the dataset has no timestamps.
    """
    dataset, alignment = scored or (trained, None)
    schema = load_schema(dataset)

    def reader(column: str) -> SplitReader:
        return SplitReader(dataset, schema, split, columns=[column], faults=faults)

    groups: dict[str, RowGroups] = {}
    for name in by:
        if name == "day":
            check_timestamps(dataset, by)
            groups[name] = _days(schema, reader)
            continue
        side: Side = "user" if name == "user_history" else "item"
        own = load_schema(trained)
        train = SplitReader(trained, own, "train", columns=[side], faults=faults)
        training_rows = np.zeros(own.size_of(side), np.int64)
        for columns in train.good_groups():
            training_rows += np.bincount(columns[side], minlength=len(training_rows))
        if alignment is not None:  # users and items that are new to the run have no training rows
            training_rows = np.append(training_rows, 0)[alignment.entities(side)]
        bucket = (np.searchsorted(EDGES, training_rows, side="right") - 1).astype(np.uint8)
        groups[name] = RowGroups(bucket_names(), _lookup(bucket, reader(side), side))
    return groups


def _lookup(bucket: Array, reader: SplitReader, side: Side) -> Callable[[Ints], Array]:
    return lambda row_id: bucket[reader.take(row_id)[side]]


def check_timestamps(dataset: AnyPath, by: Sequence[Slice]) -> None:
    """Refuses slices by day of a dataset without timestamps, before any row is scored.

    Raises:
        ValueError: `by` has day, but the dataset has no timestamps or no unit for them.
    """
    if "day" not in by:
        return
    schema = load_schema(dataset)
    if schema.timestamp is None or schema.timestamp_unit is None:
        missing = "timestamp" if schema.timestamp is None else "timestamp_unit (s or ms since 1970)"
        raise ValueError(
            f"{dataset} must have timestamps for slices by day; its dataset.yaml has no {missing}. "
            "Add it there, or leave day out of --by."
        )


def _days(schema: Schema, open_reader: Callable[[str], SplitReader]) -> RowGroups:
    assert schema.timestamp is not None
    assert schema.timestamp_unit is not None
    column, ticks = schema.timestamp, TICKS_PER_DAY[schema.timestamp_unit]
    reader = open_reader(column)
    days = np.unique(
        np.concatenate([np.unique(part[column] // ticks) for part in reader.good_groups()])
    )
    names: list[str] = days.astype("datetime64[D]").astype(str).tolist()
    return RowGroups(
        names, lambda row_id: np.searchsorted(days, reader.take(row_id)[column] // ticks)
    )
