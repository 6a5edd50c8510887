"""Plans with columns in nodes, with copies of the tables, and with different GPUs."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plan_requests import asked_of
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset
from torchrec.distributed.model_parallel import DMPCollection
from torchrec.distributed.types import ShardingEnv2D
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from trainings import config_of

from msrec import planner
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer
from msrec.model.distributed.plan_files.sharding_plan import plan_from_dict
from msrec.model.distributed.replicas import plan_of_group
from msrec.tools.planner.command.build_request import with_changes
from msrec.tools.planner.command.cluster_size import plans_of_groups
from msrec.tools.planner.command.plan_command import plan_tables
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import Estimator
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.request import GpuPool, PlanRequest
from msrec.tools.planner.search.make_plan import make_plan, plan_as_placed
from msrec.tools.planner.sharding_options import SPAN
from msrec.tools.planner.tables import TableLoad

A100, H100 = load_hardware("a100-80"), load_hardware("h100")
WIDE = TableLoad(name="wide", rows=40_000_000, dim=512)
quiet = Console(quiet=True)


def request(tables, **changes):
    values = {
        **{"tables": tables, "batch": 8192, "nodes": 4, "per_node": 8},
        **{"hardware_name": "a100-80", "hardware": A100},
    }
    return PlanRequest(**(values | changes))


def options_of(table, world=32, per_node=8):
    estimator = Estimator([table], Ranks(A100, world, per_node), 8192, "rowwise_adagrad")
    return {o.sharding: o for o in estimator.options(tuple(SPAN))[table.name]}


def entry_of(plan, table="wide"):
    return plan.modules["ebc"][table]


# Columns -------------------------------------------------------------------------------------


def test_a_block_of_a_grid_costs_what_a_table_of_its_columns_costs_by_rows_in_a_node():
    narrow = WIDE.model_copy(update={"name": "narrow", "dim": 128})
    block, whole = options_of(WIDE)["grid_shard"], options_of(narrow)["table_row_wise"]
    assert (block.shape, block.column_shards) == ((5_000_000, 128), 4)
    assert (block.cost, block.memory) == (whole.cost, whole.memory)
    # By hand: a reduce-scatter in the node, then an all-to-all between four nodes.
    vectors = 8192 * 32 * 128 * 4
    sent = vectors * 7 / 8 / 300e9 + vectors / 8 * 3 / 4 / 25e9
    assert block.cost.fwd_comms == block.cost.bwd_comms == pytest.approx(sent * 1e3)
    ids = 8192 * 32 / 8
    look = (ids * (128 * 4 + 8) + vectors) / 2039e9
    assert block.cost.fwd_compute == pytest.approx(look * 1e3)
    assert block.state == 5_000_000 * 4
    hops = 8.4 + 7 * 3.4 + 8.4 + 14.0
    assert block.latencies[0].ms == pytest.approx(2 * hops / 1e3)


def test_columns_in_a_node_cost_what_columns_anywhere_cost():
    options = options_of(WIDE)
    in_node, anywhere = options["table_column_wise"], options["column_wise"]
    assert (in_node.cost, in_node.memory) == (anywhere.cost, anywhere.memory)
    assert in_node.shape == (40_000_000, 128)


def test_one_node_has_no_ways_between_nodes_unless_they_are_asked_for():
    assert set(options_of(WIDE, world=8)) == {
        *("table_wise", "row_wise", "column_wise", "data_parallel"),
    }
    asked = WIDE.model_copy(update={"sharding": "grid_shard"})
    assert set(options_of(asked, world=8)) == {"grid_shard"}
    assert options_of(TableLoad(name="s", rows=10**6, dim=128, kind="sequence")).keys() == {
        *("table_wise", "row_wise", "data_parallel"),
    }


def test_shards_of_columns_in_a_node_are_on_its_ranks_and_blocks_of_a_grid_on_whole_nodes():
    tables = [
        WIDE.model_copy(update={"name": f"{way}{i}", "sharding": way})
        for way in ("table_column_wise", "grid_shard")
        for i in range(5)
    ]
    plan = make_plan(request(tables))
    assert plan.fits
    nodes = []
    for table in tables:
        entry = entry_of(plan, table.name)
        ranks = np.array(entry["ranks"]).reshape(4, -1)
        if table.sharding == "table_column_wise":
            assert len(set((ranks // 8).flat)) == 1
            assert len(set(ranks.flat)) == 4
            nodes.append(ranks[0, 0] // 8)
        else:
            for block in ranks:
                np.testing.assert_array_equal(block, np.arange(8) + block[0])
                assert block[0] % 8 == 0
        corners = [tuple(shard["offsets"]) for shard in entry["shards"]]
        rows = [0] if table.sharding == "table_column_wise" else [5_000_000 * i for i in range(8)]
        assert corners == [(row, 128 * block) for block in range(4) for row in rows]
    assert len(set(nodes)) == 4
    # Every rank of a node has as much as the others, and each node about as much.
    weights = [rank.memory["embedding weights"] for rank in plan.ranks]
    assert sum(weights) == sum(table.num_bytes for table in tables)
    again = plan_as_placed(request(tables), plan.modules["ebc"])
    assert again == plan


def test_a_wide_table_of_many_nodes_is_a_grid():
    plan = make_plan(request([WIDE]))
    assert plan.tables[0].sharding == "grid_shard"
    assert {rank // 8 for rank in plan.tables[0].ranks} == {0, 1, 2, 3}
    without = make_plan(request([WIDE], shardings=("table_wise", "row_wise", "table_row_wise")))
    assert plan.step_ms < 0.9 * without.step_ms


def test_torchrec_reads_a_plan_with_every_way(tmp_path):
    ways = ("grid_shard", "table_column_wise", "table_row_wise", "column_wise")
    tables = [
        TableLoad(name=way, rows=1000, dim=64, sharding=way, min_partition=32) for way in ways
    ]
    plan = make_plan(request(tables, nodes=2, per_node=4))
    planner.save_plan(plan, tmp_path / "plan.json")
    configs = [
        EmbeddingBagConfig(name=t.name, num_embeddings=t.rows, embedding_dim=t.dim) for t in tables
    ]
    model = torch.nn.ModuleDict({"ebc": EmbeddingBagCollection(configs, device="meta")})
    read = planner.load_plan(tmp_path / "plan.json", model).plan["ebc"]
    for table in tables:
        spec, of_table = read[table.name].sharding_spec, entry_of(plan, table.name)
        assert read[table.name].sharding_type == table.sharding
        assert [s.shard_sizes for s in spec.shards] == [s["sizes"] for s in of_table["shards"]]
        assert [s.placement.rank() for s in spec.shards] == of_table["ranks"]


# Copies --------------------------------------------------------------------------------------


def groups(**changes):
    table = TableLoad(name="t", rows=4_000_000, dim=128, sharding="row_wise")
    asked = request([table], **changes)
    return asked, make_plan(asked)


def test_copies_are_averaged_over_the_network_every_few_steps():
    asked, plan = groups(group_ranks=8, sync_every=20)
    assert (plan.world_size, plan.nodes, plan.per_node, plan.copies) == (8, 1, 8, 4)
    stored = 500_000 * (128 * 4 + 4)
    # An all-reduce of 4 ranks of different nodes, each with its own card; then a division.
    by_hand = (2 * stored * 3 / 4 / 25e9 + 2 * stored / 2039e9) / 20
    for rank in plan.ranks:
        assert rank.ms["sync"] == pytest.approx(by_hand * 1e3)
        assert rank.memory["embedding weights"] == 500_000 * 128 * 4
    # Ids and vectors stay in the node.
    vectors = 8192 * 8 * 128 * 4
    assert plan.ranks[0].ms["fwd_comms"] == pytest.approx(vectors * 7 / 8 / 300e9 * 1e3)
    kernels, ring = 11 * 3.0, 2 * (8.4 + 7 * 3.4)
    assert plan.ranks[0].ms["latency"] == pytest.approx(
        (kernels + ring + 2 * (8.4 + 3 * 14.0) / 20) / 1e3
    )
    _, often = groups(group_ranks=8, sync_every=1)
    assert often.ranks[0].ms["sync"] == pytest.approx(20 * by_hand * 1e3)
    _, one = groups()
    assert "sync" not in one.ranks[0].ms
    assert one.ranks[0].memory["embedding weights"] * 4 == 500_000 * 128 * 4
    assert plan_as_placed(asked, plan.modules["ebc"]) == plan


def test_groups_in_a_node_share_its_network_cards():
    _, plan = groups(group_ranks=2)
    assert (plan.nodes, plan.per_node, plan.copies) == (1, 2, 16)
    stored = 2_000_000 * (128 * 4 + 4)
    # 16 ranks, 4 of each node, with 4 cards: 100 GB/s between nodes.
    by_hand = 2 * stored * 15 / 16 / 100e9 + 2 * stored / 2039e9
    assert plan.ranks[0].ms["sync"] == pytest.approx(by_hand * 1e3)
    _, in_node = groups(nodes=1, group_ranks=2)
    by_hand = 2 * stored * 3 / 4 / 300e9 + 2 * stored / 2039e9
    assert in_node.ranks[0].ms["sync"] == pytest.approx(by_hand * 1e3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_ranks": 5}, "must divide the 32 ranks, .* of the 8 ranks of a node; got 5"),
        ({"group_ranks": 0}, "must divide the 32 ranks"),
        ({"nodes": 3, "per_node": 4, "group_ranks": 6}, "of the 4 ranks of a node; got 6"),
        ({"group_ranks": 8, "load_factors": [0.1]}, "must have the kernel fused, because copies"),
    ],
)
def test_groups_that_training_refuses_are_not_planned(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        groups(**changes)


@pytest.mark.parametrize(("sync_every", "best"), [(1, 32), (1000, 1)])
def test_the_best_size_of_groups_is_that_of_the_shortest_step(sync_every, best):
    asked, _ = groups(sync_every=sync_every)
    plans = plans_of_groups(asked)
    assert list(plans) == [1, 2, 4, 8, 16, 32]
    for number, plan in plans.items():
        assert plan == make_plan(dataclasses.replace(asked, group_ranks=number))
    found = plan_tables(asked, None, best_groups=True, console=quiet)
    assert found == plans[best]
    assert found.step_ms == min(plan.step_ms for plan in plans.values())


def test_groups_without_room_are_left_out():
    table = TableLoad(name="t", rows=50_000_000, dim=512, sharding="row_wise")  # 95 GiB
    assert list(plans_of_groups(request([table]))) == [2, 4, 8, 16, 32]


def test_every_group_gets_the_ranks_and_gpus_of_torchrecs_own_copies(monkeypatch):
    _, plan = groups(group_ranks=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 32)
    rank, theirs = 21, plan_from_dict({"modules": plan.modules})
    env = object.__new__(ShardingEnv2D)
    env.global_rank, env.rank = rank, rank % 4
    ours = plan_of_group(theirs, env)
    on_gpus = SimpleNamespace(_device=torch.device("cuda"))
    DMPCollection._remap_sharding_plan(on_gpus, theirs, rank, 8, 4, use_inter_host_allreduce=True)
    (a,), (b,) = (p.plan["ebc"].values() for p in (ours, theirs))
    assert a.ranks == b.ranks == [20, 21, 22, 23]
    places = [str(s.placement) for s in a.sharding_spec.shards]
    assert places == [str(s.placement) for s in b.sharding_spec.shards]
    assert places == [f"rank:{20 + i}/cuda:{4 + i}" for i in range(4)]


# Different GPUs ------------------------------------------------------------------------------


def pools(tables, **changes):
    gpus = [GpuPool("h100", H100, 8), GpuPool("a100-80", A100, 8)]
    fields = {"pools": gpus, "nodes": 2, "hardware_name": "h100", "hardware": H100}
    return make_plan(request(tables, **(fields | changes)))


def test_every_gpu_has_its_own_memory_speed_and_the_slowest_links():
    table = TableLoad(name="t", rows=4_000_000, dim=128, pooling=10, sharding="row_wise")
    plan = pools([table])
    mine = plan_as_placed(request([table], nodes=2), plan.modules["ebc"])
    slow, fast = plan.ranks[15].ms, plan.ranks[0].ms
    assert slow == pytest.approx(mine.ranks[15].ms)
    for part in ("fwd_compute", "bwd_compute"):
        assert fast[part] == pytest.approx(slow[part] * 2039 / 3350)
    for part in ("fwd_comms", "bwd_comms", "latency"):
        assert fast[part] == slow[part]
    assert plan.step_ms == pytest.approx(mine.step_ms)
    assert plan.cluster_name == "1 x 8 h100 + 1 x 8 a100-80"
    assert plan.tables[0].ms == {part: slow[part] for part in plan.tables[0].ms}


def test_faster_gpus_look_up_more_and_larger_ones_hold_more():
    many = [
        TableLoad(name=f"t{i}", rows=100_000, dim=128, pooling=200, sharding="table_wise")
        for i in range(160)
    ]
    plan = pools(many)
    on = np.bincount([plan.modules["ebc"][t.name]["ranks"][0] for t in many], minlength=16)
    assert on[:8].min() > on[8:].max()
    assert plan.imbalance < 1.15
    blind = make_plan(request(many, nodes=2)).modules["ebc"]
    worse = plan_as_placed(
        request(many, nodes=2, pools=[GpuPool("h100", H100, 8), GpuPool("a100-80", A100, 8)]), blind
    )
    assert plan.step_ms < 0.95 * worse.step_ms
    large = H100.model_copy(update={"memory_gib": 160.0})
    big = [
        TableLoad(name=f"b{i}", rows=150_000_000, dim=128, sharding="table_wise") for i in range(24)
    ]
    gpus = [GpuPool("large", large, 8), GpuPool("a100-80", A100, 8)]
    held = pools(big, pools=gpus)
    assert held.fits
    on = np.bincount([held.modules["ebc"][t.name]["ranks"][0] for t in big], minlength=16)
    assert on.tolist() == [2] * 8 + [1] * 8
    assert held.capacities == [int(160 * 2**30 * 0.95)] * 8 + [int(80 * 2**30 * 0.95)] * 8


def test_pools_that_do_not_make_a_job_are_refused(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("- {name: a, rows: 1000, dim: 64}\n")
    options = {"gpu": None, "gpus_per_node": 8}
    asked = asked_of(file, pool=["h100:8", "a100-80:16"], **options)
    assert [(pool.name, pool.ranks) for pool in asked.pools] == [("h100", 8), ("a100-80", 16)]
    assert (asked.nodes, asked.world_size) == (3, 24)
    for pool, changes, sentence in (
        (["h100:8", "a100-80:6"], {}, "whole nodes of 8 ranks; a100-80 has 6"),
        (["h100"], {}, "--pool must be NAME:RANKS, such as h100:8; got 'h100'"),
        (["h100:8", "cpu:8"], {}, "must be GPUs, or all CPUs; got h100, cpu"),
        (["h100:8"], {"gpu": "h100"}, "leave out --gpu"),
        (["h100:8", "a100-80:8"], {"group_ranks": 8}, "groups of ranks must have equal GPUs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            asked_of(file, pool=pool, **(options | changes))
    with pytest.raises(ValueError, match="nodes=2: the GPUs of a job with --pool"):
        with_changes(asked, "nodes=2")


# Training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=600)


def trained(rank, world_size, config, per_node):
    """Table, first row and first column of each shard of this rank -> values after training."""
    os.environ["LOCAL_WORLD_SIZE"] = str(per_node)
    trainer = Trainer(config, Process(rank, world_size, per_node, torch.device("cpu")))
    assert trainer.fit().progress.step == 4
    return {
        (name, *shard.metadata.shard_offsets): shard.tensor.numpy().copy()
        for name, value in trainer.model.state_dict().items()
        if hasattr(value, "local_shards")
        for shard in value.local_shards()
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", ["grid", "table_column_wise", "table_row_wise", "copies"])
def test_a_run_trains_with_a_plan_of_every_way_as_without(dataset, tmp_path, way):
    sharding = "row_wise" if way == "copies" else way
    tables = ", ".join(f"{name}: {sharding}" for name in ("user_id", "item_id", "genre"))
    options = [
        *("trainer.global_batch=96", "trainer.max_steps=4", "embeddings.min_columns=4"),
        *("embeddings.dim=8", f"embeddings.sharding={{{tables}}}"),
        *(("embeddings.group_ranks=2", "embeddings.sync_every=3") if way == "copies" else ()),
    ]
    config = config_of(dataset, tmp_path / "runs", *options)
    file = tmp_path / "conf.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    out = tmp_path / "plan.json"
    plan = plan_tables(asked_of(file, nodes=2, gpus_per_node=2), out, console=quiet)
    assert plan.copies == (2 if way == "copies" else 1)
    planned = config_of(dataset, tmp_path / "planned", *options, f"plan={out}")
    values, expected = (
        {corner: v for rank in run_ranks(trained, 4, each, 2) for corner, v in rank.items()}
        for each in (planned, config)
    )
    assert values.keys() == expected.keys()
    assert len(values) == {"grid": 12, "table_column_wise": 6}.get(way, 6)
    for corner, shard in values.items():
        np.testing.assert_allclose(shard, expected[corner], atol=1e-6)
    used = json.loads((planned.run_dir / "plan.json").read_text())
    assert used["modules"] == plan.modules
