"""The training rows of every user and of every item, as bags of ids: what both did before."""

from collections.abc import Sequence
from copy import copy
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema

Side = Literal["user", "item"]
OTHER: dict[Side, Side] = {"user": "item", "item": "user"}


class _Bags(NamedTuple):
    """starts (n + 1,), int64; ids (N,), int32; has_own (rows,), bool: is a row in its bag?"""

    starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    has_own: npt.NDArray[np.bool_]


class BehaviourHistory:
    """Bags of a user's (an item's) training rows.

    A row is the id `other * levels + level`: which item (user) it was, and how many of the row's
    labels are 1. With the labels rating > 1, > 2, > 3 and > 4 the level is the number of stars less
    one; with one label it is that label.

    Memory: 5 bytes a training row and side, 20 while it is built.

    Args:
        dataset: the dataset folder; only its training split is read.
        schema: of the dataset.
        of: whose bags.
        max_len: rows of a bag, the newest; None keeps all.
        faults: what to do with rows that break the schema; those left out stand in no bag.

    Raises:
        FileNotFoundError, ValueError: of the files; or a table of so many ids has no int32 ids.
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
        self._labels = schema.labels
        stamp = [schema.timestamp] if schema.timestamp else []
        only = ["user", "item", *schema.labels, *stamp]
        files = SplitReader(dataset, schema, "train", only=only, faults=faults)
        columns = files.read()
        good = ~columns[BAD] if BAD in columns else None
        level = self.level(columns)
        time = columns[schema.timestamp] if schema.timestamp else None
        self._bags: dict[Side, _Bags] = {}
        for side in self.of:
            entity, other = columns[side], columns[OTHER[side]]
            ids = (other * np.int32(self.levels) + level).astype(np.int32)
            self._bags[side] = _bags(entity, ids, time, schema.size_of(side), max_len, good)
        self._places: dict[Side, npt.NDArray[np.int64]] = {}

    def for_entities(self, places: dict[Side, npt.NDArray[np.int64]]) -> Self:
        """The same bags for users and items of another dataset.

        Args:
            places: the index here of each of its users and items, -1 for those who are new: their
                bags are empty.
        """
        moved = copy(self)
        moved._places = places
        return moved

    def level(self, columns: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.int32]:
        """How many labels of each row are 1, (rows,), int32."""
        total = np.sum([columns[name] for name in self._labels], axis=0)
        return np.asarray(total, dtype=np.int32)

    def bags(
        self, side: Side, entities: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The bags of some users or items.

        Shape:
            entities: (U,), int64; -1 for one that is not in the dataset, whose bag is empty.
            returns: ids, (sum of lengths,), int32, and lengths, (U,), int32.
        """
        starts, ids, _ = self._bags[side]
        if self._places:
            entities = self._places[side][entities]
        is_known = entities >= 0
        first = starts[entities * is_known]
        lengths = (starts[entities * is_known + 1] - first) * is_known
        shift = np.repeat(first - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return ids[np.arange(len(shift)) + shift], lengths.astype(np.int32)

    def has_own(self, side: Side, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether training rows stand in the bag of their own user or item.

        Shape:
            rows: (n,), int64 row ids of the training split; -1 stands in none.
        """
        return self._bags[side].has_own[np.maximum(rows, 0)] & (rows >= 0)


def levels(schema: Schema) -> int:
    """How many levels a row may have.

    Raises:
        ValueError: ids of users or items with a level do not fit int32.
    """
    found = len(schema.labels) + 1
    for what, number in (("items", schema.num_items), ("users", schema.num_users)):
        if number * found >= 2**31:
            raise ValueError(
                f"a history must have fewer than {2**31} ids; {number} {what} with {found} levels "
                "have more. Leave `history.of` empty."
            )
    return found


def _bags(
    entity: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int32],
    time: npt.NDArray[np.int64] | None,
    size: int,
    max_len: int | None,
    good: npt.NDArray[np.bool_] | None,
) -> _Bags:
    order = np.argsort(entity, kind="stable") if time is None else np.lexsort((time, entity))
    has_own = np.ones(len(entity), dtype=np.bool_) if good is None else good.copy()
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
