"""Columns of rows to what the tables and the dense part of an export take."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.columns import Columns
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.id_transforms import RareIds, apply_all, table_transforms
from msrec.data.schema import Schema

SIDES: tuple[Side, Side] = ("user", "item")
_NO_ROW_IDS = np.empty(0, dtype=np.int64)


def entity_features(histories: Sequence[Side], known: Sequence[Side]) -> dict[str, Side]:
    """The features behind those of the schema, whose ids are users (items): name -> whose."""
    return {f"{side}_history": side for side in histories} | {f"{s}_known": s for s in known}


class RequestRows(NamedTuple):
    """Rows ready to be scored; cheap to put together with those of other requests.

    Shape:
        ids: of each feature, (n,) int32, or (sum of lengths,) where it has several.
        lengths: of each feature, (n,) int32, or None where all are 1.
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


class RequestEncoder:
    """Makes `RequestRows` of columns, with the ids that the tables of a run have.

    Args:
        schema: of the dataset folder.
        scale, per_scenario: of the run's tables.
        rare: feature -> (table rows,) bool, ids that training took as unknown.
        entities: see `entity_features`.
    """

    def __init__(
        self,
        schema: Schema,
        scale: float,
        per_scenario: bool,
        rare: Mapping[str, npt.NDArray[np.bool_]],
        entities: Mapping[str, Side],
    ) -> None:
        self._schema = schema
        self._transforms = [RareIds(rare), *table_transforms(schema, scale, per_scenario)]
        self._entities = entities

    def rows(self, columns: Columns) -> RequestRows:
        """The rows of columns as `RowEncoder.encode` and `SplitReader.take` give them.

        Row 0 of an entity's table is of those that the dataset folder does not know.
        """
        columns = apply_all(self._transforms, columns, _NO_ROW_IDS, epoch=0)
        ids: list[npt.NDArray[np.int32]] = []
        lengths: list[npt.NDArray[np.int32] | None] = []
        for feature in self._schema.sparse:
            column = columns[feature.name]
            if not feature.multi:
                ids.append(column)
                lengths.append(None)
                continue
            offsets = column.offsets.to_numpy()
            ids.append(column.values.to_numpy()[offsets[0] : offsets[-1]])
            lengths.append(np.diff(offsets).astype(np.int32, copy=False))
        for side in self._entities.values():
            ids.append(columns[side].astype(np.int32) + np.int32(1))
            lengths.append(None)
        scenario = columns["scenario"].astype(np.int64)
        dense = np.empty((len(scenario), len(self._schema.dense)), dtype=np.float32)
        for place, name in enumerate(self._schema.dense):
            dense[:, place] = columns[name]
        return RequestRows(ids, lengths, dense, scenario)


def joined(parts: Sequence[RequestRows]) -> RequestRows:
    """The rows of several requests, in their order."""
    if len(parts) == 1:
        return parts[0]
    features = range(len(parts[0].ids))
    lengths = [[of for part in parts if (of := part.lengths[f]) is not None] for f in features]
    return RequestRows(
        [np.concatenate([part.ids[f] for part in parts]) for f in features],
        [np.concatenate(of) if of else None for of in lengths],
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.scenario for part in parts]),
    )


def part_of(rows: RequestRows, start: int, end: int) -> RequestRows:
    """Some of the rows, those from `start` to before `end`."""
    ids = []
    for values, lengths in zip(rows.ids, rows.lengths, strict=True):
        if lengths is None:
            ids.append(values[start:end])
        else:
            edges = np.concatenate([[0], np.cumsum(lengths)])
            ids.append(values[edges[start] : edges[min(end, len(lengths))]])
    cut = [None if of is None else of[start:end] for of in rows.lengths]
    return RequestRows(ids, cut, rows.dense[start:end], rows.scenario[start:end])


class Inputs(NamedTuple):
    """What the tables take, (ids, offsets), and the dense part besides, (lengths, ...)."""

    ids: Tensor
    offsets: Tensor
    lengths: Tensor
    dense: Tensor
    scenario: Tensor


def inputs_of(rows: RequestRows, num_features: int) -> Inputs:
    """Tensors of at least one row.

    Shape:
        num_features: F, those of the schema; entities stand behind them.
        returns: ids (N,) int32; offsets (all features * B + 1,) int32; lengths (B, F) float32;
            dense (B, num_dense) float32; scenario (B,) int64.
    """
    size = len(rows)
    ids = torch.from_numpy(np.concatenate(rows.ids))
    dense, scenario = torch.from_numpy(rows.dense), torch.from_numpy(rows.scenario)
    if all(of is None for of in rows.lengths):
        offsets = torch.arange(len(ids) + 1, dtype=torch.int32)
        return Inputs(ids, offsets, torch.ones(size, num_features), dense, scenario)
    ones = np.ones(size, dtype=np.int32)
    lengths = np.stack([ones if of is None else of for of in rows.lengths])
    offsets = torch.zeros(lengths.size + 1, dtype=torch.int32)
    torch.cumsum(torch.from_numpy(lengths).flatten(), 0, out=offsets[1:])
    of_features = torch.from_numpy(lengths[:num_features].T.astype(np.float32, order="C"))
    return Inputs(ids, offsets, of_features, dense, scenario)
