"""The batch that travels from the loader through the train pipeline to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


class EntityVectors(NamedTuple):
    """Vectors of the distinct users (or items) of a batch, from a knowledge store.

    Shape:
        ids: (U,), int64, ascending, indices into users.parquet (items.parquet).
        vectors: (U, H), float32 or float16 as stored; (U, 0) without a store.
        has: (U,), float32, 0 if the store has no vector and the policy filled it in.
        inverse: (B,), int64 in [0, U), position of each row's user (item) in `ids`.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    has: torch.Tensor
    inverse: torch.Tensor


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

    Rows with the same user and the same end share a history, so that the U distinct histories of a
    batch are looked up once. With K = 2::

                         row 0 (user 7)   row 1 (user 3)   row 2 (user 7)
        candidate        12               40               31
        history          5, 12            none             as row 0
        bag              0                1                0
        items            [12] [40] [31]   [5] [12] [] []   [] []     B bags, U * K, padding

    Every place has a bag of its own, of length 0 or 1, so that the kernels for pooled tables look
    items up; those for sequences are many times slower on CPUs. All ranks have B * (1 + K) bags.

    Shape:
        items: key "item", B * (1 + K) bags, int32 indices into items.parquet: the row's item (0 for
            an item that is not in items.parquet, which is -1 in `Batch.item`), then K places of
            each history, newest event last and empty places first, then (B - U) * K empty bags.
        bag: (B,), int64 in [0, U), the history of each row; `arange(B)` if U is B.
        scenario: (U, K), int64 in [0, S), of each event; -1 in an empty place.
        label: (U, K), float32, first label of each event; 0 in an empty place.
        time: (U, K), int64, timestamp of each event, or its number with the order `rows`.
        time_of_row: (B,), int64, timestamp of each row; 0 without timestamps.
    """

    items: KeyedJaggedTensor
    bag: torch.Tensor
    scenario: torch.Tensor
    label: torch.Tensor
    time: torch.Tensor
    time_of_row: torch.Tensor


ITEM = "item"
"""Key of `HistoryEvents.items`."""
NO_EVENTS = HistoryEvents(
    items=KeyedJaggedTensor(
        keys=[ITEM],
        values=torch.zeros(0, dtype=torch.int32),
        lengths=torch.zeros(0, dtype=torch.int32),
    ),
    bag=torch.zeros(0, dtype=torch.int64),
    scenario=torch.zeros(0, 0, dtype=torch.int64),
    label=torch.zeros(0, 0),
    time=torch.zeros(0, 0, dtype=torch.int64),
    time_of_row=torch.zeros(0, dtype=torch.int64),
)
"""Value of `Batch.sequence` without sequences; it has no rows and always stays on the CPU."""


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # TorchRec's types are not followed
    """The rows of a global batch that belong to one rank.

    Shape:
        sparse: keys in the schema's order, B bags per key, int32 ids::

                        row 0      row 1
            user_id     [7]        [3]
            genres      [1, 4]     []        a multi-valued feature may be empty

            For each side with histories two more keys follow: `SIDE_history` has a bag for each
            distinct user (item) of the batch, then empty ones; `SIDE_own` has the row's own id in
            that history.

        dense: (B, num_dense), float32.
        scenario: (B,), int64 in [0, S).
        label: (B, T), float32 in {0, 1}.
        weight: (B,), float32; 0 for bad rows and for the padding of an epoch's last batch.
        row_id: (B,), int64, the row's position in its split; -1 for bad rows and padding.
        user: (B,), int64, index into users.parquet.
        item: (B,), int64, index into items.parquet.
        user_vectors, item_vectors: their vectors in the knowledge stores.
        past: their histories in `sparse`.
        sequence: the earlier events of the rows; `NO_EVENTS` unless the run reads sequences.
    """

    sparse: KeyedJaggedTensor
    dense: torch.Tensor
    scenario: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    row_id: torch.Tensor
    user: torch.Tensor
    item: torch.Tensor
    user_vectors: EntityVectors
    item_vectors: EntityVectors
    past: HistoryBags
    sequence: HistoryEvents = NO_EVENTS

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copies to a device."""
        return self._map(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copies to page-locked memory; needs CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Marks the tensors as used by a CUDA stream, for the allocator."""
        self._map(lambda tensor: tensor.record_stream(stream))

    def _map(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is NO_EVENTS:
                continue
            is_tuple = isinstance(value, EntityVectors | HistoryBags | HistoryEvents)
            changed[field.name] = type(value)(*map(change, value)) if is_tuple else change(value)
        return type(self)(**changed)
