"""FBGEMM's kernels of a sharded model's tables: the tables of one rank with equal options."""

from collections.abc import Iterator
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from msrec.model.frozen_items import FROZEN_PATH


def trained_kernels(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    """Yields the kernels with a fused optimizer, in the same order on ranks with equal tables."""
    for group in table_groups(model):
        if isinstance(group.emb_module, SplitTableBatchedEmbeddingBagsCodegen):
            yield group.emb_module


def table_groups(model: nn.Module) -> Iterator[Any]:
    """Yields TorchRec's groups of trained tables on this rank: a kernel and its tables' configs."""
    for path, module in model.named_modules():
        if not isinstance(module, ShardedEmbeddingBagCollection) or FROZEN_PATH in f"{path}.":
            continue
        for lookup in module._lookups:
            yield from getattr(lookup, "module", lookup)._emb_modules


def set_update_count(model: nn.Module, updates: int) -> None:
    """Sets the number of updates so far, by which Adam corrects the bias of its moments.

    FBGEMM counts every lookup, those of a validation too, and TorchRec does not save the count.
    """
    for kernel in trained_kernels(model):
        kernel.iter.fill_(updates)
        kernel.iter_cpu.fill_(updates)


def look_up_directly(model: nn.Module) -> None:
    """Lets each collection of a model that is alone on a CPU call its kernel without TorchRec.

    TorchRec splits the ids by rank, sends and joins them, and does the same with the vectors. On
    one rank this only takes time. Values and updates are equal bit for bit, because the kernel gets
    the same input. Collections with several kernels, or with tables cut by columns or rows, stay as
    they are.
    """
    for module in model.modules():
        if isinstance(module, ShardedEmbeddingBagCollection) and _has_one_kernel(module):
            module.forward = _Direct(module)


def _has_one_kernel(collection: Any) -> bool:
    lookups = collection._lookups
    return (
        collection._sharding_types == [ShardingType.TABLE_WISE.value]
        and isinstance(lookups[0], GroupedPooledEmbeddingsLookup)
        and len(lookups[0]._emb_modules) == 1
    )


class _Direct:
    """Forward of a collection with one kernel."""

    def __init__(self, collection: Any) -> None:
        (lookup,) = collection._lookups
        (self._kernel,), (config,) = lookup._emb_modules, lookup.grouped_configs
        self._features = config.feature_names()
        self._names, self._dims = collection._embedding_names, collection._embedding_dims

    def __call__(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        keys = sparse.keys()
        if keys != self._features:
            sparse = sparse.permute([keys.index(feature) for feature in self._features])
        return KeyedTensor(self._names, self._dims, self._kernel(sparse))
