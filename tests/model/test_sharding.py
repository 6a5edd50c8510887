"""Sharded tables against plain torch: values, updates, initialisation, plan files."""

import json
from types import SimpleNamespace
from typing import get_args
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from plain_tables import (
    CPU,
    DIM,
    LR,
    Wrapped,
    batches_of,
    options_of,
    plain_vectors,
    sharded_vectors,
)
from ranks import run_ranks
from tiny import tiny_dataset, tiny_schema
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import (
    EvalPipelineSparseDist,
    PrefetchTrainPipelineSparseDist,
    TrainPipelineSparseDist,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.launch.batch_pipeline import pipeline_kind
from msrec.model.distributed import planning
from msrec.model.distributed.plan_files.sharding_plan import (
    load_plan,
    plan_from_dict,
    plan_to_dict,
    shard_entry,
    table_entry,
)
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.sharding import shard
from msrec.model.distributed.table_options import COLUMN_SHARDINGS, TableOptions, TableSharding
from msrec.model.distributed.tables import fuse_optimizer
from msrec.model.embeddings import Embeddings, fill_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.parametrize(("world_size", "per_node"), [(1, 1), (2, 2), (2, 1), (4, 4), (4, 2)])
@pytest.mark.parametrize("sharding", get_args(TableSharding))
def test_every_sharding_looks_up_and_trains_like_plain_torch(
    dataset, sharding, world_size, per_node
):
    shards = 2 if sharding in COLUMN_SHARDINGS else 1
    expected = plain_vectors(dataset, "rowwise_adagrad", 3, shards)
    arguments = (dataset, "rowwise_adagrad", sharding, 3, per_node)
    parts = run_ranks(sharded_vectors, world_size, *arguments)
    vectors = torch.cat([torch.from_numpy(part) for part, _ in parts])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    if shards == 2:  # one accumulator of each row in each shard, which is another optimizer
        whole = plain_vectors(dataset, "rowwise_adagrad", 3)
        assert not torch.allclose(vectors, whole, atol=1e-5, rtol=1e-5)


def vectors_by_torchrec(*arguments):
    with patch("msrec.model.distributed.sharding.look_up_directly"):
        return sharded_vectors(*arguments)


def vectors_of_kernel(*arguments):
    with patch.object(ShardedEmbeddingBagCollection, "input_dist", side_effect=AssertionError):
        return sharded_vectors(*arguments)


def test_one_rank_looks_up_and_trains_as_by_torchrec_bit_for_bit(dataset):
    arguments = (dataset, "rowwise_adagrad", "table_wise", 10, 1)
    ((vectors, tensors),) = run_ranks(vectors_of_kernel, 1, *arguments)
    ((expected, by_torchrec),) = run_ranks(vectors_by_torchrec, 1, *arguments)
    assert (vectors == expected).all()
    assert len(tensors) > 2
    assert all((a == b).all() for a, b in zip(tensors, by_torchrec, strict=True))


def vectors_of_orders(rank, world_size, dataset):
    """Vectors by feature of a batch, and of the same batch with its features in reverse order."""
    model, tables = Wrapped(), options_of("rowwise_adagrad", "table_wise", None)
    fuse_optimizer(model.embeddings.ebc, tables, CPU)
    dmp = shard(model, plan_sharding(model, tables, CPU, 1), CPU, 0.1, seed=3)
    sparse = batches_of(dataset, 0, 1)[0].sparse
    reverse = sparse.permute(list(reversed(range(len(sparse.keys())))))
    ebc = dmp.module.embeddings.ebc
    return [
        {name: vector.detach().numpy() for name, vector in ebc(each).to_dict().items()}
        for each in (sparse, reverse)
    ]


def test_a_lookup_on_one_rank_takes_features_in_any_order(dataset):
    ((vectors, reverse),) = run_ranks(vectors_of_orders, 1, dataset)
    assert len(vectors) > 2
    assert len({vector.sum() for vector in vectors.values()}) == len(vectors)
    assert all((vector == reverse[name]).all() for name, vector in vectors.items())


@pytest.mark.parametrize("world_size", [1, 2])
def test_replicated_tables_train_by_adam_like_plain_torch(dataset, world_size):
    expected = plain_vectors(dataset, "adam", steps=3)
    arguments = (dataset, "adam", "table_wise", 3, world_size)
    parts = run_ranks(sharded_vectors, world_size, *arguments)
    vectors = torch.cat([torch.from_numpy(part) for part, _ in parts])
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


def plan_for_gpus(rank, world_size, gpu_bytes, host_memory):
    """Kernels in a plan for GPUs with a memory of so many bytes each."""
    gpu = SimpleNamespace(total_memory=gpu_bytes)
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=64)
            for name, rows in (("large", 4_000_000), ("small", 1000))
        ],
        device=torch.device("meta"),
    )
    tables = TableOptions("rowwise_adagrad", LR, row_wise_from=10**6, sharding={})
    fuse_optimizer(collection, tables, torch.device("cuda"))
    with patch("torch.cuda.get_device_properties", lambda _: gpu):
        plan = plan_sharding(
            torch.nn.Sequential(collection),
            tables,
            torch.device("cuda"),
            world_size,
            host_memory=host_memory,
        )
    for table in plan.plan["0"].values():
        assert pipeline_kind(plan, trains=False) is EvalPipelineSparseDist
        assert table.sharding_type in ("row_wise", "table_wise")
    return {name: table.compute_kernel for name, table in plan.plan["0"].items()}


@pytest.mark.parametrize(
    ("gpu_gib", "large"), [(16, {"fused"}), (0.45, {"fused_uvm", "fused_uvm_caching"})]
)
def test_a_scored_run_has_a_table_in_host_memory_if_the_gpus_are_small(gpu_gib, large):
    kernels = run_ranks(plan_for_gpus, 2, int(gpu_gib * 2**30), True)[0]
    assert kernels["large"] in large
    if gpu_gib < 1:
        with pytest.raises(AssertionError, match="must fit on 2 ranks"):
            run_ranks(plan_for_gpus, 2, int(gpu_gib * 2**30), False)


def test_tables_in_host_memory_train_with_a_pipeline_that_fills_their_cache():
    entry = table_entry("row_wise", "fused_uvm_caching", [0], 0.2, [])
    for load_factor, kind in (
        (0.2, PrefetchTrainPipelineSparseDist),
        (None, TrainPipelineSparseDist),
    ):
        tables = {
            "item": entry | {"load_factor": load_factor},
            "user": entry | {"load_factor": None},
        }
        plan = plan_from_dict({"modules": {"ebc": tables}})
        assert pipeline_kind(plan, trains=True) is kind
        assert pipeline_kind(plan, trains=False) is EvalPipelineSparseDist


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching", "key_value"])
def test_a_plan_with_a_kernel_of_gpus_is_refused_on_the_cpu(tmp_path, kernel):
    shards = [shard_entry([0, 0], [10, DIM], "rank:0/cpu")]
    entry = table_entry("table_wise", kernel, [0], None, shards)
    path = tmp_path / "plan.json"
    saved = {"format": 1, "world_size": 1, "per_node": 1, "modules": {"ebc": {"item": entry}}}
    path.write_text(json.dumps(saved))
    message = f"'item' has the kernel {kernel}; training on cpu runs fused, dense. Plan again"
    with pytest.raises(ValueError, match=message):
        load_plan(path, torch.nn.Linear(1, 1), 1, 1, "cpu")


def test_columns_that_cannot_be_divided_are_refused():
    model = torch.nn.Sequential(Embeddings(tiny_schema(), DIM))
    tables = TableOptions("rowwise_adagrad", LR, 50, {"genre": "grid"}, min_columns=5)
    with (
        patch.object(planning.dist, "get_world_size", lambda: 2),
        pytest.raises(ValueError, match=r"genre=grid needs two .* 8 columns; .* to 4 or less"),
    ):
        plan_sharding(model, tables, CPU, 1)


def test_a_sharding_for_an_unknown_table_is_refused():
    model = torch.nn.Sequential(Embeddings(tiny_schema(), DIM))
    tables = TableOptions("rowwise_adagrad", LR, 50, {"movies": "row_wise"})
    with pytest.raises(ValueError, match="names table 'movies'; the tables are user_id"):
        plan_sharding(model, tables, CPU, 1)
