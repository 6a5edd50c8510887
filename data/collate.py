"""Columns of a window of batches -> one `Batch` after another, without a copy that is avoidable."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.batch import Batch
from msrec.data.parquet import Columns, Scalars
from msrec.data.schema import Schema


class UserVectors(Protocol):
    """What a batch takes from the user level of a knowledge store."""

    dim: int

    def gather(self, users: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """(U,) user indices -> vectors (U, H), has_knowledge (U,), both float32."""
        ...


def own_ids(schema: Schema, columns: Columns) -> Columns:
    """The ids of a scenario's own copy of each table: id + scenario * rows of the table.

    Args:
        schema: of the files, tables in their size there.
        columns: of some rows, as `SplitFiles.take` gives them.

    Returns:
        All columns, those of sparse features shifted; int32.
    """
    scenario, own = columns["scenario"].astype(np.int32), dict(columns)
    for feature in schema.sparse:
        shift = scenario * np.int32(schema.tables[feature.table])
        column = columns[feature.name]
        if not feature.multi:
            own[feature.name] = column + shift
            continue
        offsets = column.offsets.to_numpy()
        values = column.values.to_numpy()[offsets[0] : offsets[-1]]
        shifted = values + np.repeat(shift, np.diff(offsets))
        own[feature.name] = pa.ListArray.from_arrays(offsets - offsets[0], shifted)
    return own


class Window:
    """The rows of some consecutive batches of one rank, laid out so that a batch is a slice.

    Shape:
        rows: (W, B) row ids, -1 for padding.
        columns: of the W * B rows in that order; a padding row repeats a real one, weight 0.

    Single-valued features stand feature-major per batch, (W, F, B), which is a KeyedJaggedTensor's
    own order, so that with no multi-valued feature a batch's values are one slice.
    """

    def __init__(
        self,
        schema: Schema,
        rows: npt.NDArray[np.int64],
        columns: Columns,
        knowledge: UserVectors | None,
    ) -> None:
        self._schema = schema
        self._rows = rows
        self._knowledge = knowledge
        self._shape = rows.shape
        self._scenario = self._grid(columns["scenario"], np.int64)
        self._user = self._grid(columns["user"], np.int64)
        self._label = self._side_by_side([columns[name] for name in schema.labels])
        self._dense = self._side_by_side([columns[name] for name in schema.dense])
        self._weight = (rows >= 0).astype(np.float32)
        self._multi = {
            f.name: (columns[f.name].offsets.to_numpy(), columns[f.name].values.to_numpy())
            for f in schema.sparse
            if f.multi
        }
        self._single = self._stacked([columns[f.name] for f in schema.sparse if not f.multi])
        self._keys = [f.name for f in schema.sparse]

    def __len__(self) -> int:
        return int(self._shape[0])

    def batch(self, number: int) -> Batch:
        """The window's batch of that number."""
        user = self._user[number]
        knowledge, user_index, has_knowledge = self._user_vectors(user)
        return Batch(
            sparse=self._sparse(number),
            dense=torch.from_numpy(self._dense[number]),
            scenario=torch.from_numpy(self._scenario[number]),
            label=torch.from_numpy(self._label[number]),
            weight=torch.from_numpy(self._weight[number]),
            row_id=torch.from_numpy(self._rows[number]),
            user=torch.from_numpy(user),
            knowledge=knowledge,
            user_index=user_index,
            has_knowledge=has_knowledge,
        )

    def _user_vectors(
        self, user: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._knowledge is None:
            return torch.zeros(0, 0), torch.zeros(len(user), dtype=torch.int64), torch.zeros(0)
        distinct, inverse = np.unique(user, return_inverse=True)
        vectors, present = self._knowledge.gather(distinct)
        return vectors, torch.from_numpy(inverse), present

    def _sparse(self, number: int) -> KeyedJaggedTensor:
        _, share = self._shape
        ones = np.ones(share, dtype=np.int32)
        if not self._multi:
            values = self._single[number].reshape(-1)
            lengths = np.ones(len(values), dtype=np.int32)
        else:
            parts, sizes, singles = [], [], iter(self._single[number])
            for key in self._keys:
                if key in self._multi:
                    offsets, ids = self._multi[key]
                    cut = offsets[number * share : (number + 1) * share + 1]
                    parts.append(ids[cut[0] : cut[-1]])
                    sizes.append(np.diff(cut).astype(np.int32))
                else:
                    parts.append(next(singles))
                    sizes.append(ones)
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
