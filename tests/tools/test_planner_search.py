"""Search for plans: balance of memory, fewest GPUs, tables that must be together."""

import time

import numpy as np
import pytest

from msrec.tools.planner.cluster import Cluster, Pool
from msrec.tools.planner.command.cluster_size import fewest_gpus
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.search.memory_balance import balanced
from msrec.tools.planner.search.placement import placement_on
from msrec.tools.planner.sharding_options import ShardCost, ShardingOption
from msrec.tools.planner.tables import TableLoad, read_tables_file

H100 = load_hardware("h100")
BIG = [TableLoad(name=f"big{i}", rows=10_000_000, dim=128) for i in range(12)]


def request(tables, **changes):
    values = {
        **{"tables": tables, "batch": 512, "nodes": 1, "per_node": 8},
        **{"hardware_name": "h100", "hardware": H100},
    }
    return PlanRequest(**(values | changes))


def option(table, ms, memory):
    return ShardingOption(
        table=table,
        sharding="table_wise",
        kernel="fused",
        column_shards=1,
        shape=(1, 1),
        cost=ShardCost(fwd_compute=ms),
        weights=memory,
        state=0,
        host=0,
        inputs=0,
        outputs=0,
    )


def test_equal_time_with_the_memory_apart():
    # Both fast large tables are on rank 0; slow small ones fill rank 1 to the same time.
    chosen = {
        "a": option("a", 1.0, 100),
        "b": option("b", 1.0, 100),
        "c": option("c", 1.0, 1),
        "d": option("d", 1.0, 1),
    }
    cluster = Cluster(ranks_per_node=2, pools=(Pool(2, memory=1000, host=0),))
    before = placement_on(chosen, {"a": [0], "b": [0], "c": [1], "d": [1]}, cluster)
    after = balanced(before, cluster)
    assert (before.memory.max(), after.memory.max()) == (200, 101)
    assert after.step_ms == before.step_ms == 2
    assert after.ranks["a"] != after.ranks["b"]


def test_balancing_memory_never_lengthens_the_step_and_keeps_the_loads_right():
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = {
            f"t{i}": option(f"t{i}", rng.uniform(0.1, 2), int(rng.exponential(1000)) + 1)
            for i in range(40)
        }
        ranks = {table: [int(rng.integers(8))] for table in chosen}
        cluster = Cluster(ranks_per_node=4, pools=(Pool(8, memory=10**9, host=0),))
        before = placement_on(chosen, ranks, cluster)
        after = balanced(before, cluster)
        assert after.step_ms <= before.step_ms * (1 + 1e-9)
        assert after.memory.max() <= before.memory.max()
        again = placement_on(chosen, after.ranks, cluster)
        np.testing.assert_allclose(after.ms, again.ms)
        np.testing.assert_allclose(after.memory, again.memory)


def test_a_plan_has_its_large_tables_on_different_ranks():
    large = [TableLoad(name=f"l{i}", rows=5_000_000, dim=64) for i in range(8)]
    tiny = [TableLoad(name=f"t{i}", rows=1000, dim=64) for i in range(56)]
    plan = make_plan(request([*large, *tiny], shardings=("table_wise",)))
    assert len({plan.modules["ebc"][t.name]["ranks"][0] for t in large}) == 8


@pytest.mark.parametrize(
    ("tables", "nodes", "per_node"), [(2, 1, 1), (12, 1, 3), (60, 2, 8)], ids=str
)
def test_the_fewest_gpus_have_room_and_one_less_does_not(tables, nodes, per_node):
    # 4.8 GiB each, with the state, and 23.75 GiB on a GPU: 4 on each.
    hardware = H100.model_copy(update={"memory_gib": 25.0})
    many = [BIG[0].model_copy(update={"name": f"t{i}"}) for i in range(tables)]
    asked = request(many, hardware=hardware, shardings=("table_wise",), batch=8)
    found = fewest_gpus(asked)
    assert found.fits
    assert (found.nodes, found.per_node) == (nodes, per_node)
    assert -(-tables // 4) <= found.world_size
    if per_node > 1:
        fewer = {"nodes": 1, "per_node": per_node - 1 if nodes == 1 else 8}
        smaller = request(many, hardware=hardware, shardings=("table_wise",), batch=8, **fewer)
        assert not make_plan(smaller).fits


def test_a_table_that_no_gpu_holds_is_refused_at_once():
    huge = TableLoad(name="huge", rows=3_000_000_000, dim=128, sharding="table_wise")
    start = time.process_time()
    with pytest.raises(ValueError, match=r"must fit on a GPU; table huge is table_wise .* 1,441.7"):
        fewest_gpus(request([huge]))
    assert time.process_time() - start < 1
    # By rows it fits: 1,441.7 GiB and buffers, on GPUs of 76.
    found = fewest_gpus(request([huge.model_copy(update={"sharding": "row_wise"})]))
    assert (found.nodes, found.per_node) == (3, 8)


def test_tables_with_a_label_are_on_one_rank():
    together = [t.model_copy(update={"co_locate": "pair"}) for t in BIG[:3]]
    apart = make_plan(request(BIG, shardings=("table_wise",)))
    plan = make_plan(request([*together, *BIG[3:]]))
    ranks = {t.name: plan.modules["ebc"][t.name]["ranks"] for t in together}
    assert len({tuple(on) for on in ranks.values()}) == 1
    assert {plan.modules["ebc"][t.name]["sharding_type"] for t in together} == {"table_wise"}
    assert len({apart.modules["ebc"][t.name]["ranks"][0] for t in together}) == 3
    # The load of each rank has all of the tables.
    weights = sum(rank.memory["embedding weights"] for rank in plan.ranks)
    assert weights == pytest.approx(sum(t.num_bytes for t in BIG), rel=1e-6)


def test_column_shards_have_the_columns_that_the_table_names():
    table = TableLoad(name="t", rows=1_000_000, dim=128, sharding="column_wise", min_partition=32)
    (plan,) = make_plan(request([table])).modules["ebc"].values()
    assert [shard["sizes"] for shard in plan["shards"]] == [[1_000_000, 32]] * 4
    assert [shard["offsets"] for shard in plan["shards"]] == [[0, 32 * i] for i in range(4)]
    with pytest.raises(ValueError, match="table 't' must have a sharding option; column_wise"):
        make_plan(request([table.model_copy(update={"min_partition": None})]))


def test_options_of_a_list_are_read_and_checked(tmp_path):
    file = tmp_path / "tables.csv"
    file.write_text(
        "name,rows,dim,kind,weighted,batch,min_partition,co_locate\n"
        "1,1e9,128,sequence,true,64,32,\nb,10,64,pooled,false,,,7\n"
    )
    one, b = read_tables_file(file)
    assert (one.name, one.rows, one.kind, one.weighted, one.batch) == (
        *("1", 10**9, "sequence", True, 64),
    )
    assert (one.min_partition, one.co_locate, b.co_locate, b.batch) == (32, None, "7", None)
    for line, sentence in (
        ("- {name: a, rows: 9, dim: 128, min_partition: 48}", "must divide dim, 128; got 48"),
        ("- {name: a, rows: 9, dim: 8, co_locate: x, sharding: row_wise}", "is table_wise"),
        ("- {name: a, rows: 9, dim: 8, kind: bag}", "table a: kind: Input should be 'pooled'"),
    ):
        (tmp_path / "t.yaml").write_text(line)
        with pytest.raises(ValueError, match=sentence):
            read_tables_file(tmp_path / "t.yaml")
    file.write_text("name,rows,dim\na,10\n")
    with pytest.raises(ValueError, match="columns name, rows, dim in each row; row 1 not"):
        read_tables_file(file)
