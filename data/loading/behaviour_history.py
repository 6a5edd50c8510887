"""Histories of users and items: their training rows, as bags of ids."""

from collections.abc import Sequence
from copy import copy
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns, slice_positions
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema

Side = Literal["user", "item"]
OTHER: dict[Side, Side] = {"user": "item", "item": "user"}


class _Bags(NamedTuple):
    """Bags of all users or items, one after another.

    Shape:
        starts: (n + 1,), int64, first id of each bag.
        ids: (N,), int32.
        has_own: (training rows,), bool, whether a row is in the bag of its user (item).
    """

    starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    has_own: npt.NDArray[np.bool_]


class BehaviourHistory:
    """Bags of the training rows of each user (item).

    A row is stored as the id `other * levels + level`: its item (user), and the number of its
    binary labels that are 1. With the labels rating > 1, > 2, > 3 and > 4 the level is the number
    of stars less one; with one label it is that label.

    Memory: 5 bytes per training row and side, 20 while it is built.

    Args:
        dataset: the dataset folder; only its training split is read.
        schema: of the dataset.
        of: the sides that get bags.
        max_len: rows in a bag, the newest ones; None keeps all.
        faults: policy for rows that break the schema; excluded rows are in no bag.

    Raises:
        FileNotFoundError, ValueError: as `SplitReader`; or there are more ids than int32 holds.
    """

    def __init__(
        self,
        dataset: AnyPath,
        schema: Schema,
        of: Sequence[Side],
        max_len: int | None = None,
        faults: Policy = "fail",
    ) -> None:
        self.of = tuple(of)
        self.levels = levels(schema)
        self._labels = binary_labels(schema)
        timestamp = [schema.timestamp] if schema.timestamp else []
        names = ["user", "item", *self._labels, *timestamp]
        columns = SplitReader(dataset, schema, "train", names, faults).read()
        is_good = ~columns[BAD] if BAD in columns else None
        level = self.level(columns)
        time = columns[schema.timestamp] if schema.timestamp else None
        self._bags: dict[Side, _Bags] = {}
        for side in self.of:
            entity, other = columns[side], columns[OTHER[side]]
            ids = (other * np.int32(self.levels) + level).astype(np.int32)
            self._bags[side] = _bags(entity, ids, time, schema.size_of(side), max_len, is_good)
        self._indices: dict[Side, npt.NDArray[np.int64]] = {}

    def for_entities(self, indices: dict[Side, npt.NDArray[np.int64]]) -> Self:
        """Returns the same bags for the users and items of another dataset.

        Args:
            indices: index here of each user and item there, -1 for new ones, whose bags are empty.
        """
        history = copy(self)
        history._indices = indices
        return history

    def level(self, columns: Columns) -> npt.NDArray[np.int32]:
        """Returns the number of binary labels of each row that are 1, (rows,), int32."""
        total = np.sum([columns[name] == 1 for name in self._labels], axis=0)
        return np.asarray(total, dtype=np.int32)

    def bags(
        self, side: Side, entities: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Returns the bags of some users or items.

        Shape:
            entities: (U,), int64; -1 for one that is not in the dataset, whose bag is empty.
            returns: ids, (sum of lengths,), int32, and lengths, (U,), int32.
        """
        starts, ids, _ = self._bags[side]
        if self._indices:
            entities = self._indices[side][entities]
        is_known = entities >= 0
        first = starts[entities * is_known]
        lengths = (starts[entities * is_known + 1] - first) * is_known
        return ids[slice_positions(first, lengths)], lengths.astype(np.int32)

    def has_own(self, side: Side, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns whether training rows are in the bag of their own user or item.

        Shape:
            rows: (n,), int64 row ids of the training split; -1 is in no bag.
        """
        return self._bags[side].has_own[np.maximum(rows, 0)] & (rows >= 0)


def binary_labels(schema: Schema) -> list[str]:
    """Returns the labels that a level counts."""
    return [name for name in schema.labels if schema.label(name).kind == "binary"]


def levels(schema: Schema) -> int:
    """Returns the number of levels that a row may have.

    Raises:
        ValueError: ids of users or items with a level do not fit int32.
    """
    count = len(binary_labels(schema)) + 1
    for what, size in (("items", schema.num_items), ("users", schema.num_users)):
        if size * count >= 2**31:
            raise ValueError(
                f"a history must have fewer than {2**31} ids; {size} {what} with {count} levels "
                "have more. Leave `history.of` empty."
            )
    return count


def _bags(
    entity: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int32],
    time: npt.NDArray[np.int64] | None,
    size: int,
    max_len: int | None,
    is_good: npt.NDArray[np.bool_] | None,
) -> _Bags:
    order = np.argsort(entity, kind="stable") if time is None else np.lexsort((time, entity))
    has_own = np.ones(len(entity), dtype=np.bool_) if is_good is None else is_good.copy()
    order = order[has_own[order]]
    counts = np.bincount(entity[order], minlength=size)
    if max_len is not None and len(order):
        ends = np.cumsum(counts)
        from_end = ends[entity[order]] - 1 - np.arange(len(order))
        keep = from_end < max_len
        has_own[order[~keep]] = False
        order, counts = order[keep], np.minimum(counts, max_len)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _Bags(starts, ids[order], has_own)
