"""SIGTERM: all ranks stop after the same step and save it; the next start continues from it."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import BOTH, config_of, weights

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.rank_states import read_ranks
from msrec.launch.training.preemption import (
    FIRST_CALLS,
    MAX_CALLS,
    STOPPED,
    Preempted,
    Preemption,
)
from msrec.launch.training.trainer import Trainer
from msrec.tools.fault_injection.killed_ranks import observe_outcomes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


def fit(rank, world_size, config, asked=None, in_valid=False):
    """Train; rank 1 (or the only one) is asked to stop at its `asked`-th outcome."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    numbers = itertools.count(1)

    def ask_to_stop(outcome, is_training):
        if is_training != in_valid and next(numbers) == asked and rank == world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    observe_outcomes(trainer, ask_to_stop)
    result = trainer.fit()
    return result.preempted, vars(result.progress), result.losses, weights(trainer)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("asked", "in_valid"), [(5, False), (21, False), (2, True)])
def test_a_run_that_was_asked_to_stop_ends_as_one_that_was_not(
    dataset, tmp_path, world_size, asked, in_valid
):
    options = (*BOTH, "trainer.eval_batch=96", "trainer.hang_s=8")
    whole = run_ranks(fit, world_size, config_of(dataset, tmp_path / "whole", *options))
    config = config_of(dataset, tmp_path / "stopped", *options)
    first = run_ranks(fit, world_size, config, asked, in_valid)
    assert all(rank[0] for rank in first)
    stopped = {rank[1]["step"] for rank in first}
    assert len(stopped) == 1
    (step,) = stopped
    assert step == 21 if in_valid else asked <= step <= asked + 2
    assert first[0][1]["epoch"] == (0 if step <= 21 else 1)
    second = run_ranks(fit, world_size, config)
    for (_, _, before, _), (preempted, progress, losses, values), undisturbed in zip(
        first, second, whole, strict=True
    ):
        assert not preempted
        assert progress == undisturbed[1]
        np.testing.assert_array_equal([*before, *losses], undisturbed[2])
        for name, value in values.items():
            np.testing.assert_array_equal(value, undisturbed[3][name], err_msg=name)


def test_a_run_stopped_in_its_last_validation_still_validates(dataset, tmp_path):
    options = ("trainer.max_steps=7", "trainer.eval_batch=96")
    config = config_of(dataset, tmp_path, *options)
    ((preempted, progress, _, _),) = run_ranks(fit, 1, config, 2, True)
    assert preempted
    assert (progress["step"], progress["best_value"]) == (7, None)
    ((preempted, progress, losses, _),) = run_ranks(fit, 1, config)
    assert not preempted
    assert losses == []
    assert progress["best_step"] == 7


def ask(rank, world_size, at):
    calls = 0
    with Preemption() as preemption:
        try:
            for calls in range(100):
                if rank == 0 and calls == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                preemption.check()
        except Preempted:
            return calls
    return None


def test_all_ranks_stop_at_the_same_call_whoever_was_asked():
    for at in (0, 7):
        assert len(set(run_ranks(ask, 3, at))) == 1
        assert at <= run_ranks(ask, 3, at)[0] <= at + 2
    assert run_ranks(ask, 2, 1000) == [None, None]


def ask_late(rank, world_size, call_s, at):
    """Asks rank 0 after the first calls; returns the call and time of the end."""
    with Preemption() as preemption:
        try:
            asked = None
            for calls in range(10_000):
                if rank == 0 and calls == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if calls == at:
                    asked = time.monotonic()
                time.sleep(call_s * (1 + rank))
                preemption.check()
        except Preempted:
            return calls, preemption._interval, time.monotonic() - asked
    return None


def test_ranks_with_fast_steps_exchange_twice_a_second_and_stop_within_seconds():
    ranks = run_ranks(ask_late, 2, 0.002, FIRST_CALLS + 30)
    (calls, interval, seconds), (other_calls, other_interval, _) = ranks
    assert (calls, interval) == (other_calls, other_interval)
    assert 1 < interval <= MAX_CALLS
    assert calls <= FIRST_CALLS + 30 + 2 * MAX_CALLS
    assert seconds < 5


def test_the_interval_settles_at_half_a_second_of_calls(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    preemption = Preemption()
    intervals = []
    for _ in range(FIRST_CALLS + 400):
        now += 0.06
        preemption._calls += 1
        preemption._until_exchange -= 1
        if not preemption._until_exchange:
            preemption._interval = preemption._until_exchange = preemption._own_interval()
            intervals.append(preemption._interval)
    assert intervals[: FIRST_CALLS - 1] == [1] * (FIRST_CALLS - 1)
    assert set(intervals[FIRST_CALLS + 1 :]) == {8}


def leave(rank, world_size):
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        preemption.check()
        assert signal.getsignal(signal.SIGTERM) != before
    preemption.check()
    dist.barrier()
    return signal.getsignal(signal.SIGTERM) == before


def test_the_handler_that_was_there_before_is_put_back():
    assert run_ranks(leave, 2) == [True, True]


@pytest.mark.parametrize("launcher", ["alone", "two ranks"])
def test_a_job_stops_within_seconds_says_so_and_goes_on(dataset, tmp_path, launcher):
    config = config_of(dataset, tmp_path, "trainer.epochs=400", "trainer.patience=400")
    save_config(config, tmp_path / "conf.yaml")
    command = [sys.executable, "-m", "msrec", "train", str(tmp_path / "conf.yaml")]
    if launcher == "two ranks":
        command[1:3] = [
            *("-m", "msrec.launch.cluster.elastic_agent", "--standalone", "--nproc-per-node", "2"),
            *("--module", "msrec"),
        ]
    log = config.run_dir / "metrics.jsonl"
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        end = time.monotonic() + 60
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < end:
            time.sleep(0.05)
        asked = time.monotonic()
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == STOPPED
    assert time.monotonic() - asked < 15  # with other tests running; 5 s alone, as in tests/cluster
    text = (tmp_path / "output").read_text()
    assert "stopped by SIGTERM" in text
    assert "Traceback" not in text
    newest = Checkpoints(config.run_dir / "checkpoints", 2).newest()
    assert newest is not None
    assert f"after step {int(newest.name.partition('-')[2])}, which is saved" in " ".join(
        text.split()
    )


def test_ranks_whose_launcher_is_killed_save_where_they_stand_and_end(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.epochs=400", "trainer.patience=400")
    save_config(config, tmp_path / "conf.yaml")
    command = [
        *(
            sys.executable,
            "-m",
            "msrec.launch.cluster.elastic_agent",
            "--standalone",
            "--nproc-per-node",
            "2",
        ),
        *("--module", "msrec", "train", str(tmp_path / "conf.yaml")),
    ]
    checkpoints = Checkpoints(config.run_dir / "checkpoints", 2)
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_for(checkpoints.newest)
        job.kill()
        job.wait(10)
    wait_for(lambda: all(rank.phase == "stopped" for rank in read_ranks(config.run_dir)))
    ranks = read_ranks(config.run_dir)
    wait_for(lambda: not any(psutil.pid_exists(rank.pid) for rank in ranks))
    assert checkpoints.newest().name == f"step-{ranks[0].step:08d}"


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
