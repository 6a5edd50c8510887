"""Money and matrices of plans: costs by hand, the front, and the data of the page."""

import dataclasses
import io
import itertools
import json
import re

import numpy as np
import pytest
from rich.console import Console

from msrec.launch.console import PlainConsole
from msrec.tools.planner.command.build_request import request_from_options, with_changes
from msrec.tools.planner.command.cluster_size import fewest_gpus
from msrec.tools.planner.command.plan_command import plan_tables
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.running_costs import RunningCosts, pareto_front, running_costs
from msrec.tools.planner.hardware import STOCK, Catalogue, load_hardware, parse_prices
from msrec.tools.planner.matrix.matrix_command import matrix_command
from msrec.tools.planner.matrix.matrix_text import matrix_rows, matrix_table
from msrec.tools.planner.matrix.plan_matrix import parse_axes, plan_matrix
from msrec.tools.planner.search.make_plan import make_plan

TABLES = "name,rows,dim,pooling\nuser,200000000,64,1\nitem,3000000,64,20\ncity,500,16,1\n"
VARY = ["dim=32,128", "gpus=1,8,12,72", "gpu=h100,gb200"]
GIB = 2**30
quiet = Console(quiet=True)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    file = tmp_path_factory.mktemp("tables") / "tables.csv"
    file.write_text(TABLES)
    return file


def asked(tables, **options):
    return request_from_options(PlanOptions(tables, batch=1024, **options))


@pytest.fixture(scope="module")
def matrix(tables):
    return plan_matrix(asked(tables), parse_axes(VARY), STOCK, quiet)


def test_prices_have_a_source_and_a_date_and_a_rack_has_72_gpus(tables):
    prices = [
        load_hardware(name).price for name in ("a100-40", "a100-80", "h100", "h200", "b200", "l40s")
    ]
    assert all(price.source and price.read.year >= 2026 for price in prices)
    for name in ("gb200", "gb300"):
        request = asked(tables, gpu=name)
        assert (request.nodes, request.per_node) == (1, 72)
    # One NVLink domain of 16 GPUs has no network; two nodes of 8 do.
    rack, nodes = (
        make_plan(with_changes(asked(tables), f"gpu={gpu},gpus=16")) for gpu in ("gb200", "b200")
    )
    assert [(p.nodes, p.per_node) for p in (rack, nodes)] == [(1, 16), (2, 8)]
    assert rack.step_ms < nodes.step_ms


def test_a_rack_has_hosts_of_four_gpus(tables):
    plan = make_plan(with_changes(asked(tables, sharding=["row_wise"]), "gpu=gb200,gpus=12"))
    assert (plan.per_node, plan.per_host) == (12, 4)
    shards = [s for of in plan.modules.values() for t in of.values() for s in t["shards"]]
    places = {re.fullmatch(r"rank:(\d+)/cuda:(\d+)", s["placement"]).groups() for s in shards}
    assert len(places) == 12
    assert {(int(rank), int(device)) for rank, device in places} == {(r, r % 4) for r in range(12)}
    assert make_plan(with_changes(asked(tables), "gpu=h100")).per_host is None
    with pytest.raises(ValueError, match="must be whole hosts of 4 gb200; got 6"):
        with_changes(asked(tables), "gpu=gb200,per_node=6")


def test_costs_of_a_plan_are_those_counted_by_hand(tables):
    catalogue = Catalogue(prices=parse_prices(["h200=3.5"]))
    request = with_changes(asked(tables, dense_parameters=10_000_000), "gpu=h200", catalogue)
    plan = make_plan(request)
    costs = running_costs(plan)
    # 6 operations of each parameter for 1,024 rows, at 495e12 a second.
    assert costs.dense_ms == pytest.approx(6 * 10e6 * 1024 / 495e12 * 1e3)
    rows_per_s = 8 * 1024 / ((plan.step_ms + costs.dense_ms) / 1e3)
    assert costs.rows_per_s == pytest.approx(rows_per_s)
    assert costs.usd_per_hour == 8 * 3.5
    assert costs.usd_per_billion == pytest.approx(8 * 3.5 * 1e9 / rows_per_s / 3600)
    assert costs.kwh_per_billion == pytest.approx(8 * 0.7 * 1e9 / rows_per_s / 3600)
    unpriced = running_costs(make_plan(with_changes(request, "gpu=gb300")))
    assert unpriced.usd_per_hour is None
    assert unpriced.usd_per_billion is None


def test_the_front_is_what_no_other_point_beats():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 12, (60, 2)).astype(float)
    points[0] = points[1]  # equal points do not beat each other
    costs = {
        at: RunningCosts(0.0, 1.0, rows, 1.0, usd, None) for at, (rows, usd) in enumerate(points)
    }
    front = pareto_front(costs | {99: RunningCosts(0.0, 1.0, 1e9, None, None, None)})

    def beats(one, other):
        return one[0] >= other[0] and one[1] <= other[1] and tuple(one) != tuple(other)

    assert front == {
        at for at, point in enumerate(points) if not any(beats(each, point) for each in points)
    }
    assert 1 < len(front) < 60


def test_each_plan_of_a_matrix_is_the_one_made_alone(tables, matrix):
    assert list(matrix.axes) == ["gpu", "gpus", "dim"]
    assert set(matrix.combinations) == matrix.plans.keys() | matrix.refused.keys()
    request = asked(tables)
    for (gpu, gpus, dim), plan in matrix.plans.items():
        alone = make_plan(with_changes(request, f"gpu={gpu},gpus={gpus},dim={dim}"))
        assert plan.hash == alone.hash
    # 12 GPUs are no whole nodes of 8; they are a part of a rack of 72.
    assert {key[:2] for key in matrix.refused} == {("h100", "12")}
    assert matrix.plans["gb200", "12", "32"].per_node == 12
    # 200 M rows of 128 do not fit on an H100; without room there are no costs.
    assert not matrix.plans["h100", "1", "128"].fits
    assert ("h100", "1", "128") not in matrix.costs
    # Tables of 32 columns are cheaper on every machine, so that they are not compared with 128.
    assert {key[-1] for key in matrix.front} == {"32", "128"}


def test_the_fewest_gpus_of_a_rack_are_whole_hosts(tables):
    sizes = set()
    for millions in (200, 2000, 5000):
        change = f"gpu=gb200,user.rows={millions}000000"
        request = with_changes(asked(tables), change)
        found = fewest_gpus(request)
        sizes.add((found.nodes, found.per_node))
        assert found.fits
        if (found.nodes, found.per_node) != (1, 1):
            less = (1, found.per_node - (1 if found.per_node <= 4 else 4))
            nodes, per_node = less if found.nodes == 1 else (found.nodes - 1, 72)
            smaller = dataclasses.replace(request, nodes=nodes, per_node=per_node)
            assert not make_plan(smaller).fits
    assert all(per_node <= 4 or per_node % 4 == 0 for _, per_node in sizes)
    assert (1, 1) in sizes
    assert any(4 < per_node < 72 for _, per_node in sizes)


def test_the_fewest_gpus_of_each_kind(tables):
    axes = parse_axes(["gpu=a100-40,gb200", "dim=64,256"])
    found = plan_matrix(asked(tables), axes, STOCK, quiet, min_gpus=True)
    for (gpu, dim), plan in found.plans.items():
        alone = fewest_gpus(with_changes(asked(tables), f"gpu={gpu},dim={dim}"))
        assert plan.hash == alone.hash
    sizes = {key: plan.world_size for key, plan in found.plans.items()}
    assert sizes["a100-40", "256"] > sizes["gb200", "256"] > 1 == sizes["gb200", "64"]


@pytest.fixture(scope="module")
def explorer(tables, tmp_path_factory):
    """Data of the page's sliders, as the browser reads them."""
    page = tmp_path_factory.mktemp("page") / "page.html"
    options = PlanOptions(tables, batch=1024, dense_parameters=10_000_000, vary=VARY, page=page)
    matrix = matrix_command(options, quiet)
    text = page.read_text()
    assert "<script src" not in text
    sliders = re.findall(r'data-values="(.*?)"', text)
    axes = [json.loads(values.replace("&#34;", '"')) for values in sliders]
    (data,) = json.loads(re.search(r"const explorers = (\[.*?\]);\n", text, re.DOTALL)[1])
    assert data["sizes"] == [len(values) for values in axes]
    return matrix, axes, data


def test_the_page_has_the_planners_numbers_for_every_position_of_the_sliders(explorer):
    matrix, axes, data = explorer
    positions = list(itertools.product(*axes))
    assert len(data["points"]) == len(positions) == 16
    for key, point in zip(positions, data["points"], strict=True):
        time, memory, money = ([data["traces"][at] for at in each] for each in point["traces"])
        if key in matrix.refused:
            assert point["text"] == matrix.refused[key]
            assert time == memory == money == []
            continue
        plan, costs = matrix.plans[key], matrix.costs.get(key)
        step = sum(trace["x"][0] for trace in time)
        bars = [trace for trace in memory if trace["type"] == "bar"]
        assert sum(trace["x"][0] for trace in bars) * GIB == pytest.approx(plan.peak_memory)
        mean = np.mean([rank.total_memory for rank in plan.ranks])
        assert sum(trace["x"][1] for trace in bars) * GIB == pytest.approx(mean)
        assert memory[-1]["x"][0] * GIB == pytest.approx(plan.capacity)
        chosen = [trace for trace in money if trace["name"] == "chosen"]
        if costs is None:
            assert step == pytest.approx(plan.step_ms)
            assert "does not fit" in point["text"]
            assert chosen == []
            continue
        assert step == pytest.approx(costs.step_ms) == pytest.approx(plan.step_ms + costs.dense_ms)
        assert point["tiles"][0][0] == f"{costs.step_ms:.3f} ms"
        assert point["tiles"][4][0] == f"${costs.usd_per_billion:,.2f}"
        assert (chosen[0]["x"], chosen[0]["y"]) == ([costs.rows_per_s], [costs.usd_per_billion])


def test_the_picture_has_the_plans_of_the_same_model_and_their_front(explorer):
    matrix, axes, data = explorer
    for key, point in zip(itertools.product(*axes), data["points"], strict=True):
        if key not in matrix.costs:
            continue
        money = {
            trace["name"]: trace for trace in (data["traces"][at] for at in point["traces"][2])
        }
        same = [costs for other, costs in matrix.costs.items() if other[-1] == key[-1]]
        drawn = [*money["h100"]["x"], *money["gb200"]["x"]]
        assert sorted(drawn) == sorted(costs.rows_per_s for costs in same)
        front = sorted(matrix.costs[k].rows_per_s for k in matrix.front if k[-1] == key[-1])
        assert money["front"]["x"] == front


def test_the_command_prints_every_plan_its_prices_and_what_has_no_plan(tables):
    console = PlainConsole(record=True, width=200, file=io.StringIO())
    options = PlanOptions(tables, batch=1024, vary=VARY, price=["gb200=4"])
    matrix = matrix_command(options, console)
    printed = console.export_text()
    assert "16 combinations" in printed
    assert printed.count("no room") == 1
    assert "gb200: $4 per hour (given)." in printed
    assert "h100: $6.155 per hour (CoreWeave, HGX H100 at $49.24 for 8, 2026-09-20)." in printed
    assert "No plan for 2 of the combinations: gpus=12: more GPUs than the 8 of a node" in printed
    rows = [cells for key, cells in matrix_rows(matrix) if key == ("gb200", "72", "32")]
    costs = matrix.costs["gb200", "72", "32"]
    assert rows[0][3:10] == [
        *("1 x 72", "1,024", rows[0][5], f"{costs.step_ms:.3f}", f"{costs.rows_per_s / 1e6:,.2f}"),
        *("288.00", f"{costs.usd_per_billion:,.2f}"),
    ]


def test_of_a_large_matrix_only_the_front_is_printed(matrix, monkeypatch):
    assert len(matrix_table(matrix).rows) == 16
    monkeypatch.setattr("msrec.tools.planner.matrix.matrix_text.MAX_LINES", 15)
    table = matrix_table(matrix)
    assert len(table.rows) == len(matrix.front) < 16
    assert set(table.columns[-1].cells) == {"*"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vary": ["gpu"]}, "--vary must have a name and different values"),
        ({"vary": ["gpu=h100,h100"]}, "--vary must have a name and different values"),
        ({"vary": ["gpu=h100", "gpu=h200"]}, "each name once"),
        ({"vary": ["gpu=h100,h1000"]}, "the accelerator must be one of hardware.yaml; got 'h1000'"),
        ({"vary": ["colour=red"]}, "a change must be one of"),
        ({"vary": ["gpus=9"]}, "must be whole nodes, such as 8"),
        ({"vary": ["batch=" + ",".join(map(str, range(1, 2002)))]}, "at most 2,000 plans"),
        ({"vary": ["nodes=1,2"], "min_gpus": True}, "leave out --vary nodes"),
        ({"vary": ["nodes=1,2"], "compare": True}, "--compare is for one plan"),
        ({"vary": ["nodes=1,2"], "price": ["h200=2"]}, "h200 is not"),
        ({"vary": ["nodes=1,2"], "price": ["h100=-2"]}, "a price must be an accelerator and"),
    ],
)
def test_a_contradiction_is_refused_in_one_sentence(tables, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        matrix_command(PlanOptions(tables, **options), quiet)


def test_one_plan_has_its_money_too(tables):
    console = PlainConsole(record=True, width=200, file=io.StringIO())
    catalogue = Catalogue(prices={"h100": 2.5})
    request = with_changes(asked(tables), "gpu=h100", catalogue)
    plan = plan_tables(request, None, compare=["gpu=gb300"], catalogue=catalogue, console=console)
    costs = running_costs(plan)
    printed = console.export_text()
    assert f"$20.00 per hour, ${costs.usd_per_billion:,.2f} per 1e9 rows" in printed
    assert re.search(r"\$ per hour +│ +20\.00 │ +\? │", printed)
