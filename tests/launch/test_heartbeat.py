"""Heartbeats of ranks, and the status of a run that hangs, is dead or ends."""

import faulthandler  # noqa: F401 - for the ranks of the test that hangs
import io
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset, tiny_store
from trainings import config_of

from msrec.launch.cluster.status import print_status
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.rank_states import RankState, read_ranks, read_stack
from msrec.launch.training.run_status import status_of, stragglers
from msrec.launch.training.trainer import Trainer
from msrec.tools.fault_injection.killed_ranks import observe_outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


def status_and_text(run_dir, now=None):
    console = Console(file=io.StringIO(), width=150)
    status = print_status(run_dir, console, now)
    return status, console.file.getvalue()


def fit(rank, world_size, config, at_step=None, do=None):
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    steps = itertools.count(1)

    def act(outcome, is_training):
        if is_training and next(steps) == at_step and rank == 1:
            do()

    observe_outcomes(trainer, act)
    trainer.fit()


def test_ranks_report_that_they_are_done(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.epochs=1")
    run_ranks(fit, 2, config)
    ranks = read_ranks(config.run_dir)
    assert [rank.rank for rank in ranks] == [0, 1]
    for rank in ranks:
        assert (rank.phase, rank.step, rank.total_steps) == ("done", 21, 21)
        assert rank.memory > 2**26
        assert read_stack(config.run_dir, rank.rank) is None
    status, text = status_and_text(config.run_dir)
    assert (status.word, status.reasons, status.exit_status) == ("done", [], 0)
    assert "done, step 21 of 21; train loss" in text
    assert "rows/s" in text
    assert len({rank.pid for rank in ranks}) == 2


def forget_the_others():
    time.sleep(60)


@pytest.mark.parametrize(("rank_0_hang_s", "word"), [(3, "silent"), (None, "failed")])
def test_a_rank_that_hangs_ends_with_its_stack_and_is_named(dataset, tmp_path, rank_0_hang_s, word):
    # Rank 0 waits for rank 1. It is ended by its own watch, or loses its connection to rank 1.
    config = config_of(dataset, tmp_path, "trainer.hang_s=5")
    save_config(config, tmp_path / "conf.yaml")
    # Not by fork, see ranks.py.
    code = (
        "import faulthandler; later = faulthandler.dump_traceback_later\n"
        "import test_heartbeat as t; from msrec.launch.config.run_config import load_config\n"
        "def fit(rank, world, config, *args):\n"
        "    t.faulthandler.dump_traceback_later = later\n"
        f"    hang = config.trainer.hang_s if rank else {rank_0_hang_s}\n"
        "    trainer = config.trainer.model_copy(update={'hang_s': hang})\n"
        "    t.fit(rank, world, config.model_copy(update={'trainer': trainer}), *args)\n"
        f"t.run_ranks(fit, 2, load_config({str(tmp_path / 'conf.yaml')!r}), 4, t.forget_the_others)"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "died without a word" in done.stderr
    assert "forget_the_others" in read_stack(config.run_dir, 1)
    stack_of_0 = read_stack(config.run_dir, 0)
    assert (stack_of_0 is None) == (rank_0_hang_s is None)
    assert "forget_the_others" not in (stack_of_0 or "")
    status, text = status_and_text(config.run_dir)
    assert status.word == word
    assert status.exit_status == 1
    assert any("rank 1" in reason and "hung after step" in reason for reason in status.reasons)
    assert "rank 1 hung here:" in text
    assert "forget_the_others" in text


def fail():
    raise ValueError("a fault of rank 1")


def test_a_rank_that_fails_reports_it(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    with pytest.raises(AssertionError, match="a fault of rank 1"):
        run_ranks(fit, 2, config, 4, fail, timeout_s=30)
    status, _ = status_and_text(config.run_dir)
    assert status.word == "failed"
    assert any("rank 1" in reason and "failed after step 3" in reason for reason in status.reasons)


def sleep_in_the_loader(rank, world_size, config, sleeps):
    """Train; the loader of the last rank sleeps before each batch."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    original = trainer.train.batches

    def batches(*where):
        for batch in original(*where):
            time.sleep(sleeps if rank == world_size - 1 else 0)
            yield batch

    trainer.train.batches = batches
    trainer.fit()


def test_the_rank_for_which_all_others_wait_is_named_and_no_other(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.epochs=1", "trainer.log_every=50")
    run_ranks(sleep_in_the_loader, 2, config, 0.1)
    slept, waited = (read_ranks(config.run_dir)[rank] for rank in (1, 0))
    assert slept.own_s > 0.08  # at least what it slept, but for the last word's rounding
    assert waited.own_s < 0.05
    assert waited.step_s > 0.08  # which is why the time of a step does not tell
    _, text = status_and_text(config.run_dir)
    (line,) = [line for line in text.splitlines() if "is slow" in line]
    assert line.startswith("rank 1 on ")


@pytest.mark.parametrize(
    ("own", "slow"),
    [
        ((0.1, 0.1, 0.1, 0.3), [3]),
        ((0.1, 0.1, 0.1, 0.19), []),
        ((0.01, 0.01, 0.01, 0.05), []),  # four times as much of nearly nothing
        ((0.3, 0.3, 0.3, 0.3), []),
        ((0.1, 0.3), [1]),
        ((0.3, None), []),
        ((0.3,), []),
    ],
)
def test_slow_is_what_takes_twice_the_others_time_and_a_tenth_of_the_step(own, slow):
    ranks = [
        RankState(rank=r, host="h", pid=1, time=0, phase="trains", step_s=0.5, own_s=own_s)
        for r, own_s in enumerate(own)
    ]
    assert [int(line.split()[1]) for line in stragglers(ranks)] == slow


def write_state(folder, **changes):
    values = {"rank": 0, "host": "elsewhere", "pid": 1, "time": 1000.0, "phase": "trains"}
    values |= {"step": 30, "total_steps": 90, "step_s": 2.0}
    (folder / "ranks").mkdir(exist_ok=True)
    state = RankState(**(values | changes))
    (folder / "ranks" / f"{state.rank}.json").write_text(state.model_dump_json())


def test_the_status_of_a_training_run_shows_the_time_left(tmp_path):
    write_state(tmp_path)
    write_state(tmp_path, rank=1, step=29, time=999.5)
    status, text = status_and_text(tmp_path, now=1002.0)
    assert (status.word, status.exit_status) == ("trains", 0)
    assert "trains, step 29 of 90; up to 2.0 min left" in text  # 61 steps of 2 s


def test_a_silent_rank_and_a_dead_one_have_different_reasons(tmp_path):
    write_state(tmp_path)
    assert status_of(tmp_path, now=1059.0).word == "trains"
    late = status_of(tmp_path, now=1100.0)
    assert late.word == "silent"
    assert late.reasons == ["rank 0 on elsewhere has not reported for 100 s, since step 30."]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_state(tmp_path, host=socket.gethostname(), pid=gone.pid)
    (reason,) = status_of(tmp_path, now=1001.0).reasons
    assert f"is dead: no process {gone.pid}, no report after step 30" in reason


def test_the_command_prints_the_status_and_exits_with_1_after_a_failure(tmp_path):
    command = [sys.executable, "-m", "msrec", "launch", "status", str(tmp_path)]
    write_state(tmp_path, phase="done")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"{tmp_path}: done, step 30 of 90" in done.stdout
    write_state(tmp_path, rank=1, phase="failed")
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "rank 1 on elsewhere failed after step 30." in failed.stdout


def test_a_run_that_did_not_start_and_a_spoiled_file_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no rank began to train"):
        status_of(tmp_path)
    write_state(tmp_path)
    (tmp_path / "ranks/0.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ranks/0.json must be the state that a rank writes"):
        status_of(tmp_path)
