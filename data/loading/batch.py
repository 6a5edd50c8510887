"""The batch that travels from the loader through the train pipeline to the model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from msrec.data.loading.row_counts import RowCounts


class EntityVectors(NamedTuple):
    """Vectors of the distinct users (or items) of a batch, from a knowledge store.

    Shape:
        ids: (U,), int64, ascending, indices into users.parquet (items.parquet).
        vectors: (U, H), float32 or float16 as stored; (U, 0) without a store, or if the model looks
            them up on its device, see `DenseArch.knowledge`.
        has: (U,), float32, 0 if the store has no vector and the policy filled it in.
        inverse: (B,), int64 in [0, U), position of each row's user (item) in `ids`.
        counts: (U,), int64, rows of each user (item), on the host; None if nobody counted them.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    has: torch.Tensor
    inverse: torch.Tensor
    counts: RowCounts | None = None


class HistoryBags(NamedTuple):
    """Positions and sizes of the histories of each row's user and item; H sides, or none.

    Shape:
        bag: (H, B), int64, the bag of the row's user (item) among those of `SIDE_history`.
        num_others: (H, B), float32, rows in the bag besides the row itself.
    """

    bag: torch.Tensor
    num_others: torch.Tensor


class HistoryEvents(NamedTuple):
    """Earlier events of the users of a batch, in the order of time; see `HistoryIndex`.

    Rows with the same user and the same end share a history, and an item that occurs several times
    is looked up once. With K = 3 (more empty bags may follow, see `HistoryReader`)::

                     row 0 (user 7)   row 1 (user 3)   row 2 (user 7)
        candidate    item 12          item 40          item 5
        history      items 5, 12      none             as row 0

        items        [5] [12] [40] []    M = 3 distinct items, and an empty bag
        candidate    [1, 2, 0]           positions in `items`
        bag          [0, 1, 0]           U = 2 distinct histories
        events       [[3, 0, 1],         positions in `items`; M is an empty place
                      [3, 3, 3]]

    Shape:
        items: key "item", M bags of length 1, int32 indices into items.parquet, ascending, and an
            empty bag, whose vector is zeros.
        candidate: (B,), int64 in [0, M], the item of each row; M is an item that is not in
            items.parquet (-1 in `Batch.item`).
        bag: (B,), int64 in [0, U), the history of each row; `arange(B)` if U is B.
        events: (U, K), int64 in [0, M], newest event last, empty places first.
        scenario: (U, K), int64 in [0, S), of each event; -1 in an empty place.
        label: (U, K), float32, first label of each event; 0 in an empty place.
        time: (U, K), int64, timestamp of each event, or its number with the order `rows`.
        time_of_row: (B,), int64, timestamp of each row; 0 without timestamps.
    """

    items: KeyedJaggedTensor
    candidate: torch.Tensor
    bag: torch.Tensor
    events: torch.Tensor
    scenario: torch.Tensor
    label: torch.Tensor
    time: torch.Tensor
    time_of_row: torch.Tensor


ITEM = "item"
"""Key of `HistoryEvents.items`."""


def keyed_bags(
    keys: list[str],
    values: torch.Tensor,
    length_per_key: list[int],
    stride: int,
    lengths: torch.Tensor | None = None,
) -> KeyedJaggedTensor:
    """Returns the bags of some keys, with all that TorchRec would else read back from the device.

    `permute`, `split` and the exchange of ids between ranks need the number of ids of each key.

    Shape:
        values: (sum of `length_per_key`,), int32, the ids of one key after those of another.
        lengths: (keys * stride,), int32, ids of each bag; None if each bag has one.

    Args:
        keys: names.
        values: ids.
        length_per_key: ids of each key.
        stride: bags of each key.
        lengths: ids of each bag.
    """
    if lengths is None:
        lengths = torch.ones(len(keys) * stride, dtype=torch.int32)
    return KeyedJaggedTensor(
        keys=keys,
        values=values,
        lengths=lengths,
        stride=stride,
        length_per_key=length_per_key,
        offset_per_key=[0, *itertools.accumulate(length_per_key)],
    )


@cache
def no_events() -> HistoryEvents:
    """Returns the value of `Batch.sequence` without sequences: no rows, always on the CPU.

    Made at its first use, not at import, because TorchRec then warns on stderr.
    """
    empty = torch.zeros(0, 0, dtype=torch.int64)
    return HistoryEvents(
        items=keyed_bags([ITEM], torch.zeros(0, dtype=torch.int32), [0], stride=0),
        candidate=torch.zeros(0, dtype=torch.int64),
        bag=torch.zeros(0, dtype=torch.int64),
        events=empty,
        scenario=empty,
        label=empty.float(),
        time=empty,
        time_of_row=torch.zeros(0, dtype=torch.int64),
    )


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # TorchRec's types are not followed
    """The rows of a global batch that belong to one rank.

    Shape:
        sparse: keys in the schema's order without managed features, B bags per key, int32 ids::

                        row 0      row 1
            user_id     [7]        [3]
            genres      [1, 4]     []        a multi-valued feature may be empty

            For each side with histories two more keys follow: `SIDE_history` has a bag for each
            distinct user (item) of the batch, then empty ones; `SIDE_own` has the row's own id in
            that history.

        dense: (B, num_dense), float32.
        scenario: (B,), int64 in [0, S).
        scenario_counts: (S,), int64, rows of each scenario; on the host.
        label: (B, T), float32; NaN in a row without the label.
        weight: (B,), float32; 0 for bad rows and for the padding of an epoch's last batch.
        label_weight: (B, T), float32, further weights of the labels; (B, 0) if all are 1.
        row_id: (B,), int64, the row's position in its split; -1 for bad rows and padding.
        user: (B,), int64, index into users.parquet.
        item: (B,), int64, index into items.parquet.
        user_vectors, item_vectors: their vectors in the knowledge stores.
        past: their histories in `sparse`.
        managed: (M, B), int64, numbers of the values of managed features, in the schema's order; 0
            for a missing value and in rows whose `row_id` is -1. They are not in `sparse`.
        sequence: the earlier events of the rows; `no_events()` unless the run reads sequences.
    """

    sparse: KeyedJaggedTensor
    dense: torch.Tensor
    scenario: torch.Tensor
    scenario_counts: RowCounts
    label: torch.Tensor
    weight: torch.Tensor
    label_weight: torch.Tensor
    row_id: torch.Tensor
    user: torch.Tensor
    item: torch.Tensor
    user_vectors: EntityVectors
    item_vectors: EntityVectors
    past: HistoryBags
    sequence: HistoryEvents = field(default_factory=no_events)
    managed: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copies to a device."""
        return self._map(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copies to page-locked memory, so that `to` need not wait; needs CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Marks the tensors as used by a CUDA stream, for the allocator."""
        self._map(lambda tensor: tensor.record_stream(stream))

    def _map(self, change: Callable[[Any], Any]) -> Self:
        """Changes all tensors; counts stay on the host."""

        def changed(value: Any) -> Any:
            if value is None or value is no_events() or isinstance(value, np.ndarray):
                return value
            is_tuple = isinstance(value, EntityVectors | HistoryBags | HistoryEvents)
            return type(value)(*map(changed, value)) if is_tuple else change(value)

        return type(self)(**{each.name: changed(getattr(self, each.name)) for each in fields(self)})
