"""Sharded tables against plain torch: values, updates, initialisation, plan files."""

import json

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny import tiny_dataset, tiny_schema

from msrec.data.loading.loader import RankShare, open_loader
from msrec.model.distributed.optimizers import optimizers
from msrec.model.distributed.sharding import TableOptions, fuse_optimizer, plan_sharding, shard
from msrec.model.distributed.sharding_plan import plan_from_dict, plan_to_dict
from msrec.model.embeddings import Embeddings, fill_rows

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
DIM, STD, LR, EPS = 8, 0.1, 0.05, 1e-8


def options_of(optimizer, sharding="table_wise"):
    tables = dict.fromkeys(tiny_schema().tables, sharding)
    return TableOptions(optimizer, lr=LR, row_wise_from=10**6, sharding=tables, eps=EPS)


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


def plain_vectors(dataset, optimizer, steps):
    """Vectors after some steps of plain torch; RowWiseAdagrad by its formula."""
    model = Plain()
    adam = torch.optim.Adam(model.parameters(), lr=LR, eps=EPS)
    moments = {name: torch.zeros(len(p)) for name, p in model.named_parameters()}
    batches = list(open_loader(dataset, "train", 64, shuffle=False).batches())
    for batch in batches[:steps]:
        loss = loss_of(model(batch.sparse), batch.label)
        model.zero_grad()
        loss.backward()
        if optimizer == "adam":
            adam.step()
            continue
        with torch.no_grad():
            for name, p in model.named_parameters():
                moments[name] += p.grad.square().mean(dim=1)
                p -= LR * p.grad / (moments[name].sqrt() + EPS)[:, None]
    with torch.no_grad():
        return model(batches[steps].sparse)


def sharded_vectors(rank, world_size, dataset, optimizer, sharding, steps):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = Embeddings(tiny_schema(), DIM)
            self.unused = torch.nn.Parameter(torch.zeros(()))  # the dense part must not be empty

        def forward(self, sparse):
            return self.embeddings(sparse) + 0 * self.unused

    model, tables = Wrapped(), options_of(optimizer, sharding)
    fuse_optimizer(model.embeddings.ebc, tables, CPU)
    dmp = shard(model, plan_sharding(model, tables, CPU, world_size), CPU, STD, seed=3)
    optimizer = optimizers(dmp, tables, lr=1.0, weight_decay=0.0)
    loader = open_loader(dataset, "train", 64, share=RankShare(rank, world_size), shuffle=False)
    batches = list(loader.batches())
    for batch in batches[:steps]:
        optimizer.zero_grad()
        loss_of(dmp(batch.sparse), batch.label).backward()
        optimizer.step()
    with torch.no_grad():
        return dmp(batches[steps].sparse).numpy().copy()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("optimizer", "sharding"),
    [("rowwise_adagrad", "table_wise"), ("rowwise_adagrad", "row_wise"), ("adam", "table_wise")],
)
def test_sharded_tables_look_up_and_train_like_plain_torch(
    dataset, optimizer, sharding, world_size
):
    expected = plain_vectors(dataset, optimizer, steps=3)
    parts = run_ranks(sharded_vectors, world_size, dataset, optimizer, sharding, 3)
    vectors = torch.cat([torch.from_numpy(part) for part in parts])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)


def test_initial_rows_do_not_depend_on_how_a_table_is_cut():
    whole = torch.empty(10_000, 4)
    fill_rows(whole, "user", 0, std=1.0, seed=7)
    for first, last in [(0, 5000), (5000, 10_000), (4095, 4097)]:
        part = torch.empty(last - first, 4)
        fill_rows(part, "user", first, std=1.0, seed=7)
        assert torch.equal(part, whole[first:last])
    other = torch.empty(10_000, 4)
    fill_rows(other, "item", 0, std=1.0, seed=7)
    assert (other == whole).sum() == 0
    assert whole.std().item() == pytest.approx(1.0, abs=0.02)


def plan_of(rank, world_size):
    model = torch.nn.Sequential(Embeddings(tiny_schema(), DIM))
    tables = TableOptions("rowwise_adagrad", LR, row_wise_from=50, sharding={"genre": "row_wise"})
    fuse_optimizer(model[0].ebc, tables, CPU)
    plan = plan_sharding(model, tables, CPU, dist.get_world_size())
    saved = plan_to_dict(plan, world_size, world_size)
    assert (
        plan_to_dict(plan_from_dict(json.loads(json.dumps(saved))), world_size, world_size) == saved
    )
    return saved


def test_a_plan_shards_by_size_or_by_name_and_round_trips_through_json():
    saved, other = run_ranks(plan_of, 2)
    assert saved == other
    tables = saved["modules"]["0.ebc"]
    types = {name: entry["sharding_type"] for name, entry in tables.items()}
    assert types == {"user_id": "table_wise", "item_id": "row_wise", "genre": "row_wise"}


def test_a_sharding_for_an_unknown_table_is_refused():
    model = torch.nn.Sequential(Embeddings(tiny_schema(), DIM))
    tables = TableOptions("rowwise_adagrad", LR, 50, {"movies": "row_wise"})
    with pytest.raises(ValueError, match="names table 'movies'; the tables are user_id"):
        plan_sharding(model, tables, CPU, 1)
