"""Reads the histories of the rows of batches from an index."""

import numpy as np
import numpy.typing as npt
import torch

from msrec.data.features.columns import slice_positions
from msrec.data.histories.index import HistoryIndex
from msrec.data.loading.batch import ITEM, HistoryEvents, keyed_bags
from msrec.data.schema import Split

Longs = npt.NDArray[np.int64]
MARKED_ITEMS_PER_ID = 64
"""Items of the dataset per id of a batch up to which distinct ids are found by marks."""


class HistoryReader:
    """Histories of the rows of a split, or of rows of other files, as tensors.

    The index stores the end of the history of each row of a split. A row of another file has the
    whole history of its user in the index: all events with the protocol `stream`, those of the
    training split with `frozen`. If the file has timestamps and the index is ordered by them, the
    row sees only the events with a strictly smaller timestamp. An unknown user has no history.

    Args:
        index: of the dataset whose users and items the rows name. With `data=...` this is the
            dataset that is scored; the items stay indices into its items.parquet.
        max_len: events of a history, the newest ones.
        split: the split of the rows; None for rows of other files.
        scenarios: (scenarios of the dataset,), int32, the run's id of each scenario; None if they
            are the same.
        equal_bags: whether to append empty bags to the items, up to the largest possible number,
            so that the batches of all ranks have as many.
    """

    def __init__(
        self,
        index: HistoryIndex,
        max_len: int,
        split: Split | None,
        scenarios: npt.NDArray[np.int32] | None = None,
        equal_bags: bool = False,
    ) -> None:
        # Plain views of the memory maps, because indexing the subclass is slower.
        self._items, self._labels, self._event_scenarios, self._times, self._starts = map(
            np.asarray, (index.items, index.labels, index.scenarios, index.times, index.starts)
        )
        self._ends = None if split is None else np.asarray(index.ends[split])
        self._has_times = index.manifest.order == "timestamp"
        self._max_len, self._scenarios, self._equal_bags = max_len, scenarios, equal_bags
        self._marks, self._numbers = np.zeros(0, np.bool_), np.zeros(0, np.int64)
        self._num_keys = len(self._starts)
        """Users, the unknown one included."""

    def events(self, rows: Longs, user: Longs, item: Longs, time: Longs | None) -> HistoryEvents:
        """Returns the histories of B rows; see `SequenceSource`. Padding has no history."""
        time = time if self._has_times else None
        # Padding counts as a row of an unknown user, all of which share an empty bag.
        user = np.where(rows < 0, -1, user)
        end = self._end_of(rows, user, time)
        # One number per (user, end): users are below num_keys.
        pairs, first_row, bag = np.unique(
            end * self._num_keys + (user + 1), return_index=True, return_inverse=True
        )
        # Histories in the order of their first rows, so that distinct ones need no lookup by row.
        order = np.argsort(first_row)
        pairs, bag = pairs[order], np.argsort(order)[bag]
        last, user = pairs // self._num_keys, pairs % self._num_keys - 1
        first = np.maximum(self._starts[user], last - self._max_len)
        lengths = np.where(user < 0, 0, last - first)
        positions = slice_positions(first, lengths)
        size, places = len(rows), self._max_len
        ids = np.empty(size + len(positions), np.int32)
        np.maximum(item, 0, out=ids[:size], casting="unsafe")
        # All positions are valid. With mode "clip" NumPy takes half the time: it checks no bounds.
        self._items.take(positions, mode="clip", out=ids[size:])
        distinct, numbers = self._distinct(ids)
        num_bags = (size * (1 + places) if self._equal_bags else len(distinct)) + 1
        bag_lengths = np.zeros(num_bags, np.int32)
        bag_lengths[: len(distinct)] = 1
        is_event = np.arange(places) >= places - lengths[:, None]
        events = np.full(is_event.shape, len(distinct), np.int64)
        events[is_event] = numbers[size:]
        scenario = np.full(is_event.shape, -1, np.int64)
        of_event = self._event_scenarios.take(positions, mode="clip")
        scenario[is_event] = of_event if self._scenarios is None else self._scenarios[of_event]
        label = np.zeros(is_event.shape, np.float32)
        label[is_event] = self._labels.take(positions, mode="clip")
        time_of_event = np.zeros(is_event.shape, np.int64)
        time_of_event[is_event] = self._times.take(positions, mode="clip")
        return HistoryEvents(
            items=keyed_bags(
                *([ITEM], torch.from_numpy(distinct), [len(distinct)]),
                stride=num_bags,
                lengths=torch.from_numpy(bag_lengths),
            ),
            candidate=torch.from_numpy(np.where(item < 0, len(distinct), numbers[:size])),
            bag=torch.from_numpy(bag),
            events=torch.from_numpy(events),
            scenario=torch.from_numpy(scenario),
            label=torch.from_numpy(label),
            time=torch.from_numpy(time_of_event),
            time_of_row=torch.from_numpy(np.zeros(size, np.int64) if time is None else time),
        )

    def _distinct(self, ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], Longs]:
        """Returns the distinct ids, ascending, and the position of each id among them."""
        num_items = int(ids.max(initial=0)) + 1
        if num_items > MARKED_ITEMS_PER_ID * len(ids):
            distinct, numbers = np.unique(ids, return_inverse=True)
            return distinct, numbers.astype(np.int64, copy=False)
        if num_items > len(self._marks):
            self._marks = np.zeros(num_items, np.bool_)
            self._numbers = np.zeros(num_items, np.int64)
        # Marks in a table of all items are many times faster than a sort of the ids.
        self._marks[ids] = True
        distinct = np.flatnonzero(self._marks).astype(np.int32)
        self._marks[distinct] = False
        self._numbers[distinct] = np.arange(len(distinct))
        return distinct, self._numbers[ids]

    def _end_of(self, rows: Longs, user: Longs, time: Longs | None) -> Longs:
        """Returns the end of the history of each row, (B,); 0 for an unknown user."""
        if self._ends is not None:
            end = self._ends[np.maximum(rows, 0)]
        elif time is None:
            end = self._starts[user + 1]
        else:
            end = self._first_not_before(user, time)
        return np.where(user < 0, 0, end)

    def _first_not_before(self, user: Longs, time: Longs) -> Longs:
        """Returns the first event of each user that is not before a time, by bisection, (B,)."""
        low, high = self._starts[user], self._starts[user + 1]
        while (is_open := low < high).any():
            middle = (low + high) // 2
            is_before = is_open & (self._times[np.where(is_open, middle, 0)] < time)
            low = np.where(is_before, middle + 1, low)
            high = np.where(is_open & ~is_before, middle, high)
        return low
