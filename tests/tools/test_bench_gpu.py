"""The script for a GPU, on the CPU: each line runs and fails by itself, and says what it found."""

import json
import math

import pytest
from gpu_lines import FAULTS
from typer import Exit

from msrec.tools.bench.gpu import command
from msrec.tools.bench.gpu.command import bench_gpu, chosen_lines
from msrec.tools.bench.gpu.lines import LINES
from msrec.tools.bench.gpu.setting import Setting
from msrec.tools.bench.gpu.training import agreement, each_case, largest_difference
from msrec.tools.bench.gpu.worker import Result, run_lines

pytestmark = pytest.mark.slow

HERE = ["versions", "lookup", "group", "meta", "resume", "uvm", "profile", "encode"]
ON_GPU = ["sync", "pinned", "memory", "ranks"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "gpu.json"
    bench_gpu("cpu", [*HERE, *ON_GPU], list_lines=False, minutes=10, out=out)
    return {line["name"]: line for line in json.loads(out.read_text())["lines"]}


def test_lines_run_on_the_cpu_and_those_of_a_gpu_say_so(report):
    assert {name: line["state"] for name, line in report.items()} == {
        **dict.fromkeys(HERE, "ok"),
        **dict.fromkeys(ON_GPU, "skipped"),
    }
    assert all("needs CUDA" in report[name]["text"] for name in ON_GPU)


def test_lines_write_their_figures(report):
    assert set(report["meta"]["figures"]["differences"].values()) == {0.0}
    assert report["resume"]["figures"] == {"losses": 0.0, "weights": 0.0, "repeat": 0.0}
    assert report["uvm"]["figures"]["loss"] == 0
    assert all(f["rows_per_s"] > 0 for f in report["profile"]["figures"].values())
    assert report["encode"]["figures"]["cosine"] > 0.999


def test_a_line_that_fails_crashes_or_hangs_leaves_the_others(tmp_path):
    setting = Setting("cpu", tmp_path)
    results = {r.name: r for r in run_lines(FAULTS, setting, tmp_path / "log", 300)}
    assert {name: (r.state, r.text) for name, r in results.items()} == {
        "before": ("ok", "on cpu"),
        "wrong": ("FAILED", "ValueError: a loss must be finite"),
        "not here": ("skipped", "needs CUDA"),
        "crash": ("FAILED", "its process ended with signal 6"),
        "after": ("ok", "on cpu"),
        "again": ("ok", "on cpu"),
        "hang": ("FAILED", "no result within 0 s"),
    }
    process = {name: r.figures.get("process") for name, r in results.items()}
    assert process["after"] == process["again"] != process["before"]


def test_lines_without_time_left_fail(tmp_path):
    [result] = run_lines({"late": FAULTS["before"]}, Setting("cpu", tmp_path), tmp_path / "log", 0)
    assert (result.state, result.text) == ("FAILED", "not run: the 0 s of all are over")


def test_a_failed_line_is_exit_status_1_and_stays_in_the_file(tmp_path, monkeypatch):
    failed = Result("lookup", "FAILED", "ValueError: a loss must be finite", 0.1)
    monkeypatch.setattr(command, "run_lines", lambda *_: iter([failed]))
    with pytest.raises(Exit) as ended:
        bench_gpu("cpu", ["lookup"], list_lines=False, minutes=5, out=tmp_path / "gpu.json")
    assert ended.value.exit_code == 1
    (line,) = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert line["text"] == "ValueError: a loss must be finite"


def test_only_takes_known_lines_and_every_line_says_what_it_does(capsys):
    with pytest.raises(ValueError, match=r"--only must be one of versions, .*; got 'speed'\."):
        chosen_lines(["speed"])
    assert list(chosen_lines(["group", "lookup"])) == ["lookup", "group"]
    bench_gpu("cpu", None, list_lines=True, minutes=1)
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and line.about in shown for name, line in LINES.items())


def test_a_case_that_fails_is_named_and_the_others_run():
    def differ(case):
        if case == "bad":
            raise RuntimeError("no kernel")
        return {"near": 1e-6, "far": 0.3}[case]

    results = each_case(["near", "bad", "far"], differ)
    with pytest.raises(ValueError, match="2 of 3 .*bad: RuntimeError: no kernel; far: 0.3"):
        agreement(results, 1e-4)
    assert agreement({"near": 1e-6}, 1e-4) == "1 cases, largest difference 1.0e-06 (near)"


def test_losses_that_are_not_finite_or_missing_are_errors():
    assert largest_difference([1.0, 2.0], [1.0, 2.5]) == 0.5
    with pytest.raises(ValueError, match="finite"):
        largest_difference([1.0], [math.nan])
    with pytest.raises(ValueError, match="must be 2 values; there are 1"):
        largest_difference([1.0, 2.0], [1.0])
