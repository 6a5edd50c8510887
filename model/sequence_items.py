"""Learned vectors of the items of ordered histories, in a table of their own."""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import ITEM
from msrec.model.embeddings import DATA_TYPES, TableType

SEQUENCE_TABLE = "sequence_item"
"""Name of the table."""


class SequenceItems(nn.Module):
    """Table of learned item vectors, looked up once per distinct item of a batch.

    It is trained, sharded and initialised as the tables of features are.

    Shape:
        items: key "item", M bags of length 0 or 1, int32 indices into items.parquet.
        returns: (M, dim), float; zeros for an empty bag.

    Args:
        num_items: rows of the table.
        dim: size of the vectors.
        device: "meta" for a table that will be sharded.
        dtype: type of the values.
    """

    def __init__(
        self, num_items: int, dim: int, device: str = "meta", dtype: TableType = "fp32"
    ) -> None:
        super().__init__()
        # Bags, because FBGEMM's kernels for sequences are many times slower on CPUs.
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=SEQUENCE_TABLE,
                    embedding_dim=dim,
                    num_embeddings=num_items,
                    feature_names=[ITEM],
                    pooling=PoolingType.SUM,
                    data_type=DATA_TYPES[dtype],
                )
            ],
            device=torch.device(device),
        )

    def forward(self, items: KeyedJaggedTensor) -> Tensor:  # noqa: D102
        vectors: Tensor = self.ebc(items).values()
        return vectors
