"""Columns of a window of batches -> one `Batch` after another, without a copy that is avoidable."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.features.columns import Columns, Scalars
from msrec.data.loading.batch import Batch, EntityVectors, HistoryBags
from msrec.data.loading.behaviour_history import OTHER, BehaviourHistory, Side
from msrec.data.schema import Schema

Bags = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Ids and lengths of the bags of a key."""


class VectorSource(Protocol):
    """What a batch takes from a level of a knowledge store."""

    dim: int

    def gather(self, ids: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(U,) indices -> vectors (U, H), float, and (U,) float32, 0 where there is none."""
        ...


def entity_vectors(ids: npt.NDArray[np.int64], vectors: VectorSource | None) -> EntityVectors:
    """The distinct ids of a batch with their vectors; nothing where there are no vectors.

    Shape:
        ids: (B,), int64.
    """
    if vectors is None:
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return EntityVectors(nothing[:0], torch.zeros(0, 0), torch.zeros(0), nothing)
    distinct, inverse = np.unique(ids, return_inverse=True)
    found, has = vectors.gather(distinct)
    return EntityVectors(torch.from_numpy(distinct), found, has, torch.from_numpy(inverse))


@dataclass(frozen=True)
class Collator:
    """What batches are made with.

    Args:
        schema: names features and labels, in order.
        user_vectors, item_vectors: vectors of the batch's distinct users and items; None leaves
            them out.
        history: training rows of the batch's distinct users and items; None leaves them out.
        is_train: whether the rows are those that `history` holds. A row is then excluded from its
            own history.
    """

    schema: Schema
    user_vectors: VectorSource | None = None
    item_vectors: VectorSource | None = None
    history: BehaviourHistory | None = None
    is_train: bool = False


class Window:
    """The rows of some consecutive batches of one rank, laid out so that a batch is a slice.

    Shape:
        rows: (W, B) row ids, -1 for padding.
        columns: of the W * B rows in that order; a padding row repeats a real one, weight 0.

    With `is_train`, the key `SIDE_own` names the row itself in its history, to be subtracted.

    Single-valued features are stored feature-major per batch, (W, F, B), which is the order of a
    KeyedJaggedTensor. Without multi-valued features and histories, a batch's values are one slice.
    """

    def __init__(self, collator: Collator, rows: npt.NDArray[np.int64], columns: Columns) -> None:
        schema, history, is_train = collator.schema, collator.history, collator.is_train
        self._schema = schema
        self._history, self._is_train = history, is_train
        self._rows = rows
        self._user_vectors, self._item_vectors = collator.user_vectors, collator.item_vectors
        self._shape = rows.shape
        self._scenario = self._grid(columns["scenario"], np.int64)
        self._user = self._grid(columns["user"], np.int64)
        self._item = self._grid(columns["item"], np.int64)
        self._label = self._side_by_side([columns[name] for name in schema.labels])
        self._dense = self._side_by_side([columns[name] for name in schema.dense])
        self._no_knowledge = entity_vectors(np.zeros(self._shape[1], np.int64), None)
        self._weight = (rows >= 0).astype(np.float32)
        self._multi = {
            f.name: (columns[f.name].offsets.to_numpy(), columns[f.name].values.to_numpy())
            for f in schema.sparse
            if f.multi
        }
        self._single = self._stacked([columns[f.name] for f in schema.sparse if not f.multi])
        self._keys = [f.name for f in schema.sparse]
        if history is not None:
            # Only a training row has to be taken out of a history, by its label's level.
            level = history.level(columns) if is_train else np.zeros(rows.size, np.int32)
            self._level = self._grid(level, np.int32)
            self._keys += [key for side in history.of for key in (f"{side}_history", f"{side}_own")]

    def __len__(self) -> int:
        return int(self._shape[0])

    def batch(self, number: int) -> Batch:
        """The window's batch of that number."""
        user, item = self._user[number], self._item[number]
        bags, past = self._past(number)
        return Batch(
            sparse=self._sparse(number, bags),
            dense=torch.from_numpy(self._dense[number]),
            scenario=torch.from_numpy(self._scenario[number]),
            label=torch.from_numpy(self._label[number]),
            weight=torch.from_numpy(self._weight[number]),
            row_id=torch.from_numpy(self._rows[number]),
            user=torch.from_numpy(user),
            item=torch.from_numpy(item),
            user_vectors=self._known(user, self._user_vectors),
            item_vectors=self._known(item, self._item_vectors),
            past=past,
        )

    def _known(self, ids: npt.NDArray[np.int64], vectors: VectorSource | None) -> EntityVectors:
        return self._no_knowledge if vectors is None else entity_vectors(ids, vectors)

    def _past(self, number: int) -> tuple[list[Bags], HistoryBags]:
        """Bags behind those of the schema's features, and where a row's own ones stand."""
        _, share = self._shape
        if self._history is None:
            return [], HistoryBags(torch.zeros(0, share, dtype=torch.int64), torch.zeros(0, share))
        history, bags, places, counts = self._history, list[Bags](), [], []
        entities: dict[Side, npt.NDArray[np.int64]] = {
            "user": self._user[number],
            "item": self._item[number],
        }
        for side in history.of:
            distinct, place = np.unique(entities[side], return_inverse=True)
            ids, found = history.bags(side, distinct)
            lengths = np.zeros(share, dtype=np.int32)
            lengths[: len(found)] = found
            own = np.zeros(share, dtype=np.bool_)
            if self._is_train:
                own = history.has_own(side, self._rows[number])
            own_ids = entities[OTHER[side]] * history.levels + self._level[number]
            bags += [(ids, lengths), (own_ids[own].astype(np.int32), own.astype(np.int32))]
            places.append(place)
            counts.append(lengths[place] - own)
        count = torch.from_numpy(np.stack(counts).astype(np.float32))
        return bags, HistoryBags(torch.from_numpy(np.stack(places)), count)

    def _sparse(self, number: int, bags: list[Bags]) -> KeyedJaggedTensor:
        _, share = self._shape
        ones = np.ones(share, dtype=np.int32)
        if not self._multi and not bags:
            values = self._single[number].reshape(-1)
            lengths = np.ones(len(values), dtype=np.int32)
        else:
            parts, sizes, singles = [], [], iter(self._single[number])
            for key in self._keys[: len(self._schema.sparse)]:
                if key in self._multi:
                    offsets, ids = self._multi[key]
                    cut = offsets[number * share : (number + 1) * share + 1]
                    parts.append(ids[cut[0] : cut[-1]])
                    sizes.append(np.diff(cut).astype(np.int32))
                else:
                    parts.append(next(singles))
                    sizes.append(ones)
            parts += [ids for ids, _ in bags]
            sizes += [lengths for _, lengths in bags]
            values, lengths = np.concatenate(parts), np.concatenate(sizes)
        return KeyedJaggedTensor(
            keys=self._keys, values=torch.from_numpy(values), lengths=torch.from_numpy(lengths)
        )

    def _grid(self, column: npt.NDArray[np.generic], dtype: type) -> npt.NDArray[np.generic]:
        return column.astype(dtype, copy=False).reshape(self._shape)

    def _stacked(self, columns: list[Scalars]) -> npt.NDArray[np.int32]:
        """Lay n columns out as (W, n, B)."""
        out = np.empty((self._shape[0], len(columns), self._shape[1]), dtype=np.int32)
        for place, column in enumerate(columns):
            out[:, place] = column.reshape(self._shape)
        return out

    def _side_by_side(self, columns: list[Scalars]) -> npt.NDArray[np.float32]:
        """Lay n columns out as (W, B, n)."""
        out = np.empty((*self._shape, len(columns)), dtype=np.float32)
        for place, column in enumerate(columns):
            out[..., place] = column.reshape(self._shape)
        return out
