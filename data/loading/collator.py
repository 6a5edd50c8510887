"""Makes batches from the columns of a window of batches, with as few copies as possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.features.columns import Columns, Scalars
from msrec.data.loading.batch import (
    Batch,
    EntityVectors,
    HistoryBags,
    HistoryEvents,
    keyed_bags,
    no_events,
)
from msrec.data.loading.behaviour_history import OTHER, BehaviourHistory, Side
from msrec.data.loading.row_counts import count_rows
from msrec.data.schema import Schema

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


class VectorSource(Protocol):
    """Vectors of users or items, such as a level of a knowledge store."""

    def gather(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(U,) indices -> vectors (U, H), float, and (U,) float32, 0 where there is none."""
        ...


class IdsOnly:
    """Source of no vectors, for a model that has them on its device and looks them up itself."""

    def gather(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns vectors (U, 0), and zeros (U,)."""
        return torch.zeros(len(ids), 0), torch.zeros(len(ids))


class SequenceSource(Protocol):
    """Histories of rows, such as those of an index."""

    def events(self, rows: Longs, user: Longs, item: Longs, time: Longs | None) -> HistoryEvents:
        """Returns the histories of B rows; arguments are (B,) arrays as in `Batch`.

        Args:
            rows: row ids, -1 for rows that do not count.
            user: indices into users.parquet, -1 for unknown ones.
            item: indices into items.parquet, -1 for unknown ones.
            time: timestamps; None if the rows have none.
        """
        ...


def entity_vectors(ids: npt.NDArray[np.int64], source: VectorSource | None) -> EntityVectors:
    """Returns the distinct ids of a batch with their vectors; nothing if there is no source.

    Shape:
        ids: (B,), int64.
    """
    if source is None:
        zeros = torch.zeros(len(ids), dtype=torch.int64)
        return EntityVectors(zeros[:0], torch.zeros(0, 0), torch.zeros(0), zeros)
    distinct, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    ids_of = torch.from_numpy(distinct)
    tensors = ids_of, *source.gather(ids_of), torch.from_numpy(inverse)
    return EntityVectors(*tensors, counts.astype(np.int64, copy=False))


@dataclass(frozen=True)
class Collator:
    """Sources of the tensors of a batch.

    Args:
        schema: names features and labels, in order.
        user_vectors, item_vectors: vectors of the batch's distinct users and items; None leaves
            them out.
        history: training rows of the batch's distinct users and items; None leaves them out.
        is_train: whether the rows are those that `history` holds. A row is then excluded from its
            own history.
        sequences: earlier events of the batch's rows; None leaves them out.
        labels: labels of the batch, in order; None is all of the schema.
    """

    schema: Schema
    user_vectors: VectorSource | None = None
    item_vectors: VectorSource | None = None
    history: BehaviourHistory | None = None
    is_train: bool = False
    sequences: SequenceSource | None = None
    labels: Sequence[str] | None = None


class Window:
    """The rows of W consecutive batches of one rank, laid out so that a batch is a slice.

    A KeyedJaggedTensor holds the ids of one key after those of another, so single-valued features
    are stored feature-major within a batch, (W, F, B). If there are no others, the values of batch
    w are the slice `[w]`, without a copy::

        batch 0                            batch 1
        user_id: B ids | item_id: B ids    user_id: B ids | item_id: B ids

    Labels and dense features are matrices in the model, so they are stored row-major, (W, B, n).

    Args:
        collator: sources of the tensors.
        rows: (W, B), row ids, -1 for rows that do not count.
        columns: of the W * B rows in that order; padding repeats a real row, with weight 0.
    """

    def __init__(self, collator: Collator, rows: npt.NDArray[np.int64], columns: Columns) -> None:
        self._collator, self._rows = collator, rows
        schema, self._history = collator.schema, collator.history
        self._scenario, self._user, self._item = (
            columns[name].astype(np.int64, copy=False).reshape(rows.shape)
            for name in ("scenario", "user", "item")
        )
        labels = schema.labels if collator.labels is None else collator.labels
        self._label = _stacked(columns, labels, rows.shape, 2, np.float32)
        self._dense = _stacked(columns, schema.dense, rows.shape, 2, np.float32)
        self._weight = (rows >= 0).astype(np.float32)
        if schema.weight:
            self._weight *= columns[schema.weight].reshape(rows.shape)
        self._label_weight = _label_weights(columns, schema, labels, rows.shape)
        self._time: Longs | None = None
        if collator.sequences is not None and schema.timestamp:
            self._time = columns[schema.timestamp].reshape(rows.shape)
        self._no_vectors = entity_vectors(rows[0], None)
        self._multi = {
            f.name: (columns[f.name].offsets.to_numpy(), columns[f.name].values.to_numpy())
            for f in schema.sparse
            if f.multi
        }
        # A row has a table row for each of these features; the model manages those of the others.
        self._features = [f for f in schema.sparse if not f.managed]
        single = [f.name for f in self._features if not f.multi]
        self._single = _stacked(columns, single, rows.shape, 1, np.int32)
        self._keys = [f.name for f in self._features]
        managed = [f.name for f in schema.managed]
        self._managed = _stacked(columns, managed, rows.shape, 1, np.int64)
        self._managed *= (rows >= 0)[:, np.newaxis]
        if self._history is not None:
            # Only a training row has to be taken out of a history, by its label's level.
            zeros = np.zeros(rows.size, np.int32)
            level = self._history.level(columns) if collator.is_train else zeros
            self._level = level.reshape(rows.shape)
            for side in self._history.of:
                self._keys += [f"{side}_history", f"{side}_own"]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, number: int) -> Batch:
        """Returns one of the W batches.

        Raises:
            ValueError: the schema has no scenario of a row's number.
        """
        user, item, scenario = self._user[number], self._item[number], self._scenario[number]
        history_bags, past = self._past(number)
        return Batch(
            sparse=self._sparse(number, history_bags),
            dense=torch.from_numpy(self._dense[number]),
            scenario=torch.from_numpy(scenario),
            scenario_counts=count_rows(scenario, len(self._collator.schema.scenarios)),
            label=torch.from_numpy(self._label[number]),
            weight=torch.from_numpy(self._weight[number]),
            label_weight=torch.from_numpy(self._label_weight[number]),
            row_id=torch.from_numpy(self._rows[number]),
            user=torch.from_numpy(user),
            item=torch.from_numpy(item),
            user_vectors=self._vectors(user, self._collator.user_vectors),
            item_vectors=self._vectors(item, self._collator.item_vectors),
            past=past,
            sequence=self._sequence(number),
            managed=torch.from_numpy(self._managed[number]),
        )

    def _vectors(self, ids: npt.NDArray[np.int64], source: VectorSource | None) -> EntityVectors:
        return self._no_vectors if source is None else entity_vectors(ids, source)

    def _sequence(self, number: int) -> HistoryEvents:
        source = self._collator.sequences
        if source is None:
            return no_events()
        time = None if self._time is None else self._time[number]
        return source.events(self._rows[number], self._user[number], self._item[number], time)

    def _past(self, number: int) -> tuple[list[tuple[Ints, Ints]], HistoryBags]:
        """Returns ids and lengths of the bags of history keys, and each row's bag."""
        size = self._rows.shape[1]
        if self._history is None:
            return [], HistoryBags(torch.zeros(0, size, dtype=torch.int64), torch.zeros(0, size))
        history = self._history
        keys: list[tuple[Ints, Ints]] = []
        bag, num_others = [], []
        entities: dict[Side, npt.NDArray[np.int64]] = {
            "user": self._user[number],
            "item": self._item[number],
        }
        for side in history.of:
            distinct, inverse = np.unique(entities[side], return_inverse=True)
            ids, of_distinct = history.bags(side, distinct)
            # A key has B bags: those of the distinct users (items), then empty ones.
            lengths = np.zeros(size, dtype=np.int32)
            lengths[: len(of_distinct)] = of_distinct
            own = np.zeros(size, dtype=np.bool_)
            if self._collator.is_train:
                own = history.has_own(side, self._rows[number])
            own_ids = entities[OTHER[side]] * history.levels + self._level[number]
            keys += [(ids, lengths), (own_ids[own].astype(np.int32), own.astype(np.int32))]
            bag.append(inverse)
            num_others.append(lengths[inverse] - own)
        counts = torch.from_numpy(np.stack(num_others).astype(np.float32))
        return keys, HistoryBags(torch.from_numpy(np.stack(bag)), counts)

    def _sparse(self, number: int, history_bags: list[tuple[Ints, Ints]]) -> KeyedJaggedTensor:
        size = self._rows.shape[1]
        single = self._single[number]
        if not self._multi and not history_bags:
            ids = torch.from_numpy(single.reshape(-1))
            return keyed_bags(self._keys, ids, [size] * len(self._keys), size)
        bags: list[tuple[Ints, Ints]] = []
        singles, ones = iter(single), np.ones(size, dtype=np.int32)
        for feature in self._features:
            if feature.multi:
                offsets, of_feature = self._multi[feature.name]
                of_batch = offsets[number * size : (number + 1) * size + 1]
                cut = of_feature[of_batch[0] : of_batch[-1]]
                bags.append((cut, np.diff(of_batch).astype(np.int32)))
            else:
                bags.append((next(singles), ones))
        values, lengths = zip(*bags, *history_bags, strict=True)
        ids, of_bags = (torch.from_numpy(np.concatenate(parts)) for parts in (values, lengths))
        return keyed_bags(self._keys, ids, list(map(len, values)), size, of_bags)


def _label_weights(
    columns: Columns, schema: Schema, labels: Sequence[str], shape: tuple[int, ...]
) -> Scalars:
    """Returns the weights of the labels, (W, B, T), or (W, B, 0) if none has weights."""
    names = [schema.label(label).weight for label in labels]
    if not any(names):
        return np.empty((*shape, 0), np.float32)
    ones = np.ones(shape, np.float32)
    weights = [ones if name is None else columns[name].reshape(shape) for name in names]
    return np.ascontiguousarray(np.stack(weights, axis=2))


def _stacked(
    columns: Columns, names: Sequence[str], shape: tuple[int, ...], axis: int, dtype: type
) -> Scalars:
    """Returns columns in one array: that of shape (W, B) with a new axis for the columns."""
    stacked: Scalars = np.empty((*shape[:axis], len(names), *shape[axis:]), dtype)
    for layer, name in zip(np.moveaxis(stacked, axis, 0), names, strict=True):
        layer[...] = columns[name].reshape(shape)
    return stacked
