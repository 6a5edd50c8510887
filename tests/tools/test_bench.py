"""The benches: their statistics, and that each runs to its end and writes what it found."""

import json
import mmap
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from msrec.launch.distributed import process_group
from msrec.model.metrics.exact import exact_metrics
from msrec.tools.bench import cold, growth, job, loader, meta, public, ranks, step, tables
from msrec.tools.bench.evaluate import judged_by_polars
from msrec.tools.bench.harness import own_process, processes, report
from msrec.tools.bench.harness.measure import interleaved, rates, sizes, spread, timed, times
from msrec.tools.bench.loader import dataset_or_made

ROUNDS = [(1.0, 0.5), (2.0, 1.0), (3.0, 1.5)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run a bench with runs/ in a scratch folder -> what its JSON file holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msrec", "bench", "x"])
    threads = torch.get_num_threads()

    def run(name, function, *args):
        function(*args)
        return json.loads((report.OUT / f"{name}.json").read_text())

    yield run
    torch.set_num_threads(threads)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    """Not of the medians: 2 / 4 would be said of rounds in which it was 1, 0.5 and 0.25 times."""
    found = rates(
        "x", [(1.0, 1.0), (8.0, 8.0), (4.0, 1.0)], [(4.0, 2.0), (2.0, 2.0), (8.0, 2.0)], 8
    )
    assert found.rounds == [4.0, 0.25, 2.0]
    assert found.ratio == 2.0
    assert (found.ours, found.reference) == (2.0, 2.0)
    assert found.processor_ratio == 2.0


def test_work_of_different_size_is_compared_by_its_rate():
    found = rates("x", ROUNDS, ROUNDS, (6.0, 3.0))
    assert (found.ratio, found.ours, found.reference) == (2.0, 3.0, 1.5)


def test_times_and_rates_are_each_others_inverse():
    slow = [(2 * clock, 4 * processor) for clock, processor in ROUNDS]
    assert times("x", slow, ROUNDS, calls=4).ratio == 2.0
    assert rates("x", slow, ROUNDS, 1).ratio == 0.5
    found = times("x", slow, ROUNDS, calls=4)
    assert (found.ours, found.reference, found.processor_ratio) == (1000.0, 500.0, 4.0)


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
    assert sizes("x", 4, 2, "MiB", aim).is_reached is reached


def test_the_spread_is_that_of_the_middle_half():
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)
    assert spread([5.0]) == 0.0


def test_a_case_that_times_itself_is_believed_and_warm_up_does_not_count():
    took = interleaved({"a": lambda: (7.0, 3.0), "b": lambda: None}, repeats=3, warm_up=2)
    assert took["a"] == [(7.0, 3.0)] * 3
    assert len(took["b"]) == 3
    assert all(clock < 7 for clock, _ in took["b"])
    with pytest.raises(ValueError, match="at least one round; got repeats=0"):
        interleaved({}, 0)


def test_processor_time_is_that_of_threads_and_children_too():
    code = "s = 0\nfor i in range(3_000_000): s += i"
    clock, processor = timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    assert processor > 0.03


def test_a_report_names_machine_and_command(bench):
    finding = rates("x", ROUNDS, ROUNDS, 1, aim=("at least", 1.0))
    written = bench(
        "name", report.report, "name", "title", [finding], report.machine(), {"more": 1}
    )
    on = written["machine"]
    assert on["command"] == "msrec bench x"
    assert on["versions"]["torch"] == torch.__version__
    assert written["findings"][0]["reached"] is True
    assert written["more"] == 1


@pytest.mark.parametrize(
    ("name", "function", "args", "findings"),
    [
        ("loader", loader.bench_loader, (None, 64, 3, 1), 2),
        ("hidden", loader.bench_hidden, (None, 64, 4, 1), 1),
        ("step", step.bench_step, (["movielens"], 64, 2, 1, None), 2),
        ("tables", tables.bench_tables, ([8], 0.001, 2, 16, 3, 1), 2),
    ],
)
def test_a_bench_runs_and_writes_its_findings(bench, name, function, args, findings):
    written = bench(name, function, *args)
    assert len(written["findings"]) == findings
    for found in written["findings"]:
        assert found["ratio"] > 0
        assert found["ours"] > 0


def test_the_meta_bench_runs_and_counts_operations(bench, monkeypatch):
    monkeypatch.setattr(meta, "peak_memory", lambda work, *args: 1 << 20)
    found = {f["what"]: f for f in bench("meta", meta.bench_meta, 64, 2, 1)["findings"]}
    assert len(found) == 5
    assert found["user + scenario on: operations"]["ratio"] > 1
    assert found["contracted: memory"]["ours"] == 1.0


def test_a_rank_of_the_ranks_bench_trains(tmp_path):
    with process_group("cpu") as process, dataset_or_made(None, 4, 64) as data:
        rounds = ranks.trained(process, data, tmp_path, 64, 2)
        assert processes.slowest([next(rounds), (0.0, 1.0)]) > (0.0, 1.0)


def summed(process, start):
    value = start + process.rank
    while True:
        both = torch.tensor([value])
        torch.distributed.all_reduce(both)
        value += 1
        yield int(both)


def test_ranks_do_rounds_together_until_they_are_let_go(monkeypatch):
    monkeypatch.setattr(own_process, "START", "fork")
    with processes.ranks(2, summed, 10) as run:
        assert run() == [21, 21]
        assert run() == [23, 23]


def test_the_memory_of_work_is_what_it_takes_at_its_peak(monkeypatch):
    monkeypatch.setattr(own_process, "START", "fork")
    assert 63 < processes.peak_memory(taken, 64) / 2**20 < 90


def taken(mib):
    # Not by malloc, which may give memory that the process, a fork of the tests', has already.
    with mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE) as memory:
        for _ in range(mib):
            memory.write(b"x" * (1 << 20))
    yield None


def test_growth_is_drawn_with_its_power(bench, tmp_path, monkeypatch):
    """The measures are tested by the benches that share them; here y = 3 x^2."""
    monkeypatch.setitem(growth.SERIES, "rows", (lambda n: 3.0 * n * n, "x", "s", "linear"))
    page = tmp_path / "growth.html"
    written = bench("growth", growth.bench_growth, {"rows": [10, 1, 100]}, page)
    assert written["series"][0]["points"] == {"1": 3.0, "10": 300.0, "100": 30000.0}
    assert written["series"][0]["power"] == pytest.approx(2.0)
    text = page.read_text()
    assert "Plotly.newPlot" in text
    assert 'src="http' not in text


def test_growth_by_users_measures_a_step(monkeypatch):
    monkeypatch.setattr(growth, "BATCH", 64)
    monkeypatch.setattr(growth, "REPEATS", 1)
    assert growth._step(growth.movielens_tables(), batch=64) > 0


def test_job_and_cold_start_run_the_command_line(bench, monkeypatch):
    """Without their processes, which take seconds to import: what they run is the CLI's own."""
    commands = []

    def msrec(ranks, *command):
        commands.append((ranks, command[0]))

    monkeypatch.setattr(job, "_msrec", msrec)
    monkeypatch.setattr(job, "_rows_per_s", lambda run: 20_000.0)
    monkeypatch.setattr(job, "has_rechub", lambda: True)
    monkeypatch.setattr(job, "in_own_process", lambda step, *args: 10_000.0)
    written = bench("job", job.bench_job, None, 64, 2, 1)
    assert commands == [(1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate")]
    assert written["findings"][0]["ratio"] == 2.0
    monkeypatch.setattr(job, "has_rechub", lambda: False)
    written = bench("job", job.bench_job, None, 64, 2, 1)
    assert [found["what"][:24] for found in written["findings"]] == ["random: disk to metrics,"]
    assert written["training_rows_per_s"] == {"1": 20_000.0, "2": 20_000.0}
    with pytest.raises(RuntimeError, match="said no b' train '"):
        cold._until([sys.executable, "-c", "pass"], b" train ")
    cold._until([sys.executable, "-c", "import sys; print(' train ', file=sys.stderr)"], b" train ")


def test_the_public_library_trains_on_the_same_rows():
    pytest.importorskip("torch_rechub")
    threads = torch.get_num_threads()
    with dataset_or_made(None, 4, 64) as data:
        assert public.rechub_rows_per_s(data, job.OPTIONS, 64, 2) > 0
    torch.set_num_threads(threads)


def test_of_many_tasks_a_row_takes_that_of_its_scenario():
    tasks = torch.arange(6.0).reshape(3, 2)
    model = public.ByScenario(lambda x: tasks)
    assert model({"scenario": torch.tensor([1, 0, 1])}).tolist() == [1.0, 2.0, 5.0]


def test_polars_by_hand_says_what_msrec_says():
    """The reference of `msrec bench evaluate` does the same work, ties included."""
    rng = np.random.default_rng(0)
    columns = {
        "scenario": rng.integers(0, 3, 4_000),
        "user": rng.integers(0, 200, 4_000),
        "label": rng.integers(0, 2, 4_000),
        "score": rng.integers(1, 100, 4_000) / 100,
    }
    ours = exact_metrics(*(columns[n] for n in ("score", "label", "scenario", "user")), "abc")
    for line in judged_by_polars(pl.DataFrame(columns), by_user=True).iter_rows(named=True):
        expected = ours.scenarios["abc"[line.pop("scenario")]]
        assert line == pytest.approx({name: getattr(expected, name) for name in line}, rel=1e-12)
