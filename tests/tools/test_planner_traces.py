"""Times of other trainers: traces of torch.profiler and tables of milliseconds against a plan."""

import gzip
import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, schedule
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.tools.planner.command.measured_traces import report_plan
from msrec.tools.planner.command.plan_command import is_of_run
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.trace_files import read_measured
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import TableLoad

H100 = load_hardware("h100")
TABLES = [
    TableLoad(name="a", rows=1_000_000, dim=128, sharding="table_wise"),
    TableLoad(name="b", rows=1_000_000, dim=128, sharding="row_wise"),
]


@pytest.fixture
def plan(tmp_path):
    request = PlanRequest(TABLES, 4096, "h100", H100, 1, 2)
    made = make_plan(request)
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    return made


def kernel(name, us, **args):
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 0, "dur": us, "args": args}


def trace(rank, *events, steps=2):
    marks = [
        {"ph": "X", "cat": cat, "name": f"ProfilerStep#{step}", "ts": 0, "dur": 1}
        for step in range(steps)
        for cat in ("user_annotation", "gpu_user_annotation")
    ]
    other = [{"ph": "M", "name": "process_name"}, kernel("ampere_sgemm_128x64_nn", 5000)]
    info = {"backend": "nccl", "rank": rank, "world_size": 2}
    return json.dumps({"distributedInfo": info, "traceEvents": [*marks, *other, *events]})


EVENTS = (
    kernel("void split_embedding_codegen_forward_unweighted_v2_kernel<float>", 100.0),
    kernel(
        "void split_embedding_backward_codegen_rowwise_adagrad_unweighted_kernel_warp_per_row", 60.0
    ),
    kernel("void cub::DeviceRadixSortOnesweepKernel<long>", 40.0),
    kernel("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 20.0, dtype="Float"),
    kernel("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 8.0, dtype="Long"),
    kernel("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 10.0, dtype="Float"),
    kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 500.0, dtype="Float"),
)


def printed(*args, **options):
    console = Console(file=io.StringIO(), width=160)
    report_plan(PlanOptions(*args, **options), console)
    return console.file.getvalue()


def test_kernels_of_a_trace_are_added_by_part_and_divided_by_the_steps(tmp_path):
    (tmp_path / "r0.json").write_text(trace(0, *EVENTS))
    (tmp_path / "r1.json.gz").write_bytes(gzip.compress(trace(1, *EVENTS[:1]).encode()))
    found = read_measured(tmp_path).ranks
    assert found[0] == pytest.approx(
        {"fwd_compute": 0.05, "bwd_compute": 0.05, "comms": 0.015, "all_reduce": 0.25, "ids": 0.004}
    )
    assert found[1]["fwd_compute"] == pytest.approx(0.05)
    assert sum(found[1].values()) == pytest.approx(0.05)


def test_a_trace_recalibrates_the_plan_that_another_trainer_ran(plan, tmp_path):
    traces = tmp_path / "traces"
    traces.mkdir()
    assert is_of_run(traces)  # without traces
    for rank in range(2):
        (traces / f"{rank}.json").write_text(trace(rank, *EVENTS))
    assert not is_of_run(traces)
    file = tmp_path / "here.yaml"
    text = printed(from_=tmp_path / "plan.json", measured=traces, recalibrate=file)
    estimate = {
        part: sum(r.ms[f"fwd_{part}"] + r.ms[f"bwd_{part}"] for r in plan.ranks)
        for part in ("compute", "comms")
    }
    for part, ms in (("compute", 0.1), ("comms", 0.015)):
        ratio = float(re.search(rf"Measured {part} is ([\d.]+) times", text)[1])
        assert ratio == pytest.approx(2 * ms / estimate[part], abs=0.005)
    assert "all-reduces of the dense part: 0.250 ms a rank" in text
    assert "sending of ids: 0.004 ms a rank" in text
    again = load_hardware("h100", file)
    assert again.memory_gb_s == pytest.approx(H100.memory_gb_s * estimate["compute"] / 0.2)
    assert again.intra_node_gb_s == pytest.approx(H100.intra_node_gb_s * estimate["comms"] / 0.03)
    assert again.sources[-1] == f"measured by {traces}"


def test_a_table_of_times_is_compared_table_by_table(plan, tmp_path):
    (owner,) = plan.modules["ebc"]["a"]["ranks"]
    by_name = {table.name: table for table in plan.tables}
    of_a, of_b = (sum(by_name[n].ms[p] for p in ("fwd_compute", "bwd_compute")) for n in "ab")
    file = tmp_path / "times.csv"
    file.write_text(f"table,rank,ms\na,{owner},{3 * of_a}\nb,0,{of_b}\nb,1,{of_b}\n")
    text = printed(from_=tmp_path / "plan.json", measured=file)
    ratio = float(re.search(r"Measured compute is ([\d.]+) times", text)[1])
    assert ratio == pytest.approx((3 * of_a + 2 * of_b) / (of_a + 2 * of_b), abs=0.005)
    (row,) = [line for line in text.splitlines() if "│ a " in line and "3.00" in line]
    assert f"{3 * of_a:.3f}" in row


MISTAKES = {
    "no plan": (None, "table,rank,ms\na,0,1\n", "must have --from PLAN"),
    "rank": ("plan.json", "table,rank,ms\nb,7,1\n", "plan's 2 ranks; it has rank 7"),
    "table": ("plan.json", "table,rank,ms\nx,0,1\n", "the plan's tables; it has 'x'"),
    "column": ("plan.json", "table,rank\na,0\n", r"in each row; row 1 has \{'table': 'a'"),
    "twice": ("plan.json", "table,rank,ms\nb,0,1\nb,0,2\n", "row 2 has 2.0 for b on rank 0"),
    "negative": ("plan.json", "table,rank,ms\nb,0,-1\n", "0 ms or more"),
    "empty": ("plan.json", "table,rank,ms\n", "at least one row"),
}


@pytest.mark.parametrize(("source", "text", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_an_invalid_table_of_times_is_refused(plan, tmp_path, source, text, sentence):
    (tmp_path / "times.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        printed(from_=source and tmp_path / source, measured=tmp_path / "times.csv")


def test_an_invalid_trace_is_refused(plan, tmp_path):
    file = tmp_path / "trace.json"
    for text, sentence in (
        ("{", "must be a trace of torch.profiler"),
        ("[]", "must be a trace of torch.profiler"),
        (trace(0, *EVENTS, steps=0), "it has no ProfilerStep"),
        (trace(0), "kernels of FBGEMM or NCCL; none of its 5 events"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_measured(file)
    with pytest.raises(FileNotFoundError, match="there is none"):
        read_measured(tmp_path / "absent.json")
    folder = tmp_path / "two"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.json").write_text(trace(0, *EVENTS))
    with pytest.raises(ValueError, match="rank 0 has two"):
        read_measured(folder)
    with pytest.raises(ValueError, match="must be a plan written by msrec plan"):
        printed(from_=folder / "a.json", measured=file)


def test_a_real_trace_of_the_profiler_is_read(tmp_path):
    tables = FusedEmbeddingBagCollection(
        [
            EmbeddingBagConfig(name=n, embedding_dim=16, num_embeddings=1000, feature_names=[n])
            for n in "ab"
        ],
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": 0.1},
        device=torch.device("cpu"),
    )
    ids = KeyedJaggedTensor(
        ["a", "b"], torch.arange(512), lengths=torch.ones(512, dtype=torch.int32)
    )
    plan = schedule(wait=1, warmup=1, active=2)
    with profile(activities=[ProfilerActivity.CPU], schedule=plan) as profiler:
        for _ in range(4):
            tables(ids).values().sum().backward()
            profiler.step()
    file = tmp_path / "trace.json.gz"
    profiler.export_chrome_trace(str(file))
    parts = read_measured(file).ranks[0]
    events = {e.key: e for e in profiler.key_averages()}
    forward = events["fbgemm::split_embedding_codegen_forward_cpu"].cpu_time_total / 2 / 1e3
    update = events["fbgemm::split_embedding_backward_codegen_sgd_cpu"].cpu_time_total / 2 / 1e3
    assert parts["fwd_compute"] == pytest.approx(forward, rel=0.01)
    assert parts["bwd_compute"] == pytest.approx(update, rel=0.01)
