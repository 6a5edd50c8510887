"""Embedding tables: from the sparse features of a batch to one vector per feature."""

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from msrec.data.loading.batch import HistoryBags
from msrec.data.loading.behaviour_history import OTHER, Side, levels
from msrec.data.schema import Schema, SparseFeature
from msrec.model.managed.managed_ids import ManagedIds
from msrec.model.managed.managed_options import ManagedOptions

TableType = Literal["fp32", "fp16"]
DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
"""Types of the values of trained tables. FBGEMM has no kernels that train bfloat16 tables."""
INIT_BLOCK_ROWS = 1 << 12
"""Rows of a table that are initialised from one seed."""


class Embeddings(nn.Module):
    """Embedding of every sparse feature; a multi-valued feature is the mean of its rows.

    Tables pool by SUM and this module divides by the length of the bag, because TorchRec's own MEAN
    corrupts the other tables of a collection when one is sharded row-wise.

    Histories of a row's user and item are optional vectors after the features: the sum of one
    vector for each other training row of the user (item), divided by the square root of their
    number.

    Shape:
        sparse: B bags for each key; `Batch.sparse`.
        managed: (M, B); `Batch.managed`; not read without managed features. F is the number of all
            features.
        past: (H, B); `Batch.past`; not read without histories.
        returns: (B, F + H, D), float32, in the schema's order for any sharding plan.

    Source:
        Histories: SVD++ (Koren, KDD 2008, |N(u)|^-1/2 in front of the sum), here for items too, and
        with one vector for each level of a row.

    Args:
        schema: features and the tables that they use.
        dim: vector size D of every table.
        history: sides ("user", "item") with a history.
        device: "meta" for tables that will be sharded (weights are then created shard by shard),
            else the device of the weights.
        managed: options of managed features; None if there are none.
        dtype: type of the values of the tables.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        history: Sequence[Side] = (),
        device: str = "meta",
        managed: ManagedOptions | None = None,
        dtype: TableType = "fp32",
    ) -> None:
        super().__init__()
        self.dim, self.history = dim, tuple(history)
        self.names = (*(f.name for f in schema.sparse), *(f"{side}_history" for side in history))
        """Name of each vector of a row."""
        self._vectors = _Vectors(schema.sparse, dim, history)
        self.managed: ManagedIds | None = None
        if managed is not None:
            rows = {feature.name: schema.tables[feature.table] for feature in schema.managed}
            tables = [feature.table for feature in schema.managed]
            self.managed = ManagedIds(rows, tables, managed)
        self.ebc = EmbeddingBagCollection(
            tables=table_configs(schema, dim, history, dtype), device=torch.device(device)
        )

    def forward(  # noqa: D102
        self,
        sparse: KeyedJaggedTensor,
        past: HistoryBags | None = None,
        managed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.managed is not None:
            # TorchRec's pipeline then cannot send the ids of a batch ahead.
            sparse = self.managed(sparse, managed)
        vectors: torch.Tensor = self._vectors(self.ebc(sparse), sparse, past)
        return vectors


class _Vectors(nn.Module):
    """Puts pooled vectors, which come in the plan's order, into the schema's; averages and scales.

    A separate module, so that TorchRec's tracer does not look inside.
    """

    def __init__(
        self, features: Sequence[SparseFeature], dim: int, history: Sequence[Side]
    ) -> None:
        super().__init__()
        others = [f.name for f in features if not f.managed]
        self._features = [(f.name, others.index(f.name) if f.multi else None) for f in features]
        self._dim, self._history = dim, tuple(history)

    def forward(
        self, pooled: KeyedTensor, sparse: KeyedJaggedTensor, past: HistoryBags | None
    ) -> torch.Tensor:
        keys, columns = pooled.keys(), pooled.values()
        lengths = sparse.lengths().view(-1, columns.shape[0])
        if keys == [name for name, _ in self._features]:
            vectors = columns.unflatten(1, (len(keys), self._dim))
            bags = [
                (n, lengths[key]) for n, (_, key) in enumerate(self._features) if key is not None
            ]
            return _Means.apply(vectors, bags) if bags else vectors  # type: ignore[no-any-return, no-untyped-call]
        # One split, because its gradient is one concatenation. The gradient of a slice is as large
        # as all columns, with zeros elsewhere, and there would be one slice per feature.
        by_key = dict(
            zip(keys, columns.unflatten(1, (len(keys), self._dim)).unbind(1), strict=True)
        )
        parts = [
            by_key[name] if key is None else by_key[name] / lengths[key].clamp(min=1).unsqueeze(1)
            for name, key in self._features
        ]
        if past is not None and self._history:
            norm = past.num_others.clamp(min=1).sqrt()
            parts += [
                (by_key[f"{side}_history"][past.bag[i]] - by_key[f"{side}_own"])
                / norm[i].unsqueeze(1)
                for i, side in enumerate(self._history)
            ]
        return torch.stack(parts, dim=1)


class _Means(torch.autograd.Function):
    """Divides the vectors of some features by the lengths of their bags, in one copy of all.

    Shape:
        vectors: (B, F, D), float.
        bags: feature and lengths (B,), int, of each.
        returns: (B, F, D).
    """

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, bags: list[tuple[int, torch.Tensor]]) -> Any:
        ctx.bags = bags
        return _divided(vectors, bags)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _divided(grad, ctx.bags), None


def _divided(vectors: torch.Tensor, bags: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    divided = vectors.clone()
    for n, length in bags:
        divided[:, n] /= length.clamp(min=1).unsqueeze(1)
    return divided


def table_configs(
    schema: Schema, dim: int, history: Sequence[Side] = (), dtype: TableType = "fp32"
) -> list[EmbeddingBagConfig]:
    """Returns TorchRec's configs of the tables that features use, in order of first use."""
    features_of: dict[str, list[str]] = {}
    for feature in schema.sparse:
        features_of.setdefault(feature.table, []).append(feature.name)
    rows = dict(schema.tables)
    for side in history:
        if f"{side}_history" in rows:
            raise ValueError(
                f"a data set must have no table '{side}_history' for history.of={side}, which "
                "makes one; rename that feature."
            )
        features_of[f"{side}_history"] = [f"{side}_history", f"{side}_own"]
        rows[f"{side}_history"] = schema.size_of(OTHER[side]) * levels(schema)
    return [
        EmbeddingBagConfig(
            name=table,
            embedding_dim=dim,
            num_embeddings=rows[table],
            feature_names=features,
            pooling=PoolingType.SUM,
            data_type=DATA_TYPES[dtype],
        )
        for table, features in features_of.items()
    ]


def fill_rows(out: torch.Tensor, table: str, first_row: int, std: float, seed: int) -> None:
    """Fills a shard with N(0, std) values that depend only on (seed, table, global row).

    TorchRec's own initialisation gives every row-wise shard the same values under one seed and
    other values under another plan; with this, 1 rank and N ranks start from the same table.

    Shape:
        out: (rows, D), float, the rows of the table from `first_row` on; written in place.
    """
    name = zlib.crc32(table.encode())
    last_row = first_row + out.shape[0]
    for block in range(first_row // INIT_BLOCK_ROWS, -(-last_row // INIT_BLOCK_ROWS)):
        generator = torch.Generator().manual_seed(
            (((seed << 32) + name) * 1_000_003 + block) % (1 << 63)
        )
        values = torch.randn(INIT_BLOCK_ROWS, out.shape[1], generator=generator) * std
        block_row = block * INIT_BLOCK_ROWS
        start, end = max(first_row, block_row), min(last_row, block_row + INIT_BLOCK_ROWS)
        out[start - first_row : end - first_row] = values[start - block_row : end - block_row]
