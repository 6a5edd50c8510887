"""Popularity of ids and caches of tables in host memory, against simulated caches."""

import json
import math
from collections import OrderedDict

import numpy as np
import pytest
from plan_requests import asked_of

from msrec.model.distributed.plan_files.sharding_plan import plan_from_dict, plan_to_dict
from msrec.tools.planner.costs import Ranks, shard_cost
from msrec.tools.planner.estimator import CACHED_SHARES
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.popularity import (
    count_points,
    counted_popularity,
    equal_popularity,
    zipf_popularity,
)
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import TableLoad

A100 = load_hardware("a100-80")
ROWS, LOOKUPS, WAYS = 20_000, 1000, 32


def zipf_shares(rows, exponent):
    shares = np.arange(1, rows + 1.0) ** -exponent
    return shares / shares.sum()


def simulated(shares, slots, ways=None, steps=120, lookups=LOOKUPS):
    """Mean distinct ids of a step, and mean misses of an LRU cache of whole steps."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(shares)
    sets = 1 if ways is None else slots // ways
    set_of = rng.integers(sets, size=len(shares))
    caches, found = [OrderedDict() for _ in range(sets)], []
    for _ in range(steps):
        ids = np.unique(np.searchsorted(ends, rng.random(lookups)))
        misses = 0
        for row in rng.permutation(ids).tolist():
            cache = caches[set_of[row]]
            misses += row not in cache
            cache[row] = None
            cache.move_to_end(row)
        for cache in caches:
            while len(cache) > slots // sets:
                cache.popitem(last=False)
        found.append((len(ids), misses))
    return np.mean(found[steps // 2 :], axis=0)


@pytest.mark.parametrize("exponent", [0.01, 0.7, 1.05, 1.2])
@pytest.mark.parametrize("slots", [1024, 4096])
def test_misses_of_a_cache_are_those_of_simulated_ones(exponent, slots):
    popularity = zipf_popularity(ROWS, exponent)
    shares = zipf_shares(ROWS, exponent)
    distinct, misses = simulated(shares, slots)
    assert popularity.distinct(LOOKUPS) == pytest.approx(distinct, rel=0.01)
    assert popularity.lru_misses(LOOKUPS, slots) == pytest.approx(misses, rel=0.03)
    # FBGEMM's cache has sets of 32 ways, of which some are fuller than others.
    _, in_sets = simulated(shares, slots, WAYS)
    assert popularity.lru_misses(LOOKUPS, slots) == pytest.approx(in_sets, rel=0.03)
    # A cache of the most popular ids, exactly: the k-th is in a step with 1 - (1 - share)^lookups.
    in_step = 1 - (1 - shares) ** LOOKUPS
    missed, lookups = popularity.lfu_misses(LOOKUPS, slots)
    assert missed == pytest.approx(in_step[slots:].sum(), rel=0.01)
    assert lookups == pytest.approx(LOOKUPS * shares[slots:].sum(), rel=0.01)
    assert missed < popularity.lru_misses(LOOKUPS, slots)


def test_equally_popular_ids_are_cached_in_proportion():
    popularity = equal_popularity(10_000)
    assert popularity.distinct(500) == pytest.approx(10_000 * (1 - math.exp(-0.05)))
    missed = popularity.lru_misses(500, 4000) / popularity.distinct(500)
    assert missed == pytest.approx(0.6, abs=0.02)
    assert popularity.lru_misses(500, 10_000) == 0
    zipf = zipf_popularity(10_000, 1e-9)
    assert zipf.lru_misses(500, 4000) == pytest.approx(popularity.lru_misses(500, 4000), rel=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_bins_have_the_shares_of_their_ids(exponent):
    popularity, shares = zipf_popularity(5000, exponent), zipf_shares(5000, exponent)
    ends = np.cumsum(popularity.ids).astype(int)
    assert ends[-1] == 5000
    np.testing.assert_allclose(np.cumsum(popularity.share), np.cumsum(shares)[ends - 1], rtol=1e-4)
    counted = counted_popularity(9000, tuple(count_points((shares * 1e12).astype(int))))
    for lookups, slots in ((100, 50), (1000, 900)):
        expected = popularity.lru_misses(lookups, slots)
        assert counted.lru_misses(lookups, slots) == pytest.approx(expected, rel=0.02)
    assert (counted.ids[-1], counted.share[-1]) == (4000, 0)


def cost(table, **changes):
    rest = {"sharding": "table_wise", "kernel": "fused_uvm_caching", "load_factor": 0.1}
    rest |= {"shape": (table.rows, table.dim), "batch": 8192}
    rest |= {"optimizer": "rowwise_adagrad", "comms": "fp32"}
    return shard_cost(Ranks(A100, 8, 8), table, **(rest | changes))


def test_misses_come_over_the_link_and_rows_go_back_while_the_step_runs():
    table = TableLoad(name="t", rows=40_000_000, dim=128, pooling=4, zipf=1.1)
    ids = 65536 * 4
    popularity = zipf_popularity(40_000_000, 1.1)
    misses = popularity.lru_misses(ids, 4_000_000)
    found = cost(table)
    assert found.prefetch == pytest.approx(misses * 2 * 128 * 4 / 25e9 * 1e3)
    # Sorts the ids for the cache, and writes and reads their slots.
    more = ids * (5 * 8 + 3 * 4) / 2039e9 * 1e3
    fused = cost(table, kernel="fused", load_factor=None)
    assert found.fwd_compute - fused.fwd_compute == pytest.approx(more)
    assert found.bwd_compute == pytest.approx(fused.bwd_compute)
    # Popular ids are updated once.
    even = cost(table.model_copy(update={"zipf": None}), kernel="fused", load_factor=None)
    saved = equal_popularity(40e6).distinct(ids) - popularity.distinct(ids)
    update = 2 * saved * (128 * 4 + 4) / 2039e9 * 1e3
    assert even.bwd_compute - fused.bwd_compute == pytest.approx(update)
    assert cost(table, load_factor=0.5).prefetch < found.prefetch


def test_rows_without_a_slot_are_read_where_they_are():
    # 65,536 lookups, and slots for 40,000 of the rows of two steps.
    table = TableLoad(name="t", rows=400_000_000, dim=128)
    found = cost(table, load_factor=1e-4)
    popularity = equal_popularity(400e6)
    distinct = popularity.distinct(65536)
    left = min(popularity.distinct(2 * 65536) - 40_000, distinct)
    rest = 65536 * (8 + 5 * 8 + 3 * 4 + 128 * 4) + (65536 - left) * 128 * 4
    by_hand = left * 128 * 4 / 2.5e9 + rest / 2039e9
    assert found.fwd_compute == pytest.approx(by_hand * 1e3)
    in_host = cost(table, kernel="fused_uvm", load_factor=None)
    assert found.prefetch < in_host.total
    assert found.total < in_host.total * 1.05


def request(tables, **changes):
    values = {
        **{"tables": tables, "batch": 8192, "nodes": 1, "per_node": 8},
        **{"hardware_name": "a100-80", "hardware": A100},
    }
    return PlanRequest(**(values | changes))


def test_the_search_chooses_the_share_with_the_shortest_step_that_fits():
    table = TableLoad(name="t", rows=400_000_000, dim=128, zipf=0.9, sharding="row_wise")
    for gib in (24, 12, 6):
        asked = request([table], budget=gib * 2**30, load_factors=CACHED_SHARES)
        found = make_plan(asked)
        assert found.fits
        each = [
            make_plan(request([table], budget=gib * 2**30, load_factors=[s])) for s in CACHED_SHARES
        ]
        best = min(plan.step_ms for plan in each if plan.fits)
        assert found.step_ms == pytest.approx(best, abs=1e-4)
        critical = found.ranks[found.critical_rank].ms
        others = sum(critical.values()) - critical["prefetch"]
        assert found.step_ms == pytest.approx(max(others, critical["prefetch"]))
    without = make_plan(request([table], load_factors=CACHED_SHARES))
    assert without.tables[0].load_factor is None


def test_counts_of_a_file_are_those_of_its_tables(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "- {name: a, rows: 1000000, dim: 64}\n- {name: b, rows: 1000, dim: 64, zipf: 1.1}\n"
    )
    points = [[1, 0.5], [10, 0.9], [1000, 1.0]]
    counts = {"rows": 1000000, "lookups": 10, "distinct": 1000, "points": points}
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"dataset": "d", "tables": {"a": counts}}))
    asked = asked_of(tmp_path / "t.yaml", gpu="h100", id_counts=file)
    a, b = asked.tables
    assert (a.id_counts, b.zipf) == (((1, 0.5), (10, 0.9), (1000, 1.0)), 1.1)
    assert asked.notes == ["The popularity of ids is known for 1 of 2 tables."]
    for content, sentence in (
        (
            {"dataset": "d", "tables": {"c": counts}},
            "must have counts of one of the tables; it has c",
        ),
        ({"dataset": "d", "tables": {"b": counts | {"points": [[2000, 1.0]]}}}, "up to rows, 1000"),
        ({"tables": {}}, "must be a file of msrec show --id-counts"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            asked_of(tmp_path / "t.yaml", gpu="h100", id_counts=file)
    for share in ("2", "many"):
        with pytest.raises(ValueError, match=f"must be auto, or between 0 and 1; got {share}"):
            asked_of(tmp_path / "t.yaml", gpu="h100", cached=[share])
    assert asked_of(tmp_path / "t.yaml", gpu="h100", cached=["auto"]).load_factors == list(
        CACHED_SHARES
    )


def test_a_cache_of_frequent_ids_is_planned_without_prefetch_and_written():
    table = TableLoad(name="t", rows=40_000_000, dim=128, zipf=1.1, kernel="fused_uvm_caching")
    frequent = table.model_copy(update={"name": "f", "cache": "lfu"})
    plans = [make_plan(request([each], load_factors=[0.1])) for each in (table, frequent)]
    found = cost(frequent)
    missed, lookups = zipf_popularity(40_000_000, 1.1).lfu_misses(65536, 4_000_000)
    assert found.prefetch == 0
    more = lookups * 128 * 4 * (1 / 2.5e9 - 1 / 2039e9) * 1e3
    assert found.fwd_compute - cost(table).fwd_compute == pytest.approx(more)
    more = 2 * missed * 128 * 4 * (1 / 2.5e9 - 1 / 2039e9) * 1e3
    assert found.bwd_compute - cost(table).bwd_compute == pytest.approx(more)
    for plan, policy in zip(plans, ("lru", "lfu"), strict=True):
        saved = {"world_size": 8, "modules": plan.modules}
        read = plan_from_dict(saved)
        assert plan_to_dict(read, 8, 8)["modules"] == plan.modules
        ((_, sharding),) = read.plan["ebc"].items()
        assert sharding.cache_params.prefetch_pipeline == (policy == "lru")
    with pytest.raises(ValueError, match="must have the same policy, .*; t is lru and f is lfu"):
        make_plan(request([table, frequent], load_factors=[0.1]))
