"""Rows of requests, encoded with the ids of an export's tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from msrec.data.features.columns import Columns
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.id_transforms import RareIds, apply_all, table_transforms

_NO_ROW_IDS = np.empty(0, dtype=np.int64)


class RequestTensors(NamedTuple):
    """Inputs of an export: `ids` and `offsets` for its tables, the others for its program.

    Shape:
        ids: (N,), int32, ordered by feature, then by row.
        offsets: (number of all features * B + 1,), int32.
        lengths: (B, F), float32, ids of each schema feature.
        dense: (B, num_dense), float32.
        scenario: (B,), int64.
    """

    ids: Tensor
    offsets: Tensor
    lengths: Tensor
    dense: Tensor
    scenario: Tensor


class RequestRows(NamedTuple):
    """Encoded rows, which are cheap to join with those of other requests.

    The features are those of the schema, then one per table of histories or LLM knowledge.

    Shape:
        ids: per feature (n,), int32, or (sum of lengths,) if it is multi-valued.
        lengths: per feature (n,), int32, or None if all are 1.
        dense: (n, num_dense), float32.
        scenario: (n,), int64.
    """

    ids: list[npt.NDArray[np.int32]]
    lengths: list[npt.NDArray[np.int32] | None]
    dense: npt.NDArray[np.float32]
    scenario: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows, not of fields."""
        return int(self.scenario.shape[0])

    @classmethod
    def join(cls, requests: Sequence[Self]) -> Self:
        """Returns the rows of several requests, in order."""
        if len(requests) == 1:
            return requests[0]
        ids, lengths = [], []
        for feature in range(len(requests[0].ids)):
            ids.append(np.concatenate([request.ids[feature] for request in requests]))
            parts = [part for request in requests if (part := request.lengths[feature]) is not None]
            lengths.append(np.concatenate(parts) if parts else None)
        dense = np.concatenate([request.dense for request in requests])
        scenario = np.concatenate([request.scenario for request in requests])
        return cls(ids, lengths, dense, scenario)

    def cut(self, start: int, end: int) -> Self:
        """Returns the rows from `start` up to `end`, without `end`."""
        rows = slice(start, end)
        ids = []
        for values, lengths in zip(self.ids, self.lengths, strict=True):
            if lengths is None:
                ids.append(values[rows])
            else:
                first = lengths[:start].sum()
                ids.append(values[first : first + lengths[rows].sum()])
        lengths_cut = [None if lengths is None else lengths[rows] for lengths in self.lengths]
        return type(self)(ids, lengths_cut, self.dense[rows], self.scenario[rows])

    def tensors(self, num_features: int) -> RequestTensors:
        """Returns the tensors of at least one row; `num_features` is F, those of the schema."""
        num_rows = len(self)
        ids = torch.from_numpy(np.concatenate(self.ids))
        dense, scenario = torch.from_numpy(self.dense), torch.from_numpy(self.scenario)
        if all(lengths is None for lengths in self.lengths):
            offsets = torch.arange(len(ids) + 1, dtype=torch.int32)
            return RequestTensors(ids, offsets, torch.ones(num_rows, num_features), dense, scenario)
        ones = np.ones(num_rows, dtype=np.int32)
        lengths = np.stack([ones if one is None else one for one in self.lengths])
        offsets = torch.zeros(lengths.size + 1, dtype=torch.int32)
        torch.cumsum(torch.from_numpy(lengths).flatten(), 0, out=offsets[1:])
        schema_lengths = torch.from_numpy(lengths[:num_features].T.astype(np.float32, order="C"))
        return RequestTensors(ids, offsets, schema_lengths, dense, scenario)


class RequestEncoder:
    """Encodes raw rows, or columns of a dataset, with the ids of an export's tables.

    Args:
        row_encoder: encodes raw rows with the ids of the dataset.
        scale, per_scenario: settings of the run's tables.
        rare: feature -> (rows of its table,), bool, ids that training replaced by row 0.
        sides: user or item for each table of histories or LLM knowledge, in the order of lookup.
    """

    def __init__(
        self,
        row_encoder: RowEncoder,
        scale: float,
        per_scenario: bool,
        rare: Mapping[str, npt.NDArray[np.bool_]],
        sides: Sequence[Side],
    ) -> None:
        self.row_encoder = row_encoder
        self.schema = row_encoder.schema
        self._transforms = [RareIds(rare), *table_transforms(self.schema, scale, per_scenario)]
        self._sides = sides

    def encode_json(self, rows: Sequence[Mapping[str, Any]], where: str) -> RequestRows:
        """Encodes raw rows that were parsed from JSON; see `RowEncoder.table`."""
        return self.encode_table(self.row_encoder.table(rows, where), where)

    def encode_table(self, table: pa.Table, where: str, first_row: int = 0) -> RequestRows:
        """Encodes a table of raw rows; see `RowEncoder.encode`."""
        return self.encode(self.row_encoder.encode(table, where, first_row))

    def encode(self, columns: Columns) -> RequestRows:
        """Encodes columns as `RowEncoder.encode` and `SplitReader.take` return them.

        Users and items that the dataset does not know have row 0 in their tables.
        """
        columns = apply_all(self._transforms, columns, _NO_ROW_IDS, epoch=0)
        ids: list[npt.NDArray[np.int32]] = []
        lengths: list[npt.NDArray[np.int32] | None] = []
        for feature in self.schema.sparse:
            column = columns[feature.name]
            if not feature.multi:
                ids.append(column)
                lengths.append(None)
                continue
            offsets = column.offsets.to_numpy()
            ids.append(column.values.to_numpy()[offsets[0] : offsets[-1]])
            lengths.append(np.diff(offsets).astype(np.int32, copy=False))
        for side in self._sides:
            ids.append(columns[side].astype(np.int32) + np.int32(1))
            lengths.append(None)
        scenario = columns["scenario"].astype(np.int64)
        dense = np.empty((len(scenario), len(self.schema.dense)), dtype=np.float32)
        for number, name in enumerate(self.schema.dense):
            dense[:, number] = columns[name]
        return RequestRows(ids, lengths, dense, scenario)
