"""Plans: estimates equal TorchRec's, memory is respected, and `msrec train` takes them."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plan_requests import asked_of
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset, tiny_store
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.types import PlannerError
from trainings import BOTH, config_of, fit

from msrec.launch.config.run_config import load_config
from msrec.model.distributed.plan_files.sharding_plan import plan_from_dict, plan_to_dict
from msrec.tools.planner.cluster import Cluster, Pool
from msrec.tools.planner.command.build_request import with_changes
from msrec.tools.planner.command.plan_command import plan_tables
from msrec.tools.planner.costs import Ranks
from msrec.tools.planner.estimator import CACHED_SHARES, Estimator
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan, plan_as_placed
from msrec.tools.planner.search.solver import solve
from msrec.tools.planner.sharding_options import SPAN, ShardCost, ShardingOption
from msrec.tools.planner.sources.run_memory import tables_and_dense
from msrec.tools.planner.tables import COLUMN_SHARDINGS, TableLoad, read_tables_file
from msrec.tools.planner.torchrec_times import meta_collection, topology

pytestmark = pytest.mark.slow

H100 = load_hardware("h100")
TABLES = [
    TableLoad(name="user", rows=4_000_003, dim=64),
    TableLoad(name="item", rows=300_000, dim=128, features=2),
    TableLoad(name="history", rows=1_000_000, dim=512, pooling=20),
    TableLoad(name="city", rows=500, dim=16),
]
quiet = Console(quiet=True)


def request(**changes):
    values = {
        **{"tables": TABLES, "batch": 512, "nodes": 2, "per_node": 4},
        **{"hardware_name": "h100", "hardware": H100},
    }
    return PlanRequest(**(values | changes))


@pytest.mark.parametrize("sharding", SPAN)
def test_costs_and_bytes_of_a_shard_are_those_of_torchrecs_planner(sharding):
    ranks = topology(H100, 8, 4)
    collection = meta_collection(TABLES, "rowwise_adagrad")
    kernel = "dense" if sharding == "data_parallel" else "fused"
    constraints = {
        table.name: ParameterConstraints(
            sharding_types=[sharding],
            compute_kernels=[kernel],
            pooling_factors=[table.pooling] * table.features,
        )
        for table in TABLES
    }
    theirs = EmbeddingEnumerator(ranks, 512, constraints).enumerate(
        torch.nn.ModuleDict({"ebc": collection}), [EmbeddingBagCollectionSharder()]
    )
    estimator = Estimator(TABLES, Ranks(H100, 8, 4), 512, "rowwise_adagrad", name="torchrec")
    compared = 0
    for option in theirs:
        table = next(t for t in TABLES if t.name == option.name)
        ours = estimator.option(table, sharding)
        if ours is None:
            assert sharding in COLUMN_SHARDINGS
            assert len(option.shards) == (4 if sharding == "grid_shard" else 1)
            continue
        perf, storage = option.shards[0].perf, option.shards[0].storage
        for part in ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms"):
            assert getattr(ours.cost, part) == pytest.approx(getattr(perf, part))
        counted = ours.weights + ours.state + ours.inputs + ours.outputs
        # Of columns, each shard keeps a number a row, of which theirs counts a share. A replicated
        # table trains with a dense optimizer, which theirs does not count.
        if sharding != "data_parallel":
            rel = 1e-2 if sharding in COLUMN_SHARDINGS else 1e-3
            assert counted == pytest.approx(storage.hbm, rel=rel, abs=64)
        compared += 1
    assert compared >= (1 if sharding in COLUMN_SHARDINGS else 3)


def test_shardings_that_are_not_planned_are_refused():
    plan = make_plan(request())
    entries = {name: dict(entry) for name, entry in plan.modules["ebc"].items()}
    entries["city"]["sharding_type"] = "grid_shard"
    with pytest.raises(ValueError, match=r"'city' must have a sharding with an estimate; it is gr"):
        plan_as_placed(request(), entries)


def test_the_step_time_is_torchrecs_rating_of_the_same_placement():
    allowed = ("table_wise", "row_wise", "table_row_wise")
    plan = make_plan(request(shardings=allowed, estimator="torchrec"))
    ranks = topology(H100, 8, 4)
    chosen = {t.name: t for t in plan.tables}
    constraints = {
        table.name: ParameterConstraints(
            sharding_types=[chosen[table.name].sharding],
            compute_kernels=["fused"],
            pooling_factors=[table.pooling] * table.features,
        )
        for table in TABLES
    }
    collection = meta_collection(TABLES, "rowwise_adagrad")
    options = EmbeddingEnumerator(ranks, 512, constraints).enumerate(
        torch.nn.ModuleDict({"ebc": collection}), [EmbeddingBagCollectionSharder()]
    )
    for option in options:
        for shard, rank in zip(option.shards, chosen[option.name].ranks, strict=True):
            shard.rank = rank
    assert plan.step_ms == pytest.approx(NoopPerfModel(ranks).rate(options), rel=1e-2)


def made_up(rng, tables, memory):
    """Options of tables with random costs: on one rank, over all ranks, over a node."""
    options = {}
    for number in range(tables):
        cost, size = rng.uniform(1, 10), int(rng.uniform(0.1, 0.6) * memory)
        spans = (("table_wise", 1.0), ("row_wise", 0.35), ("table_row_wise", 0.6))
        parts = {"table_wise": 1, "row_wise": 4, "table_row_wise": 2}
        options[f"t{number}"] = [
            ShardingOption(
                table=f"t{number}",
                sharding=sharding,
                kernel="fused",
                column_shards=1,
                shape=(1, 1),
                cost=ShardCost(fwd_compute=cost * share * rng.uniform(0.8, 1.2)),
                weights=size // parts[sharding],
                state=0,
                host=0,
                inputs=0,
                outputs=0,
            )
            for sharding, share in spans
        ]
    return options


def best_of_all(options, cluster):
    """Shortest step of all options and ranks that fit, found by trying each."""
    best = np.inf
    nodes = cluster.ranks // cluster.ranks_per_node
    for ways in itertools.product(*options.values()):
        places = [
            {"rank": range(cluster.ranks), "node": range(nodes), "all": [0]}[way.span]
            for way in ways
        ]
        for at in itertools.product(*places):
            ms, memory = np.zeros(cluster.ranks), np.zeros(cluster.ranks)
            for way, where in zip(ways, at, strict=True):
                first = where * cluster.ranks_per_node
                ranks = {
                    "rank": [where],
                    "node": list(range(first, first + cluster.ranks_per_node)),
                    "all": list(range(cluster.ranks)),
                }[way.span]
                ms[ranks] += way.cost.total
                memory[ranks] += way.memory
            if (memory <= cluster.memory).all():
                best = min(best, ms.max())
    return best


@pytest.mark.parametrize("seed", range(6))
def test_a_small_plan_is_within_5_percent_of_the_best(seed):
    memory = 1_000_000
    cluster = Cluster(ranks_per_node=2, pools=(Pool(4, memory, host=0),))
    options = made_up(np.random.default_rng(seed), tables=4, memory=memory)
    found = solve(options, cluster)
    assert not found.excess
    assert best_of_all(options, cluster) <= found.step_ms * (1 + 1e-9)
    assert found.step_ms <= best_of_all(options, cluster) * 1.05


def test_no_rank_exceeds_its_memory_if_a_plan_can_fit():
    rng = np.random.default_rng(0)
    for _ in range(20):
        memory = 1_000_000
        cluster = Cluster(ranks_per_node=4, pools=(Pool(8, memory, host=0),))
        found = solve(made_up(rng, tables=12, memory=memory), cluster, effort=5000)
        assert not found.excess
        assert found.memory.max() <= memory
        memory, ms = np.zeros(8), np.zeros(8)
        for table, way in found.options.items():
            memory[found.ranks[table]] += way.memory
            ms[found.ranks[table]] += way.cost.total
        np.testing.assert_allclose(found.memory, memory)
        np.testing.assert_allclose(found.ms, ms)


def test_shards_cover_each_table_once_and_plans_survive_json():
    plan = make_plan(request(shardings=tuple(SPAN)))
    read = Plan.model_validate_json(plan.model_dump_json())
    assert read == plan
    for table in TABLES:
        entry = plan.modules["ebc"][table.name]
        if entry["sharding_type"] == "data_parallel":
            continue
        cells = sum(rows * columns for rows, columns in (s["sizes"] for s in entry["shards"]))
        assert cells == table.rows * table.dim
        corners = {tuple(s["offsets"]) for s in entry["shards"]}
        assert len(corners) == len(entry["shards"])
        assert entry["ranks"] == [int(s["placement"][5:].split("/")[0]) for s in entry["shards"]]
    saved = {"world_size": 8, "modules": plan.modules}
    assert plan_to_dict(plan_from_dict(saved), 8, 4)["modules"] == plan.modules


def test_the_hash_is_the_same_in_every_process_and_differs_between_requests():
    code = (
        "from test_planner import request; "
        "from msrec.tools.planner.search.make_plan import make_plan; "
        "print(make_plan(request()).hash)"
    )
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); {code}"]
    here = {make_plan(request()).hash}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for seed in ("1", "2"):
        done = subprocess.run(
            words, env={"PYTHONPATH": path, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        here.add(done.stdout.strip().splitlines()[-1])
    assert len(here) == 1
    others = [request(batch=256), request(nodes=1), request(tables=TABLES[:3])]
    assert len({make_plan(other).hash for other in others} | here) == 4


# Does it fit ---------------------------------------------------------------------------------


def test_a_plan_that_does_not_fit_names_bytes_and_tables(tmp_path):
    console = Console(width=200, record=True, file=io.StringIO())
    out = tmp_path / "plan.json"
    plan = plan_tables(request(budget=200 << 20, nodes=1, per_node=2), out, console=console)
    assert not plan.fits
    assert not out.exists()
    full = plan.ranks[plan.fullest_rank]
    over = full.total_memory - plan.capacity
    assert over > 0
    printed = console.export_text()
    assert "It does not fit: rank" in printed
    assert "Largest there: history" in printed


def test_the_page_has_every_table_and_draws_the_plans_figures(tmp_path):
    page = tmp_path / "plan.html"
    plan = plan_tables(request(), None, page, compare=["batch=64"], console=quiet)
    text = page.read_text()
    assert "<script src" not in text
    for table in TABLES:
        assert f">{table.name}</th>" in text
    drawn = json.loads(re.search(r"const figures = (\[.*?\]);\n", text, re.DOTALL)[1])
    names = [trace["name"] for trace in drawn[1]["data"]]
    assert sorted(names) == sorted(["latency", *(table.name for table in TABLES)])
    of_ranks = np.sum([trace["y"] for trace in drawn[1]["data"]], axis=0)
    np.testing.assert_allclose(of_ranks, [rank.total_ms for rank in plan.ranks])
    critical = drawn[2]["data"]
    ends = max(b + x for t in critical for b, x in zip(t["base"], t["x"], strict=True))
    assert ends == pytest.approx(plan.step_ms)


def test_tables_go_to_host_memory_if_the_accelerator_is_too_small():
    short = request(budget=500 << 20, nodes=1, per_node=2)
    assert not make_plan(short).fits
    cached = make_plan(request(budget=500 << 20, nodes=1, per_node=2, load_factors=(0.2,)))
    assert cached.fits
    moved = [t for t in cached.tables if t.load_factor is not None]
    assert moved
    assert all(t.kernel == "fused_uvm_caching" and t.host > 0 for t in moved)


def test_a_table_gets_the_sharding_and_kernel_that_it_names():
    asked = [
        TABLES[0].model_copy(update={"kernel": "fused_uvm_caching"}),
        TABLES[1].model_copy(update={"kernel": "fused_uvm", "sharding": "row_wise"}),
        TABLES[2].model_copy(update={"sharding": "column_wise"}),
        TABLES[3],
    ]
    plan = make_plan(request(tables=asked))
    found = {t.name: (t.sharding, t.kernel, t.load_factor) for t in plan.tables}
    kernel, load_factor = found["user"][1:]
    assert kernel == "fused_uvm_caching"
    assert load_factor in CACHED_SHARES
    assert found["item"] == ("row_wise", "fused_uvm", None)
    assert found["history"] == ("column_wise", "fused", None)
    by_name = {table.name: table for table in plan.tables}
    assert by_name["item"].weights == 0
    assert by_name["item"].host >= asked[1].num_bytes
    small = [TABLES[3].model_copy(update={"rows": 5, "sharding": "row_wise", "kernel": "fused"})]
    with pytest.raises(
        ValueError, match="'city' must have a sharding option; row_wise with kernel fused"
    ):
        make_plan(request(tables=small))


def test_what_if_changes_one_table_all_of_them_or_the_machine():
    asked = request()
    assert {t.dim for t in with_changes(asked, "dim=32").tables} == {32}
    one = with_changes(asked, "item.dim=32,batch=64,gpu=l40s")
    assert [t.dim for t in one.tables] == [64, 32, 512, 16]
    assert (one.batch, one.hardware_name) == (64, "l40s")
    halved = with_changes(asked, "precision=fp16")
    weights = [sum(t.weights for t in make_plan(r).tables) for r in (asked, halved)]
    assert weights[1] == pytest.approx(weights[0] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("dim=0", "dim=0: dim: Input should be greater than or equal to 4."),
        ("dim=10", "dim=10: dim: Input should be a multiple of 4."),
        ("dim=4096", "dim=4096: dim: Input should be less than or equal to 2048."),
        ("rows=5000000000000", "rows: Input should be less than 1099511627776."),
        ("batch=1000000000000", "rows of a step on one rank must be from 1 to 16,777,216"),
        ("nodes=1000000", "nodes must be from 1 to 4,096"),
        ("item.precision=fp8", "item.precision=fp8: precision: Input should be 'fp32'"),
        ("batch=many", "batch=many: batch must be a whole number of 1 or more."),
        ("nodes=0", "nodes=0: nodes must be a whole number of 1 or more."),
        ("optimizer=sgd", "optimizer=sgd: the optimizer must be one of rowwise_adagrad, adam."),
        ("shop.dim=8", "a change must name one of the tables; got 'shop'."),
    ],
)
def test_an_invalid_change_is_refused_in_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        with_changes(request(), change)
    assert type(refused.value) is ValueError


# Files and mistakes --------------------------------------------------------------------------

LISTED = "- {name: a, rows: 10, dim: 8}\n- {name: b, rows: 20, dim: 4, pooling: 2.5}\n"
CSV = "name,rows,dim,pooling\na,10,8,\nb,20,4,2.5\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.yaml", LISTED), ("t.csv", CSV), ("u.yaml", f"tables:\n{LISTED}")],
)
def test_tables_are_read_from_yaml_and_csv(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    a, b = read_tables_file(tmp_path / name)
    assert (a.name, a.rows, a.dim, a.pooling) == ("a", 10, 8, 1.0)
    assert (b.name, b.rows, b.dim, b.pooling) == ("b", 20, 4, 2.5)


MISTAKES = {
    "no rows": ("- {name: a, rows: 0, dim: 8}", "table a: rows: Input should be greater than or"),
    "negative": (
        "- {name: a, rows: -5, dim: 8}",
        "table a: rows: Input should be greater than or equal to 1",
    ),
    "too many rows": (
        "- {name: a, rows: 5000000000000, dim: 8}",
        "table a: rows: Input should be less than 1099511627776",
    ),
    "dim": ("- {name: a, rows: 5, dim: 10}", "table a: dim: Input should be a multiple of 4"),
    "infinite": (
        "- {name: a, rows: 5, dim: 8, pooling: .inf}",
        "table a: pooling: Input should be a finite number",
    ),
    "repeated key": (
        "- {name: a, rows: 5, rows: 6, dim: 8}",
        "must have each key of a mapping once",
    ),
    "no dim": ("- {name: a, rows: 5}", "table a: dim: Field required"),
    "twice": ("- {name: a, rows: 5, dim: 8}\n" * 2, "different names; found twice: a"),
    "another key": (
        "- {name: a, rows: 5, dim: 8, dims: 3}",
        "table a: dims: this key is not known",
    ),
    "none": ("tables: []", "must hold at least one table; found no table"),
    "no list": ("tables: 7", "must hold a list of tables"),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_an_invalid_list_is_refused_and_names_the_table(tmp_path, text, sentence):
    (tmp_path / "tables.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_tables_file(tmp_path / "tables.yaml")


def test_unknown_accelerators_and_changes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got 'h1000', similar names are h100"):
        load_hardware("h1000")
    (tmp_path / "mine.yaml").write_text("mine: {memory_gib: 10}")
    with pytest.raises(ValueError, match=r"mine\.memory_gb_s: Field required"):
        load_hardware("mine", tmp_path / "mine.yaml")
    for name in ("a100-40", "a100-80", "h100", "h200", "b200", "l40s", "cpu"):
        assert load_hardware(name).sources
    with pytest.raises(ValueError, match="a change must be one of rows="):
        with_changes(request(), "colour=red")
    with pytest.raises(ValueError, match="table 'city' must have a sharding option"):
        make_plan(request(nodes=256, shardings=("row_wise",)))


# A run's config ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


def plan_of(config_file, out, *overrides, **changes):
    return plan_tables(asked_of(config_file, *overrides, **changes), out, console=quiet)


def test_a_run_trains_with_its_plan_as_without(dataset, tmp_path):
    config = config_of(dataset, tmp_path / "runs", *BOTH)
    file = tmp_path / "conf.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    plan = plan_of(file, tmp_path / "plan.json", sharding=["row_wise"])
    assert {t.sharding for t in plan.tables} == {"row_wise"}
    assert plan.batch == 48
    planned = config_of(dataset, tmp_path / "2", *BOTH, f"plan={tmp_path / 'plan.json'}")
    two = run_ranks(fit, 2, planned)[0][0]
    one = run_ranks(fit, 1, config_of(dataset, tmp_path / "1", *BOTH))[0][0]
    np.testing.assert_allclose(two, one, atol=1e-4)
    for name, changes, sentence in (
        ("3 ranks", {"gpus_per_node": 3}, "is a plan for 3 ranks; this job has 2"),
        ("h100", {"gpu": "h100"}, "is a plan for cuda; this job runs on cpu"),
    ):
        plan_of(file, tmp_path / "other.json", **changes)
        other = config_of(dataset, tmp_path / name, *BOTH, f"plan={tmp_path / 'other.json'}")
        with pytest.raises(AssertionError, match=sentence):
            run_ranks(fit, 2, other)
    saved = json.loads((tmp_path / "plan.json").read_text())
    edited = [
        ({"per_node": 1, "nodes": 2}, "is a plan for nodes of 1 ranks; this job has 2 on a node"),
        ({"batch": 7}, "unchanged since it was planned; its content does not match its hash"),
    ]
    for number, (change, sentence) in enumerate(edited):
        (tmp_path / "edited.json").write_text(json.dumps(saved | change))
        root = tmp_path / f"edited{number}"
        other = config_of(dataset, root, *BOTH, f"plan={tmp_path / 'edited.json'}")
        with pytest.raises(AssertionError, match=sentence):
            run_ranks(fit, 2, other)


def test_a_run_with_a_dense_optimizer_refuses_a_plan_with_fused_kernels(dataset, tmp_path):
    adam = ("embeddings.optimizer=adam", *BOTH)
    file = tmp_path / "conf.yaml"
    config = config_of(dataset, tmp_path / "runs", *adam)
    file.write_text(json.dumps(config.model_dump(mode="json")))
    plan = plan_of(file, tmp_path / "plan.json")
    assert {(t.sharding, t.kernel) for t in plan.tables} == {("data_parallel", "dense")}
    planned = config_of(dataset, tmp_path / "2", *adam, f"plan={tmp_path / 'plan.json'}")
    two = run_ranks(fit, 2, planned)[0][0]
    np.testing.assert_allclose(two, run_ranks(fit, 2, config)[0][0], atol=1e-6)
    plan_of(file, tmp_path / "fused.json", sharding=["table_wise"])
    fused = config_of(dataset, tmp_path / "3", *adam, f"plan={tmp_path / 'fused.json'}")
    with pytest.raises(AssertionError, match="every table must be data_parallel .* has fused"):
        run_ranks(fit, 2, fused)


def test_the_dense_part_is_counted_parameter_by_parameter_and_by_rows(dataset, tmp_path):
    config = load_config(
        None,
        [
            f"dataset={dataset}",
            *("backbone.name=mlp", "backbone.dims=[32]", "backbone.dropout=0.0"),
            *("embeddings.dim=8", "interaction.bottom_dims=[]"),
        ],
    )
    tables, load = tables_and_dense(config, 1000)
    small, large = load.at(100), load.at(1100)
    assert [(t.name, t.rows, t.dim) for t in tables] == [
        ("user_id", 41, 8),
        ("item_id", 61, 8),
        ("genre", 7, 8),
    ]
    width = 3 * 8 + 1  # three vectors and a dense column
    parameters = width * 32 + 32 + 32 + 1
    assert small["dense parameters"] == 4 * parameters
    assert small["Adam's state"] == 2 * small["their gradients"] == 8 * parameters
    assert small["networks that read the LLM"] == 0
    kept = (large["activations"] - small["activations"]) / 1000
    # Vectors, x, the hidden layer before and after ReLU; their gradients, not all at once.
    assert 4 * (24 + width + 2 * 32) <= kept <= 4 * (24 + 2 * width + 3 * 32 + 8)
    with_meta, dense = tables_and_dense(
        load_config(None, [f"dataset={dataset}", f"llm.store={dataset.parent / 'store'}", *BOTH]), 9
    )
    assert dense.fixed["networks that read the LLM"] > 0
    assert len(with_meta) == 3


def test_torchrecs_planner_agrees_whether_a_plan_fits():
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation

    tables = [TableLoad(name="big", rows=40_000_000, dim=64), TABLES[3]]
    for gib, fits in ((9.0, True), (4.0, False)):
        hardware = H100.model_copy(update={"memory_gib": gib})
        ours = make_plan(
            request(
                tables=tables,
                hardware_name="small",
                hardware=hardware,
                nodes=1,
                per_node=2,
                shardings=("table_wise", "row_wise"),
            )
        )
        assert ours.fits is fits
        planner = EmbeddingShardingPlanner(
            topology=topology(hardware, 2, 2),
            batch_size=512,
            storage_reservation=FixedPercentageStorageReservation(0.05),
            constraints={
                t.name: ParameterConstraints(
                    sharding_types=["table_wise", "row_wise"], compute_kernels=["fused"]
                )
                for t in tables
            },
        )
        module = torch.nn.ModuleDict({"ebc": meta_collection(tables, "rowwise_adagrad")})
        if fits:
            assert planner.plan(module, [EmbeddingBagCollectionSharder()]).plan
        else:
            with pytest.raises(PlannerError):
                planner.plan(module, [EmbeddingBagCollectionSharder()])


def test_what_if_changes_the_config_and_the_dense_part_with_it(dataset, tmp_path):
    file = tmp_path / "conf.yaml"
    config = config_of(dataset, tmp_path, *BOTH, "trainer.global_batch=960")
    file.write_text(json.dumps(config.model_dump(mode="json")))
    asked = asked_of(file)
    assert (asked.rows_per_rank, asked.tables[0].dim) == (480, 8)
    wide = with_changes(asked, "embeddings.dim=16,meta.rank=3")
    expected = load_config(file, ["embeddings.dim=16", "meta.rank=3"])
    assert wide.config == expected
    assert (wide.tables, wide.dense) == tables_and_dense(expected, 480)
    assert wide.dense.at(480)["dense parameters"] > asked.dense.at(480)["dense parameters"]
    more = with_changes(asked, "nodes=2")
    assert more.rows_per_rank == 240
    assert make_plan(more).ranks[0].memory["activations"] == asked.dense.at(240)["activations"]
    with pytest.raises(ValueError, match=r"have the same dim; use embeddings.dim=\.\.\."):
        with_changes(asked, "dim=16")


def test_generated_weights_are_counted_separately(dataset, tmp_path):
    form = ("meta.user=true", "meta.form=distinct", "meta.rank=3", "meta.width=5")
    config = config_of(dataset, tmp_path, *form, "interaction.bottom_dims=[]")
    _, dense = tables_and_dense(config, 1024)
    assert (
        dense.at(1024)["generated meta weights"] == 40 * (5 * 5) * 4
    )  # users, a square layer, float32
    _, dense = tables_and_dense(config_of(dataset, tmp_path, *form, "meta.form=contracted"), 1024)
    assert dense.at(1024)["generated meta weights"] == 0


def test_options_of_equal_tables_are_estimated_once(monkeypatch):
    tables = [TableLoad(name=f"t{i}", rows=1000 + i % 2, dim=16) for i in range(50)]
    estimator = Estimator(tables, Ranks(H100, 8, 4), 512, "adam")
    estimated = []
    inner = estimator._estimate

    def count(table, *rest):
        estimated.append(table.name)
        return inner(table, *rest)

    monkeypatch.setattr(estimator, "_estimate", count)
    found = estimator.options(["table_wise"])
    assert len(estimated) == 2
    assert [found[f"t{i}"][0].table for i in range(50)] == [f"t{i}" for i in range(50)]
