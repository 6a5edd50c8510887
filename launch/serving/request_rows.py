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
from msrec.data.features.value_counts import CountedColumns
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.id_transforms import (
    IdTransform,
    RareIds,
    apply_all,
    table_transforms,
)
from msrec.data.loading.managed_rows import ManagedRows
from msrec.data.loading.semantic_ids import SemanticIds
from msrec.launch.serving.request_histories import (
    CarriedHistory,
    HistoryTensors,
    RequestHistories,
)
from msrec.launch.serving.sequence_files import UserHistories

_NO_ROW_IDS = np.empty(0, dtype=np.int64)


class RequestTensors(NamedTuple):
    """Inputs of an export: `ids` and `offsets` for its tables, the others for its program.

    Shape:
        ids: (N,), int32, ordered by feature, then by row.
        offsets: (number of all features * B + 1,), int32.
        lengths: (B, F), float32, ids of each schema feature.
        dense: (B, num_dense), float32.
        scenario: (B,), int64.
        histories: of the rows, for a model that reads ordered histories.
    """

    ids: Tensor
    offsets: Tensor
    lengths: Tensor
    dense: Tensor
    scenario: Tensor
    histories: HistoryTensors | None = None


class RequestRows(NamedTuple):
    """Encoded rows, which are cheap to join with those of other requests.

    The features are those of the schema, then one per table of histories or LLM knowledge.

    Shape:
        ids: per feature (n,), int32, or (sum of lengths,) if it is multi-valued.
        lengths: per feature (n,), int32, or None if all are 1.
        dense: (n, num_dense), float32.
        scenario: (n,), int64.
        histories: of the rows, for a model that reads ordered histories.
    """

    ids: list[npt.NDArray[np.int32]]
    lengths: list[npt.NDArray[np.int32] | None]
    dense: npt.NDArray[np.float32]
    scenario: npt.NDArray[np.int64]
    histories: RequestHistories | None = None

    def __len__(self) -> int:
        """Number of rows, not of fields."""
        return int(self.scenario.shape[0])

    def with_histories(self, histories: RequestHistories) -> Self:
        """Returns the rows with other histories; `_replace` does not work, because of `len`."""
        return type(self)(self.ids, self.lengths, self.dense, self.scenario, histories)

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
        of_rows = [request.histories for request in requests if request.histories is not None]
        histories = RequestHistories.join(of_rows) if of_rows else None
        return cls(ids, lengths, dense, scenario, histories)

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
        histories = None if self.histories is None else self.histories.cut(rows)
        return type(self)(ids, lengths_cut, self.dense[rows], self.scenario[rows], histories)

    def tensors(self, num_features: int) -> RequestTensors:
        """Returns the tensors of at least one row; `num_features` is F, those of the schema."""
        num_rows = len(self)
        ids = torch.from_numpy(np.concatenate(self.ids))
        dense, scenario = torch.from_numpy(self.dense), torch.from_numpy(self.scenario)
        histories = None if self.histories is None else self.histories.tensors()
        rest = (dense, scenario, histories)
        if all(lengths is None for lengths in self.lengths):
            offsets = torch.arange(len(ids) + 1, dtype=torch.int32)
            return RequestTensors(ids, offsets, torch.ones(num_rows, num_features), *rest)
        ones = np.ones(num_rows, dtype=np.int32)
        lengths = np.stack([ones if one is None else one for one in self.lengths])
        offsets = torch.zeros(lengths.size + 1, dtype=torch.int32)
        torch.cumsum(torch.from_numpy(lengths).flatten(), 0, out=offsets[1:])
        schema_lengths = torch.from_numpy(lengths[:num_features].T.astype(np.float32, order="C"))
        return RequestTensors(ids, offsets, schema_lengths, *rest)


class RequestEncoder:
    """Encodes raw rows, or columns of a dataset, with the ids of an export's tables.

    Args:
        row_encoder: encodes raw rows with the ids of the dataset.
        scale, per_scenario: settings of the run's tables.
        rare: feature -> (rows of its table,), bool, ids that training replaced by row 0.
        sides: user or item for each table of histories or LLM knowledge, in the order of lookup.
        histories: events of the export's users, for a model that reads ordered histories.
        semantic_ids: codes of the export's items, for a model with semantic ids.
        managed: table rows of managed features.
    """

    def __init__(
        self,
        row_encoder: RowEncoder,
        scale: float,
        per_scenario: bool,
        rare: Mapping[str, npt.NDArray[np.bool_]],
        sides: Sequence[Side],
        histories: UserHistories | None = None,
        semantic_ids: SemanticIds | None = None,
        managed: ManagedRows | None = None,
    ) -> None:
        self.row_encoder = row_encoder
        self.schema = row_encoder.schema
        self._managed = managed or ManagedRows({})
        self._transforms: list[IdTransform] = [self._managed, RareIds(rare)]
        if semantic_ids is not None:
            self.schema = semantic_ids.extended(self.schema)
            self._transforms.append(semantic_ids)
        self._transforms += table_transforms(self.schema, scale, per_scenario)
        self._sides, self._histories = sides, histories
        self.counts = CountedColumns()
        """Values of all raw rows so far, and those that the export does not know."""

    def encode_json(
        self, rows: Sequence[Mapping[str, Any]], where: str, history: CarriedHistory | None = None
    ) -> RequestRows:
        """Encodes raw rows that were parsed from JSON; see `RowEncoder.table`.

        All rows have the history `history`; None gives each row that of its user in the export.
        """
        columns = self._encode_raw(self.row_encoder.table(rows, where), where)
        encoded = self.encode(columns)
        if history is None:
            return encoded
        assert self._histories is not None
        item = columns["item"].astype(np.int64, copy=False)
        return encoded.with_histories(history.of_rows(item, self._histories.max_len))

    def encode_history(self, events: Sequence[Any], where: str) -> CarriedHistory:
        """Encodes the history of a request that was parsed from JSON; see `RowEncoder.events`.

        Raises:
            ValueError: the model reads no histories, or an event is invalid.
        """
        if self._histories is None:
            raise ValueError(
                f"{where} must have no history, because the exported run reads no ordered "
                "histories."
            )
        encoded = self.row_encoder.events(events, where)
        if self._histories.events == "positive" and not encoded.label.all():
            position = int(np.argmin(encoded.label))
            raise ValueError(
                f"{where}: event {position} of the history: label must be 1, because the run was "
                "trained with histories of positive rows; found 0."
            )
        return CarriedHistory.newest(encoded, self._histories.max_len)

    def encode_table(self, table: pa.Table, where: str, first_row: int = 0) -> RequestRows:
        """Encodes a table of raw rows; see `RowEncoder.encode`."""
        return self.encode(self._encode_raw(table, where, first_row))

    def _encode_raw(self, table: pa.Table, where: str, first_row: int = 0) -> Columns:
        columns, counts = self.row_encoder.encode_counted(table, where, first_row)
        self.counts.add(self._managed.counts(columns, counts))
        return columns

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
        histories = None
        if self._histories is not None:
            user, item = (columns[side].astype(np.int64, copy=False) for side in ("user", "item"))
            histories = self._histories.of_rows(user, item)
        return RequestRows(ids, lengths, dense, scenario, histories)
