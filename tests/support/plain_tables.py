"""Tables of plain torch, and the same tables sharded over ranks, trained on the same rows."""

import os

import torch
from tiny import tiny_schema

from msrec.data.loading.loader import RankShare, open_loader
from msrec.model.distributed import filling
from msrec.model.distributed.kernels import set_update_count, trained_kernels
from msrec.model.distributed.optimizers import optimizers
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.replicas import TableReplicas, sharding_env
from msrec.model.distributed.sharding import shard
from msrec.model.distributed.table_options import TableOptions
from msrec.model.distributed.tables import fuse_optimizer
from msrec.model.embeddings import Embeddings, fill_rows

CPU = torch.device("cpu")
DIM, STD, LR, EPS = 8, 0.1, 0.05, 1e-8


def options_of(optimizer, sharding="table_wise", group=None):
    tables = dict.fromkeys(tiny_schema().tables, sharding)
    return TableOptions(
        optimizer,
        lr=LR,
        row_wise_from=10**6,
        sharding=tables,
        min_columns=4,
        eps=EPS,
        group_ranks=group,
    )


class Plain(torch.nn.Module):
    """The same tables as nn.EmbeddingBag; a multi-valued feature is the mean of its rows."""

    def __init__(self):
        super().__init__()
        self.tables = torch.nn.ModuleDict()
        for table, rows in tiny_schema().tables.items():
            weight = torch.empty(rows, DIM)
            fill_rows(weight, table, 0, STD, seed=3)
            self.tables[table] = torch.nn.EmbeddingBag.from_pretrained(weight, False, mode="mean")

    def forward(self, sparse):
        vectors = []
        for feature in tiny_schema().sparse:
            bags = sparse[feature.name]
            offsets = bags.offsets()[:-1].long()
            vectors.append(self.tables[feature.table](bags.values().long(), offsets))
        return torch.stack(vectors, 1)


def loss_of(vectors, label):
    """Some smooth function that couples the features."""
    logit = 5 * vectors.prod(dim=1).sum(dim=1) + vectors.sum(dim=(1, 2))
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, label[:, 0])


def batches_of(dataset, rank, world_size):
    share = RankShare(rank, world_size)
    return list(open_loader(dataset, "train", 64, share=share, shuffle=False).batches())


class PlainCopy:
    """Plain tables that learn from their group's share of the rows."""

    def __init__(self, dataset, optimizer, column_shards, group, groups):
        self.model, self.optimizer, self.shards = Plain(), optimizer, column_shards
        self.adam = torch.optim.Adam(self.model.parameters(), lr=LR, eps=EPS)
        self.moments = [torch.zeros(len(p), column_shards, 1) for p in self.model.parameters()]
        self.batches = batches_of(dataset, group, groups)

    def step(self, number):
        """Trains a step; RowWiseAdagrad by its formula, for each shard of columns."""
        batch = self.batches[number]
        self.model.zero_grad()
        loss_of(self.model(batch.sparse), batch.label).backward()
        if self.optimizer == "adam":
            self.adam.step()
            return
        with torch.no_grad():
            for p, moments in zip(self.model.parameters(), self.moments, strict=True):
                grad = p.grad.unflatten(1, (self.shards, -1))
                moments += grad.square().mean(dim=2, keepdim=True)
                p -= (LR * grad / (moments.sqrt() + EPS)).flatten(1)


def plain_vectors(dataset, optimizer, steps, column_shards=1, groups=1, every=1):
    """Vectors after some steps of plain torch; copies are averaged every few steps."""
    copies = [PlainCopy(dataset, optimizer, column_shards, g, groups) for g in range(groups)]
    for step in range(steps):
        for each in copies:
            each.step(step)
        if (step + 1) % every == 0:
            average([list(each.model.parameters()) for each in copies])
            average([each.moments for each in copies])
    with torch.no_grad():
        return torch.cat([each.model(each.batches[steps].sparse) for each in copies])


@torch.no_grad()
def average(copies):
    for tensors in zip(*copies, strict=True):
        mean = torch.stack(tensors).mean(0)
        for tensor in tensors:
            tensor.copy_(mean)


class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings(tiny_schema(), DIM)
        self.unused = torch.nn.Parameter(torch.zeros(()))  # the dense part must not be empty

    def forward(self, sparse):
        return self.embeddings(sparse) + 0 * self.unused


def sharded_vectors(
    rank, world_size, dataset, optimizer, sharding, steps, per_node, group=None, every=1
):
    """Vectors of this rank's rows after some steps, and its tables and accumulators."""
    # TorchRec makes its groups of nodes from the environment that torchrun sets.
    os.environ["LOCAL_WORLD_SIZE"] = str(per_node)
    filling.FILL_ROWS = 16  # several chunks, none of them at the start of a block of seeds
    model, tables = Wrapped(), options_of(optimizer, sharding, group)
    fuse_optimizer(model.embeddings.ebc, tables, CPU)
    plan = plan_sharding(model, tables, CPU, per_node)
    env = sharding_env(group or world_size, per_node, CPU)
    dmp = shard(model, plan, CPU, STD, seed=3, env=env)
    optimizer = optimizers(dmp, tables, lr=1.0, weight_decay=0.0)
    replicas = TableReplicas(dmp, every)
    batches = batches_of(dataset, rank, world_size)
    set_update_count(dmp, 7)
    for step, batch in enumerate(batches[:steps], start=1):
        optimizer.zero_grad()
        loss_of(dmp(batch.sparse), batch.label).backward()
        optimizer.step()
        replicas.sync_after(step)
    counts = {int(c) for k in trained_kernels(dmp) for c in (k.iter, k.iter_cpu)}
    assert counts <= {7 + steps}
    tensors = [w for kernel in trained_kernels(dmp) for w in kernel.split_embedding_weights()]
    tensors += [
        value
        for kernel in trained_kernels(dmp)
        for state in kernel.get_optimizer_state()
        for value in state.values()
    ]
    with torch.no_grad():
        vectors = dmp(batches[steps].sparse).numpy().copy()
    return vectors, [tensor.detach().numpy().copy() for tensor in tensors]
