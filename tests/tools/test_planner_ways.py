"""Plans with columns in nodes, with copies of the tables, and with different GPUs."""

import json
import os

import numpy as np
import pytest
import torch
from plan_requests import asked_of
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from trainings import config_of

from msrec import planner
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer
from msrec.tools.planner.command.plan_command import plan_tables
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import Estimator
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.make_plan import make_plan, plan_as_placed
from msrec.tools.planner.request import PlanRequest
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
