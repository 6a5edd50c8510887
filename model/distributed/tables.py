"""Embedding tables of a model: sizes, frozen ones, and optimizers that run in the backward pass."""

import torch
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from msrec.model.distributed.table_options import TableOptions
from msrec.model.frozen_items import FrozenItems, item_table


def fuse_optimizer(ebc: EmbeddingBagCollection, tables: TableOptions, device: torch.device) -> bool:
    """Attaches the in-backward optimizer; False if the tables train with a dense optimizer.

    Must run before sharding: a fused table without an attached optimizer silently trains with SGD.
    """
    if tables.is_dense(device):
        return False
    is_adagrad = tables.optimizer == "rowwise_adagrad"
    optimizer = RowWiseAdagrad if is_adagrad else torch.optim.Adam
    options = {"lr": tables.lr, "eps": tables.eps}
    apply_optimizer_in_backward(optimizer, ebc.parameters(), options)
    return True


def freeze(items: FrozenItems) -> None:
    """Attaches an optimizer without state to frozen tables; they get no gradient that it could use.

    Must run before sharding, because only a table with an optimizer gets the fused kernel.
    """
    apply_optimizer_in_backward(torch.optim.SGD, items.ebc.parameters(), {"lr": 0.0})


def frozen_tables(model: nn.Module) -> set[str]:
    """Returns the names of the tables of frozen item vectors, of a model sharded or not."""
    modules = (module for module in model.modules() if isinstance(module, FrozenItems))
    return {item_table(source) for module in modules for source in module.dims}


def table_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns table -> (rows, vector size) of a model before sharding."""
    return {
        config.name: (config.num_embeddings, config.embedding_dim)
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }
