"""Columns of a window of batches -> one `Batch` after another, without a copy that is avoidable."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import Batch, Known, Past
from msrec.data.loading.behaviour_history import OTHER, Interactions, Side
from msrec.data.loading.split_reader import Columns, Scalars
from msrec.data.schema import Schema

Bags = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Ids and lengths of the bags of a key."""


class Vectors(Protocol):
    """What a batch takes from a level of a knowledge store."""

    dim: int

    def gather(self, ids: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(U,) indices -> vectors (U, H), float, and (U,) float32, 0 where there is none."""
        ...


def known(ids: npt.NDArray[np.int64], vectors: Vectors | None) -> Known:
    """The distinct ids of a batch with their vectors; nothing where there are no vectors.

    Shape:
        ids: (B,), int64.
    """
    if vectors is None:
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Known(nothing[:0], torch.zeros(0, 0), torch.zeros(0), nothing)
    distinct, inverse = np.unique(ids, return_inverse=True)
    found, has = vectors.gather(distinct)
    return Known(torch.from_numpy(distinct), found, has, torch.from_numpy(inverse))


class Window:
    """The rows of some consecutive batches of one rank, laid out so that a batch is a slice.

    Shape:
        rows: (W, B) row ids, -1 for padding.
        columns: of the W * B rows in that order; a padding row repeats a real one, weight 0.

    A training row does not stand in its own history: with `is_train` it is named as `SIDE_own`.

    Single-valued features stand feature-major per batch, (W, F, B), which is a KeyedJaggedTensor's
    own order, so that with no multi-valued feature and no history a batch's values are one slice.
    """

    def __init__(
        self,
        schema: Schema,
        rows: npt.NDArray[np.int64],
        columns: Columns,
        of_user: Vectors | None,
        of_item: Vectors | None,
        history: Interactions | None = None,
        is_train: bool = False,
    ) -> None:
        self._schema = schema
        self._history, self._is_train = history, is_train
        self._rows = rows
        self._of_user, self._of_item = of_user, of_item
        self._shape = rows.shape
        self._scenario = self._grid(columns["scenario"], np.int64)
        self._user = self._grid(columns["user"], np.int64)
        self._item = self._grid(columns["item"], np.int64)
        self._label = self._side_by_side([columns[name] for name in schema.labels])
        self._dense = self._side_by_side([columns[name] for name in schema.dense])
        self._no_knowledge = known(np.zeros(self._shape[1], np.int64), None)
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
            of_user=self._known(user, self._of_user),
            of_item=self._known(item, self._of_item),
            past=past,
        )

    def _known(self, ids: npt.NDArray[np.int64], vectors: Vectors | None) -> Known:
        return self._no_knowledge if vectors is None else known(ids, vectors)

    def _past(self, number: int) -> tuple[list[Bags], Past]:
        """Bags behind those of the schema's features, and where a row's own ones stand."""
        _, share = self._shape
        if self._history is None:
            return [], Past(torch.zeros(0, share, dtype=torch.int64), torch.zeros(0, share))
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
        return bags, Past(torch.from_numpy(np.stack(places)), count)

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
