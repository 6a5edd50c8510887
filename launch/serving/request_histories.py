"""Histories of the rows of requests: those of an export, or one that a request carries."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.event_rows import EncodedEvents
from msrec.data.loading.batch import HistoryEvents

Longs = npt.NDArray[np.int64]


class HistoryTensors(NamedTuple):
    """Histories as positions in a table of M distinct items; M is an empty place.

    Shape:
        items: (M,), int64, indices into items.parquet.
        candidate, bag: (B,), int64.
        events, scenario: (U, K), int64; U is at least 2.
        label: (U, K), float32.
    """

    items: Longs
    candidate: Tensor
    bag: Tensor
    events: Tensor
    scenario: Tensor
    label: Tensor


class RequestHistories(NamedTuple):
    """Candidates and histories of n rows, which share U histories of K places.

    Shape:
        candidate: (n,), int64, item of each row; -1 if the export does not know it.
        bag: (n,), int64 in [0, U), the history of each row.
        items: (U, K), int32, newest event last; -1 in an empty place.
        scenario: (U, K), int64; -1 in an empty place.
        label: (U, K), float32.
    """

    candidate: Longs
    bag: Longs
    items: npt.NDArray[np.int32]
    scenario: Longs
    label: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, num_histories: int, places: int, candidate: Longs, bag: Longs) -> Self:
        """Returns histories without events."""
        shape = (num_histories, places)
        items, scenario = np.full(shape, -1, np.int32), np.full(shape, -1, np.int64)
        return cls(candidate, bag, items, scenario, np.zeros(shape, np.float32))

    @classmethod
    def of_batch(cls, events: HistoryEvents, item: Longs) -> Self:
        """Returns the histories of a batch whose rows have the items `item`."""
        ids = np.append(events.items.values().numpy(), np.int32(-1))
        bag, scenario, label = (
            part.numpy() for part in (events.bag, events.scenario, events.label)
        )
        return cls(item, bag, ids[events.events.numpy()], scenario, label)

    @classmethod
    def join(cls, requests: Sequence[Self]) -> Self:
        """Returns the rows of several requests, in order."""
        starts = np.cumsum([0, *(len(request.items) for request in requests)])
        moved = [r._replace(bag=r.bag + s) for r, s in zip(requests, starts, strict=False)]
        return cls(*map(np.concatenate, zip(*moved, strict=True)))

    def cut(self, rows: slice) -> Self:
        """Returns some rows and their histories."""
        used, bag = np.unique(self.bag[rows], return_inverse=True)
        return type(self)(
            candidate=self.candidate[rows],
            bag=bag,
            items=self.items[used],
            scenario=self.scenario[used],
            label=self.label[used],
        )

    def tensors(self) -> HistoryTensors:
        """Returns the tensors of at least one row."""
        histories = self
        if len(self.items) == 1:  # torch.export treats a size of 1 as a constant
            spare = RequestHistories.empty(1, self.items.shape[1], self.candidate[:0], self.bag[:0])
            histories = RequestHistories.join([self, spare])
        ids = np.concatenate([histories.candidate, histories.items.ravel()], dtype=np.int64)
        distinct = np.unique(ids)
        distinct = distinct[np.searchsorted(distinct, 0) :]
        if not len(distinct):
            distinct = np.zeros(1, np.int64)
        numbers = np.where(ids < 0, len(distinct), np.searchsorted(distinct, ids))
        num_rows = len(histories.candidate)
        return HistoryTensors(
            items=distinct,
            candidate=torch.from_numpy(numbers[:num_rows]),
            bag=torch.from_numpy(histories.bag),
            events=torch.from_numpy(numbers[num_rows:].reshape(histories.items.shape)),
            scenario=torch.from_numpy(histories.scenario),
            label=torch.from_numpy(histories.label),
        )


class EventCounts(NamedTuple):
    """Events of a history that a request carries.

    Attributes:
        used: events that the model reads.
        cut: older events than the newest ones that the model reads.
        unknown: events of items that the export does not know.
    """

    used: int
    cut: int
    unknown: int


class CarriedHistory(NamedTuple):
    """History that a request carries, newest event last, and the counts of its events.

    Shape:
        items: (K,), int32; at most the newest `max_len` events of known items.
        scenario: (K,), int64.
        label: (K,), float32.
    """

    items: npt.NDArray[np.int32]
    scenario: Longs
    label: npt.NDArray[np.float32]
    counts: EventCounts

    @classmethod
    def newest(cls, events: EncodedEvents, max_len: int) -> Self:
        """Returns the newest events of known items."""
        known = np.flatnonzero(events.item >= 0)
        kept = known[max(len(known) - max_len, 0) :]
        counts = EventCounts(len(kept), len(known) - len(kept), len(events.item) - len(known))
        return cls(
            items=events.item[kept],
            scenario=events.scenario[kept].astype(np.int64),
            label=events.label[kept],
            counts=counts,
        )

    def of_rows(self, item: Longs, max_len: int) -> RequestHistories:
        """Returns rows that all have this history."""
        bag = np.zeros(len(item), np.int64)
        histories = RequestHistories.empty(1, max_len, item, bag)
        first = max_len - len(self.items)
        histories.items[0, first:] = self.items
        histories.scenario[0, first:] = self.scenario
        histories.label[0, first:] = self.label
        return histories
