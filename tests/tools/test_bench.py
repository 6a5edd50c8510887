"""The benches: their statistics, and that each runs to its end and writes its findings."""

import ast
import importlib.util
import json
import mmap
import subprocess
import sys
from functools import partial
from importlib import import_module

import numpy as np
import polars as pl
import pytest
import torch

from msrec.data.loading.loader import open_loader
from msrec.data.schema import load_schema
from msrec.launch.distributed import process_group
from msrec.model.backbones import make_backbone
from msrec.model.metrics.exact import exact_metrics
from msrec.tools.bench import job, loader, meta, ranks, step, tables
from msrec.tools.bench.evaluate import polars_metrics
from msrec.tools.bench.harness import processes, report
from msrec.tools.bench.harness.measure import (
    Seconds,
    compare_rates,
    compare_times,
    compare_values,
    interleaved,
    spread,
    timed,
)
from msrec.tools.bench.harness.shapes import dataset_or_random
from msrec.tools.bench.reference import train
from msrec.tools.bench.reference.models import MODELS
from msrec.tools.bench.reference.rechub import rechub_inputs
from msrec.tools.cli.bench import BENCHES
from msrec.tools.zoo import SHAPE

pytestmark = pytest.mark.slow

ROUNDS = [Seconds(1.0, 0.5), Seconds(2.0, 1.0), Seconds(3.0, 1.5)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run a bench with runs/ in a scratch folder -> the contents of its JSON file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msrec", "bench", "x"])
    threads = torch.get_num_threads()

    def run(name, function, *args):
        function(*args)
        return json.loads((report.OUT / f"{name}.json").read_text())

    yield run
    torch.set_num_threads(threads)


def test_a_time_includes_the_work_that_a_gpu_still_does(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(len(waits)))
    assert timed(lambda: waits.append("work")).clock >= 0
    assert waits == [0, "work", 2]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    """Not of the medians: they would give 2 / 4 for rounds with the ratios 4, 0.25 and 2."""
    finding = compare_rates(
        "x",
        [Seconds(1.0, 1.0), Seconds(8.0, 8.0), Seconds(4.0, 1.0)],
        [Seconds(4.0, 2.0), Seconds(2.0, 2.0), Seconds(8.0, 2.0)],
        8,
    )
    assert finding.rounds == [4.0, 0.25, 2.0]
    assert finding.ratio == 2.0
    assert (finding.ours, finding.reference) == (2.0, 2.0)
    assert finding.processor_ratio == 2.0


def test_work_of_different_size_is_compared_by_its_rate():
    finding = compare_rates("x", ROUNDS, ROUNDS, (6.0, 3.0))
    assert (finding.ratio, finding.ours, finding.reference) == (2.0, 3.0, 1.5)


def test_times_and_rates_are_each_others_inverse():
    slow = [Seconds(2 * clock, 4 * processor) for clock, processor in ROUNDS]
    finding = compare_times("x", slow, ROUNDS, calls=4)
    assert finding.ratio == 2.0
    assert compare_rates("x", slow, ROUNDS, 1).ratio == 0.5
    assert (finding.ours, finding.reference, finding.processor_ratio) == (1000.0, 500.0, 4.0)


@pytest.mark.parametrize(
    ("aim", "reached"),
    [
        (("at least", 2.0), True),
        (("at least", 2.1), False),
        (("at most", 2.0), True),
        (("at most", 1.9), False),
        (None, None),
    ],
)
def test_an_aim_is_reached_on_its_own_side(aim, reached):
    assert compare_values("x", 4, 2, "MiB", aim).is_reached is reached


def test_the_spread_is_that_of_the_middle_half():
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)
    assert spread([5.0]) == 0.0


def test_a_case_that_times_itself_is_believed_and_warm_up_does_not_count():
    took = interleaved({"a": lambda: Seconds(7.0, 3.0), "b": lambda: None}, repeats=3, warm_up=2)
    assert took["a"] == [(7.0, 3.0)] * 3
    assert len(took["b"]) == 3
    assert all(clock < 7 for clock, _ in took["b"])
    with pytest.raises(ValueError, match="at least one round; got repeats=0"):
        interleaved({}, 0)


def test_processor_time_includes_threads_and_children():
    code = "s = 0\nfor i in range(3_000_000): s += i"
    clock, processor = timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    assert processor > 0.03


def test_a_report_names_machine_and_command(bench):
    finding = compare_rates("x", ROUNDS, ROUNDS, 1, aim=("at least", 1.0))
    written = bench(
        "name", report.report, "name", "title", [finding], report.machine(), {"more": 1}
    )
    on = written["machine"]
    assert on["command"] == "msrec bench x"
    assert on["versions"]["torch"] == torch.__version__
    assert written["findings"][0]["reached"] is True
    assert written["more"] == 1


@pytest.mark.parametrize("name", BENCHES)
def test_the_listed_help_of_a_bench_is_the_first_line_of_its_own(name):
    module, line = BENCHES[name]
    function = getattr(import_module(f"msrec.tools.bench.{module}"), f"bench_{name}")
    assert function.__doc__.splitlines()[0] == line


@pytest.mark.parametrize(
    ("name", "function", "args", "findings"),
    [
        ("loader", loader.bench_loader, (None, 64, 3, 1), 2),
        ("hidden", loader.bench_hidden, (None, 64, 4, 1), 1),
        ("step", step.bench_step, ("movielens", None, 64, 2, 1), 2),
        ("step", step.bench_step, ("movielens", None, 64, 2, 1, "mlp,star"), 2),
        ("step", step.bench_step, ("movielens", None, 64, 2, 1, "", "mmoe,star"), 2),
        ("tables", tables.bench_tables, ("8", 0.001, 2, 16, 3, 1), 2),
    ],
)
def test_a_bench_runs_and_writes_its_findings(bench, name, function, args, findings):
    written = bench(name, function, *args)
    assert len(written["findings"]) == findings
    for finding in written["findings"]:
        assert finding["ratio"] > 0
        assert finding["ours"] > 0


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="--shapes must name some of movielens, large; got 'huge'"):
        step.bench_step("movielens,huge", None, 64, 2, 1)


def test_a_model_without_a_plain_form_is_refused():
    with pytest.raises(ValueError, match="--plain must name some of .*got 'hinet'"):
        step.bench_step("movielens", None, 64, 2, 1, plain="hinet")


def test_models_of_torch_rechub_are_compared_where_it_is_installed(bench):
    if importlib.util.find_spec("torch_rechub") is None:
        with pytest.raises(ValueError, match="--rechub needs `pip install torch-rechub`"):
            bench("step", partial(step.bench_step, rechub="ple"), "movielens", None, 64, 2, 1)
    else:
        written = bench("step", partial(step.bench_step, rechub="ple"), "movielens", None, 64, 2, 1)
        assert "against torch-rechub" in written["findings"][0]["what"]


def test_lists_of_ids_are_padded_for_torch_rechub():
    with dataset_or_random(None, 2, 64) as folder:
        schema, batch = load_schema(folder), next(open_loader(folder, "train", 64).batches())
    ((ids, _, label),) = rechub_inputs(schema, [batch])
    (name,) = [feature.name for feature in schema.sparse if feature.multi]
    bags = batch.sparse[name]
    assert ids[name].shape == (64, bags.lengths().max())
    assert torch.equal(
        ids[name].sum(1),
        torch.segment_reduce(bags.values().double(), "sum", lengths=bags.lengths().long()).long(),
    )
    assert label.shape == (64,)


def test_the_meta_bench_runs_and_counts_operations(bench, monkeypatch):
    monkeypatch.setattr(meta, "peak_memory", lambda rounds, *args: 1 << 20)
    findings = {f["what"]: f for f in bench("meta", meta.bench_meta, 64, 2, 1)["findings"]}
    assert len(findings) == 14
    of = {name: findings[f"narrow MMoE, {name}: operations"] for name in ("generated", "factored")}
    assert of["generated"]["ratio"] > of["factored"]["ratio"] > 1
    assert findings["contracted: memory"]["ours"] == 1.0


def test_a_rank_of_the_ranks_bench_trains(tmp_path):
    with process_group("cpu") as process, dataset_or_random(None, 4, 64) as data:
        rounds = ranks.train_rounds(process, data, tmp_path, 64, 2)
        assert processes.slowest([next(rounds), Seconds(0.0, 1.0)]) > (0.0, 1.0)


def summed(process, start):
    value = start + process.rank
    while True:
        both = torch.tensor([value])
        torch.distributed.all_reduce(both)
        value += 1
        yield int(both)


def test_ranks_do_rounds_together_until_they_are_let_go(monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    with processes.ranks(2, summed, 10) as run:
        assert run() == [21, 21]
        assert run() == [23, 23]


def test_the_memory_of_work_is_what_it_takes_at_its_peak(monkeypatch):
    monkeypatch.setattr(processes, "START_METHOD", "fork")
    assert 63 < processes.peak_memory(taken, 64) / 2**20 < 90


def taken(mib):
    # Not by malloc, which may give memory that the process, a fork of the tests', has already.
    with mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE) as memory:
        for _ in range(mib):
            memory.write(b"x" * (1 << 20))
    yield None


def test_the_job_bench_runs_the_command_line(bench, monkeypatch):
    """Without its processes, which take seconds to import: the CLI has tests of its own."""
    commands = []
    monkeypatch.setattr(job, "_python", lambda *words: commands.append(words))
    monkeypatch.setattr(job, "_rows_per_s", lambda run: 20_000.0)
    written = bench("job", job.bench_job, None, 64, 2, 1)
    assert ["--nproc-per-node=2" in words for words in commands] == [True, False]
    assert all({"train", "--evaluate", "backbone.name=mmoe"} <= {*words} for words in commands)
    assert [f["what"][:29] for f in written["findings"]] == ["random: MMoE, disk to test me"]
    assert written["training_rows_per_s"] == {"1": 20_000.0, "2": 20_000.0}


def test_the_job_bench_runs_each_model_and_the_plain_script_in_turn(bench, monkeypatch):
    commands = []
    monkeypatch.setattr(job, "_python", lambda *words: commands.append(words))
    written = bench("job", job.bench_job, None, 64, 2, 1, "mmoe,star")
    assert [words[1] for words in commands] == ["msrec", job.PLAIN_SCRIPT] * 2
    assert "backbone.name=star" in commands[2]
    assert commands[3][3] == "star"
    assert len(written["findings"]) == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_model_has_as_many_parameters_as_ours(name):
    """So that a bench compares equal work; ours has no more than the plain STAR's norms."""
    ours, plain = make_backbone(name, SHAPE), MODELS[name](SHAPE.in_dim, SHAPE.num_scenarios, 16)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, plain)]
    assert counts[0] == counts[1]


def test_the_plain_script_trains_and_scores(tmp_path, capsys):
    with dataset_or_random(None, 4, 64) as folder:
        train.main(folder, "star", tmp_path / "model.pt", batch=64)
    *steps, last = capsys.readouterr().out.splitlines()
    assert steps[0].startswith("0 0.")
    aucs = ast.literal_eval(last.replace("np.float64", ""))
    assert aucs.keys() == {"all", "0", "1", "2"}
    assert all(0 <= value <= 1 for value in aucs.values())


def test_polars_by_hand_computes_what_msrec_computes():
    """The reference of `msrec bench evaluate` does the same work, ties included."""
    rng = np.random.default_rng(0)
    columns = {
        "scenario": rng.integers(0, 3, 4_000),
        "user": rng.integers(0, 200, 4_000),
        "label": rng.integers(0, 2, 4_000),
        "score": rng.integers(1, 100, 4_000) / 100,
    }
    ours = exact_metrics(*(columns[n] for n in ("score", "label", "scenario", "user")), "abc")
    for line in polars_metrics(pl.DataFrame(columns), by_user=True).iter_rows(named=True):
        expected = ours.scenarios["abc"[line.pop("scenario")]]
        assert line == pytest.approx({name: getattr(expected, name) for name in line}, rel=1e-12)
