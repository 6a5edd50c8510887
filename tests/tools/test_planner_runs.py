"""Plans against real runs: memory of the steps, the plan that a run used, and traced times."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from plan_requests import asked_of
from ranks import run_ranks
from rich.console import Console
from torch import nn
from trainings import config_of, fit

from msrec.data.synthetic.random_rows import random_rows
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.training.table_trace import trace_tables
from msrec.launch.training.trainer import Trainer
from msrec.tools.planner.command.measured_runs import recalibrated, report_run, request_of_run
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.verify import verify, verify_request
from msrec.tools.planner.hardware import Catalogue, load_hardware
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.sources.peak_memory import TensorMemoryCounter
from msrec.tools.planner.tables import TableLoad

pytestmark = pytest.mark.slow

TABLES = [
    TableLoad(name="user_id", rows=700_000, dim=32),
    TableLoad(name="item_id", rows=600_000, dim=32, features=2),
    TableLoad(name="words", rows=100_000, dim=32, pooling=9),
]
TRACED = [
    *("trainer.max_steps=3", "trainer.trace=3", "trainer.global_batch=512", "embeddings.dim=32"),
    "embeddings.sharding={item_id: row_wise}",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "data"
    random_rows(folder, TABLES, rows=8000, users=300, items=300)
    return folder


@pytest.fixture(scope="module")
def traced(dataset, tmp_path_factory):
    config = config_of(dataset, tmp_path_factory.mktemp("runs"), *TRACED)
    run_ranks(fit, 2, config)
    save_config(config, config.run_dir / "config.yaml")
    return config.run_dir


def printed_by(function, *args):
    console = Console(file=io.StringIO(), width=140)
    return function(*args, console), console.file.getvalue()


def test_counted_bytes_are_those_of_tensors_in_use():
    weight = torch.ones(100, 50, requires_grad=True)
    with TensorMemoryCounter([weight]) as memory:
        x = torch.ones(10, 100)
        hidden = (x @ weight).relu()
        assert memory.current == 4 * (10 * 100 + 10 * 50)  # the product is gone
        assert memory.peak == memory.current + 4 * 10 * 50
        view = hidden.view(-1)
        del hidden
        assert memory.current == 4 * (10 * 100 + 10 * 50)
        view.sum().backward()
        del view
        assert memory.current == 4 * (10 * 100 + 100 * 50)  # x and the gradient


def test_the_peak_of_a_dense_part_has_activations_and_their_gradients():
    layers = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rows = 1000
    with TensorMemoryCounter(
        [p.grad for p in layers.parameters()] + list(layers.parameters())
    ) as memory:
        layers(torch.ones(rows, 64)).sum().backward()
    activation = 4 * rows * 64
    # At the top: the input and the outputs of the first three, one gradient arriving, one made.
    assert 5 * activation < memory.peak < 7 * activation


def test_estimated_memory_is_that_of_real_steps(dataset, tmp_path):
    whole = ("embeddings.dim=32", "trainer.global_batch=2048")
    halves = "embeddings.sharding={user_id: row_wise, item_id: row_wise}"
    config = config_of(dataset, tmp_path, *whole, halves)
    file = tmp_path / "conf.yaml"
    save_config(config, file)
    asked = asked_of(file)
    holds, printed = printed_by(verify_request, asked, 2)
    assert holds, printed
    assert "The estimates are within 15% of the peaks of 6 real steps" in printed
    assert not (tmp_path / "default").exists()


def test_a_wrong_estimate_is_reported(dataset, tmp_path, monkeypatch):
    config = config_of(dataset, tmp_path)
    save_config(config, tmp_path / "conf.yaml")
    plan = make_plan(asked_of(tmp_path / "conf.yaml"))
    peaks = [
        round(rank.total_memory / off) for rank, off in zip(plan.ranks, (1.1, 0.8), strict=True)
    ]

    def ran(function, args, nprocs):
        for rank in range(nprocs):
            (Path(args[-1]) / f"{rank}.json").write_text(json.dumps({"peak": peaks[rank]}))

    monkeypatch.setattr("msrec.tools.planner.command.verify.spawn", ran)
    holds, printed = printed_by(verify, plan, config)
    assert not holds
    assert "not within 15% of the peaks of 6 real steps: off by 20.0% at most" in printed
    assert "+10.0%" in printed
    assert "-20.0%" in printed


def test_verify_refuses_a_plan_without_room_on_this_machine(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    save_config(config, tmp_path / "conf.yaml")
    plan = make_plan(asked_of(tmp_path / "conf.yaml"))
    huge = plan.ranks[0].model_copy(update={"memory": {"embedding weights": 1 << 50}})
    with pytest.raises(ValueError, match=r"must have 2,097,152.0 GiB for them; .* are free"):
        verify(plan.model_copy(update={"ranks": [huge, huge]}), config, Console(quiet=True))
    listed = dataclasses.replace(asked_of(tmp_path / "conf.yaml"), config=None)
    with pytest.raises(ValueError, match="--verify needs a run's config"):
        verify_request(listed, 2)


def test_every_rank_times_its_tables_and_leaves_their_values(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *TRACED)

    def trace(rank, world_size):
        trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
        before = {
            name: [shard.tensor.clone() for shard in value.local_shards()]
            for name, value in trainer.model.state_dict().items()
            if hasattr(value, "local_shards")
        }
        found = trace_tables(trainer.model, next(trainer.train.batches()), 2)
        after = trainer.model.state_dict()
        same = [
            torch.equal(shard.tensor, old)
            for name, tensors in before.items()
            for shard, old in zip(after[name].local_shards(), tensors, strict=True)
        ]
        return found, same

    (found, same), (other, _) = run_ranks(trace, 2)
    assert same
    assert all(same)
    assert found == other
    assert set(found[0]["tables"]) | set(found[1]["tables"]) == {"user_id", "item_id", "words"}
    assert all("item_id" in rank["tables"] for rank in found)
    for rank in found:
        times = [t for of_table in rank["tables"].values() for t in of_table.values()]
        assert min(times) >= 0
        assert sum(times) > 0
        assert rank["fwd_comms"] > 0
        assert rank["ids"] > 0


def test_the_plan_of_a_run_is_printed_unchanged(traced, tmp_path):
    page = tmp_path / "plan.html"
    plan, printed = printed_by(report_run, PlanOptions(from_=traced, page=page))
    saved = json.loads((traced / "plan.json").read_text())
    assert plan.modules == saved["modules"]
    assert (plan.world_size, plan.per_node, plan.hardware, plan.batch) == (2, 2, "cpu", 256)
    assert "measured" not in printed
    assert "user_id" in page.read_text()
    with pytest.raises(ValueError, match="trains on cpu; h100 is for cuda"):
        request_of_run(traced, "h100", Catalogue())


def test_traced_times_are_compared_and_recalibrate_the_estimates(traced, tmp_path):
    file = tmp_path / "hardware.yaml"
    plan, printed = printed_by(report_run, PlanOptions(measured=traced, recalibrate=file))
    ranks = json.loads((traced / "table_times.json").read_text())["ranks"]
    slowest = max((rank["tables"]["item_id"] for rank in ranks), key=lambda t: sum(t.values()))
    rows = [line for line in printed.splitlines() if "item_id" in line and "row_wise" in line]
    assert f"{slowest['fwd_compute']:.3f}" in rows[-1]
    assert f"{slowest['bwd_compute']:.3f}" in rows[-1]
    compute = sum(sum(t.values()) for rank in ranks for t in rank["tables"].values())
    estimated = sum(r.ms["fwd_compute"] + r.ms["bwd_compute"] for r in plan.ranks)
    ratio = float(re.search(r"Measured compute is ([\d.]+) times the estimate", printed)[1])
    assert ratio == pytest.approx(compute / estimated, abs=0.006)
    again = load_hardware("cpu", file)
    assert again.memory_gb_s == pytest.approx(plan.specification.memory_gb_s * estimated / compute)
    assert again.sources[-1] == f"measured by the run {traced}"
    second, _ = printed_by(report_run, PlanOptions(measured=traced, gpu="cpu", hardware=file))
    found = sum(r.ms["fwd_compute"] + r.ms["bwd_compute"] for r in second.ranks)
    assert found == pytest.approx(compute, rel=0.01)


def test_bandwidths_follow_the_times():
    cpu = load_hardware("cpu")
    found = recalibrated(cpu, {"compute": 2.0, "comms": 0.5}, "here")
    assert found.memory_gb_s == cpu.memory_gb_s / 2
    assert found.intra_node_gb_s == cpu.intra_node_gb_s * 2
    assert yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))["sources"][-1] == "here"


def test_a_run_without_traced_times_is_refused_with_the_way_out(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *TRACED, "trainer.trace=0")
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    with pytest.raises(FileNotFoundError, match="with trainer.trace=20"):
        printed_by(report_run, PlanOptions(measured=config.run_dir))
    with pytest.raises(FileNotFoundError, match=r"other/config.yaml must exist"):
        printed_by(report_run, PlanOptions(from_=tmp_path / "other"))
