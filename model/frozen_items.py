"""Frozen vectors of items from the knowledge store, as tables that are sharded like any other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.io.names import safe_name
from msrec.data.loading.batch import ITEM

FROZEN_PATH = "ranker.items."
"""Part of the name, in a state dict, of every frozen table."""


def item_table(source: str) -> str:
    """Returns the name of the table with the vectors of a source, such as a Hugging Face name."""
    return safe_name(f"item_{source}")


def without_frozen(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a model's state dict that a checkpoint holds."""
    return {name: value for name, value in state.items() if FROZEN_PATH not in name}


class FrozenItems(nn.Module):
    """Tables of frozen item vectors, one per source, without optimizer, gradient or checkpoint.

    A checkpoint does not hold them: a run fills them from the knowledge store when it is built, so
    that new items get vectors without training. Bags have length 0 or 1, because FBGEMM's kernels
    for sequences are many times slower on CPUs.

    Shape:
        items: key "item", M bags of length 0 or 1, int32 indices into items.parquet.
        returns: per source (M, dim), float; zeros for an empty bag.

    Args:
        num_items: rows of each table.
        dims: source -> size of its vectors.
        device: "meta" for tables that will be sharded.
    """

    def __init__(self, num_items: int, dims: Mapping[str, int], device: str = "meta") -> None:
        super().__init__()
        self.dims = dict(dims)
        self.ebc = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=item_table(source),
                    embedding_dim=dim,
                    num_embeddings=num_items,
                    feature_names=[ITEM],
                    pooling=PoolingType.SUM,
                    data_type=DataType.FP16,
                )
                for source, dim in dims.items()
            ],
            device=torch.device(device),
        )
        self._split = _BySource(list(dims))

    def forward(self, items: KeyedJaggedTensor) -> list[Tensor]:  # noqa: D102
        vectors: list[Tensor] = self._split(self.ebc(items))
        return vectors


class _BySource(nn.Module):
    """Splits pooled vectors, which come in the plan's order; stops their gradient.

    Without a gradient the fused kernel never runs its backward pass, so that a row is never
    changed. A separate module, so that TorchRec's tracer does not look inside.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__()
        # TorchRec names the vectors of a feature with several tables `feature@table`.
        self._keys = [
            ITEM if len(sources) == 1 else f"{ITEM}@{item_table(source)}" for source in sources
        ]

    def forward(self, pooled: object) -> list[Tensor]:
        keys, columns = pooled.keys(), pooled.values().detach()  # type: ignore[attr-defined]
        by_key = dict(zip(keys, columns.split(pooled.length_per_key(), dim=1), strict=True))  # type: ignore[attr-defined]
        # The kernels that gather from a source would each copy columns that are not contiguous.
        return [by_key[key].contiguous() for key in self._keys]
