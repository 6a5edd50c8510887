"""The batch that travels from the loader through the train pipeline to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


class EntityVectors(NamedTuple):
    """What a knowledge store says of the distinct users (or items) of a batch.

    Shape:
        ids: (U,), int64, ascending, indices into users.parquet (items.parquet).
        vectors: (U, H), float32 or float16 as stored; (U, 0) without a store.
        has: (U,), float32, 0 where the store has no vector and the policy filled it in.
        place: (B,), int64 in [0, U), of the row's among them.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    has: torch.Tensor
    place: torch.Tensor


class HistoryBags(NamedTuple):
    """Where the histories of a batch's users and items stand; H sides, 0 without histories.

    Shape:
        place: (H, B), int64, the bag of the row's user (item) among those of `SIDE_history`.
        others: (H, B), float32, rows in it besides the row itself.
    """

    place: torch.Tensor
    others: torch.Tensor


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # TorchRec's types are not followed
    """One rank's rows of a global batch.

    Shape:
        sparse: keys in the schema's order, B bags a key, int32 ids::

                        row 0      row 1
            user_id     [7]        [3]
            genres      [1, 4]     []        a multi-valued feature may be empty

            behind them, for each side with histories, `SIDE_history`, whose bags are those of the
            batch's distinct users (items), then empty ones, and `SIDE_own`, the row's own id in it.

        dense: (B, num_dense), float32.
        scenario: (B,), int64 in [0, S).
        label: (B, T), float32 in {0, 1}.
        weight: (B,), float32; 0 for the padding rows of an epoch's last batch.
        row_id: (B,), int64, the row's position in its split; -1 for padding.
        user: (B,), int64, index into users.parquet.
        item: (B,), int64, index into items.parquet.
        user_vectors, item_vectors: what the stores know of them.
        past: where their histories stand.
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

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copy to a device."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy to page-locked memory; only where CUDA is there."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that a CUDA stream uses these tensors."""
        self._map(lambda part: part.record_stream(stream))

    def _map(self, change: Callable[[Any], Any]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            whole = isinstance(part, EntityVectors | HistoryBags)
            changed[field.name] = type(part)(*map(change, part)) if whole else change(part)
        return type(self)(**changed)
