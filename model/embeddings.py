"""Sparse features of a batch -> one vector each, through TorchRec's embedding bags."""

import zlib
from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from msrec.data.loading.batch import HistoryBags
from msrec.data.loading.behaviour_history import OTHER, Side, levels
from msrec.data.schema import Schema, SparseFeature


class Embeddings(nn.Module):
    """Look up every sparse feature; a multi-valued one is the mean of its rows.

    Tables pool by SUM and this module divides by the bag's length, because TorchRec's own MEAN
    corrupts the other tables of a collection when one is sharded row-wise.

    Behind the features stand the histories of a row's user and item, where they are asked for: the
    sum of a vector for each other training row of the user (item), divided by the square root of
    their number.

    Shape:
        sparse: F keys, B bags each; `Batch.sparse`.
        past: (H, B); `Batch.past`; not read without histories.
        returns: (B, F + H, D), float32, in the schema's order whatever the sharding plan.

    Source:
        Histories: SVD++ (Koren, KDD 2008, |N(u)|^-1/2 in front of the sum), here for items too, and
        with a vector for each level of a row.

    Args:
        schema: which features look up which tables.
        dim: vector size D of every table.
        history: whose histories are looked up.
        device: "meta" to be sharded later (weights are then made shard by shard), else where the
            weights live.
    """

    def __init__(
        self, schema: Schema, dim: int, history: Sequence[Side] = (), device: str = "meta"
    ) -> None:
        super().__init__()
        self.history = tuple(history)
        self.features = [feature.name for feature in schema.sparse]
        self.dim = dim
        self._vectors = _Vectors(schema.sparse, dim, self.history)
        self.ebc = EmbeddingBagCollection(
            tables=table_configs(schema, dim, history), device=torch.device(device)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What each vector of a row is of."""
        return (*self.features, *(f"{side}_history" for side in self.history))

    def forward(  # noqa: D102
        self, sparse: KeyedJaggedTensor, past: HistoryBags | None = None
    ) -> torch.Tensor:
        vectors: torch.Tensor = self._vectors(self.ebc(sparse), sparse, past)
        return vectors


class _Vectors(nn.Module):
    """Puts what the tables gave, in an order of the plan, into the schema's; means, histories.

    A module of its own, so that TorchRec's tracer does not look inside.
    """

    def __init__(
        self, features: Sequence[SparseFeature], dim: int, history: Sequence[Side]
    ) -> None:
        super().__init__()
        self._features = [(f.name, place if f.multi else None) for place, f in enumerate(features)]
        self._dim, self._history = dim, history

    def forward(
        self, pooled: KeyedTensor, sparse: KeyedJaggedTensor, past: HistoryBags | None
    ) -> torch.Tensor:
        keys, every = pooled.keys(), pooled.values()
        # One split, whose gradient is one concatenation. That of a slice is as large as all, zero
        # elsewhere, and there would be as many as features.
        part = dict(zip(keys, every.unflatten(1, (len(keys), self._dim)).unbind(1), strict=True))
        lengths = sparse.lengths().view(-1, every.shape[0])
        vectors = [
            part[name] if place is None else part[name] / lengths[place].clamp(min=1).unsqueeze(1)
            for name, place in self._features
        ]
        if past is not None and self._history:
            size = past.num_others.clamp(min=1).sqrt()
            vectors += [
                (part[f"{side}_history"][past.bag[at]] - part[f"{side}_own"])
                / size[at].unsqueeze(1)
                for at, side in enumerate(self._history)
            ]
        return torch.stack(vectors, dim=1)


def table_configs(
    schema: Schema, dim: int, history: Sequence[Side] = ()
) -> list[EmbeddingBagConfig]:
    """TorchRec's description of the tables that some feature uses, in order of first use."""
    used: dict[str, list[str]] = {}
    for feature in schema.sparse:
        used.setdefault(feature.table, []).append(feature.name)
    rows = dict(schema.tables)
    for side in history:
        used[f"{side}_history"] = [f"{side}_history", f"{side}_own"]
        rows[f"{side}_history"] = schema.size_of(OTHER[side]) * levels(schema)
    return [
        EmbeddingBagConfig(
            name=table,
            embedding_dim=dim,
            num_embeddings=rows[table],
            feature_names=features,
            pooling=PoolingType.SUM,
        )
        for table, features in used.items()
    ]


def fill_rows(out: torch.Tensor, table: str, first_row: int, std: float, seed: int) -> None:
    """Fill a shard with N(0, std) values that depend on (seed, table, global row) alone.

    TorchRec's own initialisation gives every row-wise shard the same values under one seed and
    other values under another plan; with this, 1 rank and N ranks start from one table.

    Shape:
        out: (rows, D), the table's rows from `first_row` on, float; written in place.
    """
    block = 1 << 12
    name = zlib.crc32(table.encode())
    last_row = first_row + out.shape[0]
    for number in range(first_row // block, -(-last_row // block)):
        generator = torch.Generator().manual_seed(
            (((seed << 32) + name) * 1_000_003 + number) % (1 << 63)
        )
        values = torch.randn(block, out.shape[1], generator=generator) * std
        start, end = max(first_row, number * block), min(last_row, (number + 1) * block)
        out[start - first_row : end - first_row] = values[
            start - number * block : end - number * block
        ]
