"""FBGEMM's kernels of a sharded model's tables: the tables of one rank with equal options."""

from collections.abc import Iterator
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

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
