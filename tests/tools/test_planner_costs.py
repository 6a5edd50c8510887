"""Estimates of time against values computed by hand: collectives, latency, kernels, precisions."""

import math

import pytest

from msrec.tools.planner.costs import Ranks, kernel_width, shard_cost
from msrec.tools.planner.estimator import Estimator
from msrec.tools.planner.export.published import published_steps
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import TableLoad

A100, H100 = load_hardware("a100-80"), load_hardware("h100")
BIG = TableLoad(name="big", rows=40_000_000, dim=128)


def request(tables, **changes):
    values = {
        **{"tables": tables, "batch": 8192, "nodes": 1, "per_node": 8},
        **{"hardware_name": "a100-80", "hardware": A100},
    }
    return PlanRequest(**(values | changes))


def cost(table, sharding="table_wise", world=8, hardware=A100, columns=None, **changes):
    shape = (table.rows, columns or table.dim)
    ranks = Ranks(hardware, world, 8)
    rest = {"kernel": "fused", "load_factor": None, "batch": 8192, "optimizer": "rowwise_adagrad"}
    rest["comms"] = "fp32"
    return shard_cost(ranks, table, sharding, shape=shape, **(rest | changes))


def test_two_nodes_send_half_of_the_vectors_over_the_network():
    vectors = 8192 * 16 * 128 * 4
    found = cost(BIG, world=16)
    assert found.fwd_comms == found.bwd_comms == pytest.approx(vectors / 2 / 25e9 * 1e3)
    assert found.fwd_comms == pytest.approx(1.342, abs=1e-3)


def test_a_rank_sends_nothing_to_itself():
    vectors = 8192 * 8 * 128 * 4
    assert cost(BIG).fwd_comms == pytest.approx(vectors * 7 / 8 / 300e9 * 1e3)
    assert cost(BIG, world=8).fwd_comms == pytest.approx(0.0979, abs=1e-4)
    one = Ranks(A100, 1, 1)
    assert one.all_to_all(1e9) == one.ring(1e9) == 0


def test_the_slower_of_both_links_counts_in_an_all_to_all():
    # 8 nodes: 7 of 64 parts stay in the node, 56 leave it.
    ranks = Ranks(A100, 64, 8)
    assert ranks.all_to_all(64e6) == pytest.approx(max(7e6 / 300e6, 56e6 / 25e6))
    fast_network = A100.model_copy(update={"inter_node_gb_s": 1e6})
    assert Ranks(fast_network, 64, 8).all_to_all(64e6) == pytest.approx(7e6 / 300e6)


def test_a_ring_uses_all_network_cards_of_a_node():
    # 16 ranks of two nodes: 15/16 of the bytes, at 8 x 25 GB/s; in one node at 300 GB/s.
    assert Ranks(A100, 16, 8).ring(16e6) == pytest.approx(15e6 / 200e6)
    assert Ranks(A100, 8, 8).ring(8e6) == pytest.approx(7e6 / 300e6)
    vectors = 8192 * 16 * 128 * 4
    split = cost(BIG, "row_wise", world=16)
    assert split.fwd_comms == split.bwd_comms == pytest.approx(vectors * 15 / 16 / 200e9 * 1e3)


def test_rows_in_a_node_are_summed_in_it_and_then_sent_between_nodes():
    vectors = 8192 * 16 * 128 * 4
    inside, between = vectors * 7 / 8 / 300e9, vectors / 8 / 2 / 25e9
    found = cost(BIG, "table_row_wise", world=16)
    assert found.fwd_comms == pytest.approx((inside + between) * 1e3)


def test_a_replicated_table_sends_its_gradient_twice_around_the_ring():
    table = TableLoad(name="small", rows=1000, dim=128)
    found = cost(table, "data_parallel")
    assert found.fwd_comms == 0
    assert found.bwd_comms == pytest.approx(2 * 7 / 8 * 1000 * 128 * 4 / 300e9 * 1e3)


def test_kernels_read_and_write_what_is_counted_by_hand():
    # Pooling 12, 65,536 rows of a step: as in hand.py of the issue, with distinct rows.
    table = TableLoad(name="t19", rows=40_000_000, dim=128, pooling=12)
    rows, ids = 65536, 65536 * 12
    look, out = ids * 128 * 4, rows * 128 * 4
    distinct = 40e6 * (1 - math.exp(-ids / 40e6))
    found = cost(table)
    assert found.fwd_compute == pytest.approx((look + out + ids * 8) / 2039e9 * 1e3)
    update = out + 2 * distinct * 128 * 4 + 2 * distinct * 4 + 5 * ids * 8
    assert found.bwd_compute == pytest.approx(update / 2039e9 * 1e3)


def test_a_table_of_three_rows_writes_three_rows():
    tiny = TableLoad(name="tiny", rows=3, dim=128)
    out = 65536 * 128 * 4
    written = 2 * 3 * (128 * 4 + 4)
    update = (out + written + 5 * 65536 * 8) / 2039e9 * 1e3
    assert cost(tiny).bwd_compute == pytest.approx(update)


def test_narrow_vectors_take_a_padded_warp():
    assert [kernel_width(d) for d in (4, 32, 48, 64, 96, 128, 160, 192, 512)] == pytest.approx(
        [56, 56, 73.6, 73.6, 128, 128, 184, 201.6, 512]
    )
    widths = [kernel_width(d) for d in range(4, 1024, 4)]
    assert widths == sorted(widths)
    ids = 65536
    narrow = cost(TableLoad(name="n", rows=40_000_000, dim=16))
    expected = ids * (56 * 4 + 16 * 4 + 8)
    assert narrow.fwd_compute == pytest.approx(expected / 2039e9 * 1e3)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "table_row_wise"])
def test_vectors_of_every_precision_are_float32(sharding):
    half = BIG.model_copy(update={"name": "half", "precision": "fp16"})
    full, narrow = (cost(t, sharding, world=16) for t in (BIG, half))
    assert (narrow.fwd_comms, narrow.bwd_comms) == (full.fwd_comms, full.bwd_comms)
    lookups = (
        65536 * 2 if sharding == "table_wise" else 65536 * 2 // {"row_wise": 16}.get(sharding, 8)
    )
    saved = lookups * 128 * 2 / 2039e9 * 1e3
    assert full.fwd_compute - narrow.fwd_compute == pytest.approx(saved)
    estimator = Estimator([BIG, half], Ranks(A100, 16, 8), 8192, "rowwise_adagrad")
    options = [estimator.option(table, sharding) for table in (BIG, half)]
    assert options[0].outputs == options[1].outputs == 8192 * 16 * 128 * 4
    assert options[1].weights * 2 == options[0].weights


def test_weights_and_sequences_are_counted():
    plain = TableLoad(name="t", rows=40_000_000, dim=128, pooling=10)
    weighted = plain.model_copy(update={"weighted": True})
    sequence = plain.model_copy(update={"kind": "sequence"})
    ids = 65536 * 10
    more = cost(weighted).fwd_compute - cost(plain).fwd_compute
    assert more == pytest.approx(ids * 4 / 2039e9 * 1e3)
    for sharding in ("table_wise", "row_wise"):
        sent = ids * 128 * 4 / (8 if sharding == "row_wise" else 1)
        found = cost(sequence, sharding)
        assert found.fwd_comms == pytest.approx(sent * 7 / 8 / 300e9 * 1e3)
    assert cost(plain).fwd_comms == pytest.approx(65536 * 128 * 4 * 7 / 8 / 300e9 * 1e3)


def test_a_table_with_its_own_batch_has_the_lookups_of_that_batch():
    own = BIG.model_copy(update={"batch": 1024})
    assert cost(own).total == pytest.approx(cost(BIG, batch=1024).total)


def test_rows_in_host_memory_come_over_the_link():
    table = TableLoad(name="t", rows=40_000_000, dim=128)
    ids, row = 65536, 128 * 4
    rest = (ids * 8 + 65536 * row) / 2039e9
    host = ids * row / 2.5e9
    assert cost(table, kernel="fused_uvm").fwd_compute == pytest.approx((host + rest) * 1e3)
    # A cache of three quarters holds three quarters of equally popular ids. The others come over
    # the link before the step, and as many rows go back.
    distinct = 40e6 * (1 - math.exp(-ids / 40e6))
    cached = cost(table, kernel="fused_uvm_caching", load_factor=0.75)
    # The cache sorts the ids, and its slots are written and read.
    more = ids * (5 * 8 + 3 * 4) / 2039e9
    assert cached.fwd_compute == pytest.approx((ids * row / 2039e9 + rest + more) * 1e3)
    assert cached.prefetch == pytest.approx(distinct / 4 * 2 * row / 25e9 * 1e3, rel=1e-2)
    assert cached.total == pytest.approx(cost(table).total + more * 1e3)
    assert cached.busy == max(cached.total, cached.prefetch)


def test_26_small_tables_have_the_latency_of_one():
    small = [TableLoad(name=f"t{i}", rows=100_000, dim=16) for i in range(26)]
    # One rank of 8 with everything: a collective each way and the kernels of both directions.
    by_hand = (2 * (8.4 + 3.4) + (1 + 10) * 3.0) / 1e3
    for tables in (small[:1], small):
        plan = make_plan(request(tables, batch=8, shardings=("table_wise",)))
        latency = [rank.ms["latency"] for rank in plan.ranks]
        assert max(latency) == pytest.approx(by_hand)
    assert by_hand < 0.06
    empty = make_plan(request(small[:1], batch=8, shardings=("table_wise",))).ranks
    assert sorted({round(rank.ms["latency"], 6) for rank in empty}) == pytest.approx(
        [2 * 11.8e-3, by_hand]
    )


def test_latency_grows_with_the_ring_and_a_second_kind_of_sharding_adds_its_own():
    ranks = Ranks(A100, 16, 8)
    collective, kernels = ranks.latencies(BIG, "row_wise", "fused")
    assert collective.ms == pytest.approx(2 * (8.4 + 14 * 3.4 + 1 * 14) / 1e3)
    assert kernels.ms == pytest.approx(0.033)
    in_node, _ = ranks.latencies(BIG, "table_row_wise", "fused")
    assert in_node.ms == pytest.approx(2 * (8.4 + 7 * 3.4 + 8.4 + 14) / 1e3)
    assert ranks.latencies(BIG, "data_parallel", "dense")[0].ms == 0
    both = [BIG, BIG.model_copy(update={"name": "other", "sharding": "row_wise"})]
    both[0] = BIG.model_copy(update={"sharding": "table_wise"})
    found = make_plan(request(both))
    a, b = (make_plan(request([each])) for each in both)
    latencies = [max(r.ms["latency"] for r in plan.ranks) for plan in (found, a, b)]
    assert latencies[0] == pytest.approx(latencies[1] + latencies[2])
    frozen = BIG.model_copy(update={"frozen": True})
    assert sum(each.ms for each in ranks.latencies(frozen, "table_wise", "fused")) == pytest.approx(
        (8.4 + 14 + 3) / 1e3
    )


def test_published_steps_are_compared_with_the_estimates():
    mlperf, torchrec = published_steps()
    # 135,168 rows of a step at 70.75 M rows a second; the log's time stamps give 2.963 s.
    assert mlperf.batch * 128 == 135_168
    assert mlperf.published_ms == pytest.approx(135_168 / (209_644_991 / 2.963) * 1e3, rel=1e-4)
    assert mlperf.published_ms == pytest.approx(1.910, abs=1e-3)
    weights = 13 * 512 + 512 * 256 + 256 * 128 + 3 * 2 * 3456 * 512
    weights += 3456 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 256 + 256
    assert mlperf.dense_mflop_per_row == pytest.approx(6 * weights / 1e6, abs=0.01)
    weights = 13 * 512 + 512 * 256 + 256 * 128 + 27 * 27 * 128
    weights += (128 + 351) * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 256 + 256
    assert torchrec.dense_mflop_per_row == pytest.approx(6 * weights / 1e6, abs=0.1)
    assert torchrec.published_ms == pytest.approx(65536 / 5373.952 - 16384 / 1671.168)
    # What is left out can only make a step longer than the estimate.
    assert 0.8 < mlperf.estimated_ms / mlperf.published_ms < 1
    assert 0.3 < torchrec.estimated_ms / torchrec.published_ms < 1
