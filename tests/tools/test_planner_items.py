"""Plans of runs with tables of item vectors: lookups, memory, and training by the plan."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from interest_runs import (
    ITEM_DIM,
    MAX_LEN,
    SOURCES,
    interest_config,
    interest_root,
)
from plan_requests import asked_of
from ranks import run_ranks
from rich.console import Console
from trainings import fit, weights

from msrec.data.io.atomic_files import write_text
from msrec.data.schema import load_schema
from msrec.launch.build_model import build_model
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.reporting.plan_table import dense_parameters
from msrec.launch.training.table_trace import trace_tables
from msrec.launch.training.trainer import Trainer
from msrec.model.frozen_items import item_table
from msrec.model.sequence_items import SEQUENCE_TABLE
from msrec.tools.planner.command.measured_runs import report_run
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import Estimator
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.sources.run_memory import tables_and_dense
from msrec.tools.planner.tables import TableLoad

pytestmark = pytest.mark.slow

DIN = "sequence.encoder=din"
FROZEN = {item_table(source): source for source in SOURCES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("planned")
    interest_root(root)
    return root


def planned(root, tmp_path, name, *options, **asked):
    """The config of a run, and the plan for two CPU ranks that `msrec plan` makes of it."""
    config = interest_config(root, name, *options, f"run_root={tmp_path}")
    save_config(config, tmp_path / "conf.yaml")
    return config, make_plan(asked_of(tmp_path / "conf.yaml", **asked))


def distinct_items(config, rows):
    """Distinct items of the first training batch, row by row."""
    schema = load_schema(config.dataset)
    knowledge = KnowledgeInputs(config, schema)
    process = Process(0, 1, 1, torch.device("cpu"))
    loader = build_loader(config, "train", process, knowledge, 96, shuffle=True)
    batch = next(loader.batches())
    items = set()
    ids = batch.sequence.items.values().tolist()
    for row in range(rows):
        items.add(int(batch.item[row]))
        places = batch.sequence.events[batch.sequence.bag[row]]
        items |= {ids[place] for place in places.tolist() if place < len(ids)}
    return len(items)


def test_tables_of_item_vectors_have_the_lookups_of_a_step(root):
    config = interest_config(root, "both", DIN)
    tables = {table.name: table for table in tables_and_dense(config, 4)[0]}
    items = distinct_items(config, 4)
    assert 4 < items < 4 * (1 + MAX_LEN)
    rows, bags = load_schema(root / "data").num_items, (4 * (1 + MAX_LEN) + 1) / 4
    for name in FROZEN:
        assert tables[name] == TableLoad(
            name=name,
            rows=rows,
            dim=ITEM_DIM,
            pooling=items / 4,
            bags=bags,
            precision="fp16",
            frozen=True,
            module="ranker.items.ebc",
            min_partition=ITEM_DIM,
        )
    learned = tables[SEQUENCE_TABLE]
    assert (learned.rows, learned.dim, learned.pooling, learned.bags) == (rows, 8, items / 4, bags)
    assert (learned.precision, learned.frozen) == ("fp32", False)
    assert learned.module == "ranker.sequence_items.ebc"
    alone = {t.name: t for t in tables_and_dense(interest_config(root, "alone"), 4)[0]}
    assert alone["item_made"].bags == (items + 1) / 4  # no equal bags without an encoder
    assert SEQUENCE_TABLE not in alone
    assert tables["user_id"].module == "ranker.embeddings.ebc"


def test_a_frozen_table_takes_its_float16_rows_and_no_state(root, tmp_path):
    halves = {name: "row_wise" for name in [*FROZEN, SEQUENCE_TABLE]}
    config, plan = planned(root, tmp_path, "memory", DIN, f"embeddings.sharding={halves}")
    rows, items = load_schema(root / "data").num_items, distinct_items(config, 48)
    tables = {table.name: table for table in plan.tables}
    for name in FROZEN:
        assert (tables[name].weights, tables[name].state) == (rows * ITEM_DIM * 2, 0)
        assert tables[name].ms["fwd_compute"] > 0
        assert tables[name].ms["bwd_compute"] == tables[name].ms["bwd_comms"] == 0
    learned = tables[SEQUENCE_TABLE]
    assert (learned.weights, learned.state) == (rows * 8 * 4, rows * 4)
    estimator = Estimator(asked_of(tmp_path / "conf.yaml").tables, cpu_ranks(), 48, "adam")
    load = next(t for t in estimator._tables if t.name == "item_made")
    option = estimator.option(load, "row_wise")
    # Ids of two ranks, of which half are of this shard; a float32 vector for each of their bags.
    assert option.inputs == 8 * items * 2 // 2
    assert option.outputs == 2 * (48 * (1 + MAX_LEN) + 1) * ITEM_DIM * 4


def cpu_ranks():
    return Ranks(load_hardware("cpu"), 2, 2)


@pytest.mark.parametrize("frozen", [True, False])
def test_float16_vectors_are_sent_as_float32(frozen):
    shape = {"rows": 10_000, "dim": 32, "pooling": 3.0, "bags": 3.0}
    full = TableLoad(name="fp32", frozen=frozen, **shape)
    half = TableLoad(name="fp16", precision="fp16", frozen=frozen, **shape)
    exact, quantised = (
        Estimator([full, half], cpu_ranks(), 64, "rowwise_adagrad", comms)
        for comms in ("fp32", "fp16")
    )
    for sharding in ("table_wise", "row_wise"):
        costs = [exact.option(table, sharding).cost for table in (full, half)]
        assert costs[1].fwd_comms == pytest.approx(costs[0].fwd_comms)
        assert costs[1].bwd_comms == pytest.approx(costs[0].bwd_comms)
        assert 0 < costs[1].fwd_compute < costs[0].fwd_compute
        for table in (full, half):  # quantised communication sends half of the bytes
            cost = quantised.option(table, sharding).cost
            assert cost.fwd_comms == pytest.approx(costs[0].fwd_comms / 2)
            assert cost.bwd_comms == pytest.approx(costs[0].bwd_comms / 2)


def test_bags_are_vectors_to_send_and_ids_are_not_counted_twice():
    estimator = Estimator(
        [
            TableLoad(name="list", rows=1000, dim=16, pooling=6.0),
            TableLoad(name="bags", rows=1000, dim=16, pooling=6.0, bags=6.0),
        ],
        cpu_ranks(),
        64,
        "rowwise_adagrad",
    )
    pooled, single = (estimator.option(table, "table_wise") for table in estimator._tables)
    assert single.inputs == pooled.inputs == 8 * 64 * 2 * 6
    assert single.outputs == 6 * pooled.outputs == 6 * 64 * 2 * 16 * 4
    assert single.cost.fwd_comms == pytest.approx(6 * pooled.cost.fwd_comms)


def test_the_dense_part_is_measured_with_the_interest_block_and_the_encoder(root):
    options = ("backbone.name=mlp", "backbone.dims=[8]", "backbone.dropout=0.0")
    config = interest_config(root, "dense", *options, DIN)
    bare = config.model_copy(
        update={
            "interest": config.interest.model_copy(update={"enabled": False}),
            "sequence": config.sequence.model_copy(update={"encoder": "none"}),
        }
    )
    _, dense = tables_and_dense(config, 64)
    _, without = tables_and_dense(bare, 64)
    schema = load_schema(config.dataset)
    model = build_model(config, schema, KnowledgeInputs(config, schema))
    interest = dense_parameters(model.ranker.over.interest)
    assert dense.fixed["networks that read the LLM"] == 4 * interest
    both = dense.fixed["dense parameters"] + dense.fixed["networks that read the LLM"]
    assert both == 4 * dense_parameters(model)
    more = dense.at(64)["activations"] - without.at(64)["activations"]
    # At least: both frozen vectors and the learned one of each bag, and the learned one's gradient.
    bags = 64 * (1 + MAX_LEN) + 1
    assert more > 4 * bags * (2 * ITEM_DIM + 2 * 8)
    assert dense.reading.at_zero == without.reading.at_zero + 2 * schema.num_items


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize("options", [[], [DIN]], ids=["interest", "interest and din"])
def test_training_by_a_plan_equals_training_without_one(root, tmp_path, sharding, options):
    names = [*FROZEN, SEQUENCE_TABLE][: 2 + len(options)]
    split = f"embeddings.sharding={dict.fromkeys(names, sharding)}"
    config, plan = planned(root, tmp_path, "without", *options, split)
    assert {
        plan.modules[m][t]["sharding_type"]
        for m in plan.modules
        for t in names
        if t in plan.modules[m]
    } == {sharding}
    write_text(tmp_path / "plan.json", plan.model_dump_json())
    by_plan = config.model_copy(update={"plan": tmp_path / "plan.json", "run_id": "planned"})
    expected, found = run_ranks(fit, 2, config), run_ranks(fit, 2, by_plan)
    for (losses, _, values), (again, _, planned_values) in zip(expected, found, strict=True):
        np.testing.assert_allclose(again, losses, atol=1e-6)
        dense = [name for name in values if "embedding_bags" not in name]
        assert dense
        for name in dense:
            np.testing.assert_allclose(
                planned_values[name], values[name], rtol=2e-6, atol=1e-6, err_msg=name
            )


def test_a_dense_optimizer_replicates_all_tables_but_the_frozen_ones(root, tmp_path):
    config, plan = planned(root, tmp_path, "adam", DIN, "embeddings.optimizer=adam")
    kernels = {table.name: (table.sharding, table.kernel) for table in plan.tables}
    for name in FROZEN:
        assert kernels.pop(name) in {("table_wise", "fused"), ("row_wise", "fused")}
    assert set(kernels.values()) == {("data_parallel", "dense")}
    write_text(tmp_path / "plan.json", plan.model_dump_json())
    by_plan = config.model_copy(update={"plan": tmp_path / "plan.json", "run_id": "planned"})
    losses, again = (run_ranks(fit, 2, each)[0][0] for each in (config, by_plan))
    np.testing.assert_allclose(again, losses, atol=1e-6)
    fused = make_plan(
        dataclasses.replace(asked_of(tmp_path / "conf.yaml"), shardings=["table_wise"])
    )
    write_text(tmp_path / "plan.json", fused.model_dump_json())
    with pytest.raises(AssertionError, match="every table must be data_parallel .* has fused"):
        run_ranks(fit, 2, by_plan)


def test_traced_times_have_the_tables_of_items(root, tmp_path):
    """A frozen table has no update; the learned one has."""
    traced = ("trainer.max_steps=3", "trainer.trace=3", "embeddings.sharding={item_made: row_wise}")
    config = interest_config(root, "traced", DIN, *traced, f"run_root={tmp_path}")
    found = run_ranks(traced_tables, 2, config)[0]
    plan, _ = printed_by(report_run, PlanOptions(measured=config.run_dir))
    saved = json.loads((config.run_dir / "plan.json").read_text())
    assert plan.modules == saved["modules"]
    names = {name for rank in found for name in rank["tables"]}
    assert names == {table.name for table in plan.tables}
    for rank in found:
        assert rank["tables"]["item_made"]["fwd_compute"] > 0
        for name in FROZEN.keys() & rank["tables"].keys():
            assert rank["tables"][name]["bwd_compute"] < 0.05
    learned = [r["tables"][SEQUENCE_TABLE] for r in found if SEQUENCE_TABLE in r["tables"]]
    assert learned[0]["bwd_compute"] > 0


def traced_tables(rank, world_size, config):
    """Trains and returns the traced times; frozen vectors and learned ones keep their values."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    trainer.fit()
    if rank == 0:
        save_config(config, config.run_dir / "config.yaml")
    before = weights(trainer)
    with trainer.pipeline.detached():
        found = trace_tables(trainer.model, next(trainer.train.batches()), 2)
    after = weights(trainer)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    return found


def printed_by(function, *args):
    console = Console(file=io.StringIO(), width=140)
    return function(*args, console), console.file.getvalue()
