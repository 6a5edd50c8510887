"""Sparse features of a batch -> one vector each, through TorchRec's embedding bags."""

import zlib

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.schema import Schema


class Embeddings(nn.Module):
    """Look up every sparse feature; a multi-valued one is the mean of its rows.

    Tables pool by SUM and this module divides by the bag's length, because TorchRec's own MEAN
    corrupts the other tables of a collection when one is sharded row-wise.

    Shape:
        sparse: F keys, B bags each.
        returns: (B, F, D), float32, in the schema's order whatever the sharding plan.

    Args:
        schema: which features look up which tables.
        dim: vector size D of every table.
        device: "meta" to be sharded later (weights are then made shard by shard), else where the
            weights live.
    """

    def __init__(self, schema: Schema, dim: int, device: str = "meta") -> None:
        super().__init__()
        self.features = [feature.name for feature in schema.sparse]
        self.dim = dim
        self._has_multi = any(feature.multi for feature in schema.sparse)
        self.ebc = EmbeddingBagCollection(
            tables=table_configs(schema, dim), device=torch.device(device)
        )

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:  # noqa: D102
        pooled = self.ebc(sparse)
        vectors = torch.stack([pooled[name] for name in self.features], dim=1)
        if not self._has_multi:
            return vectors
        lengths = sparse.lengths().view(len(self.features), -1).t().clamp(min=1)
        means: torch.Tensor = vectors / lengths.unsqueeze(-1)
        return means


def table_configs(schema: Schema, dim: int) -> list[EmbeddingBagConfig]:
    """TorchRec's description of the tables that some feature uses, in order of first use."""
    used: dict[str, list[str]] = {}
    for feature in schema.sparse:
        used.setdefault(feature.table, []).append(feature.name)
    return [
        EmbeddingBagConfig(
            name=table,
            embedding_dim=dim,
            num_embeddings=schema.tables[table],
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
