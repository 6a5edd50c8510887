"""A run that fails twice at the same step is refused, with its step and rows; others are not."""

import faulthandler
import itertools
import json
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import config_of

from msrec.data.loading.loader import open_loader
from msrec.launch.config.run_config import with_overrides
from msrec.launch.distributed import Process
from msrec.launch.rank_errors import MAY_PASS, NO_RESTART
from msrec.launch.training import heartbeat
from msrec.launch.training.repeated_failure import FAILED_STEP_FILE, RepeatedFailure
from msrec.launch.training.trainer import Trainer
from msrec.tools.fault_injection.killed_ranks import observe_outcomes

pytestmark = pytest.mark.slow

OPTIONS = ("trainer.checkpoint_every_steps=5", "trainer.eval_batch=96")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


def fit(rank, world_size, config, at=None, do=None, in_valid=False):
    """Train; the last rank does something in the step after the `at`-th of the run."""
    faulthandler.enable()
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # as Ray replaces the handler of a crash
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    progress = trainer.resume()
    validated = itertools.count(1)

    def act(outcome, is_training):
        if is_training != in_valid:
            number = next(validated) if in_valid else progress.step
            if number == at and rank == world_size - 1:
                do()

    observe_outcomes(trainer, act)
    try:
        trainer.fit(progress)
    except RepeatedFailure as error:
        return str(error), error.exit_status
    except ValueError as error:
        return str(error), hasattr(error, MAY_PASS)
    return progress.step


def fail():
    raise RuntimeError("at this step")


def refuse():
    raise ValueError("the rows of this step")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def starts(config, *marks, in_valid=False):
    """Starts of two ranks that fail at the given steps."""
    for at, do in marks:
        with pytest.raises(AssertionError, match=r"died without a word|at this step"):
            run_ranks(fit, 2, config, at, do, in_valid)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize("do", [fail, crash])
def test_a_step_that_failed_twice_is_not_tried_again_and_its_rows_are_listed(dataset, tmp_path, do):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (27, do), (27, do))
    (message, status), other = run_ranks(fit, 2, config)
    assert (message, status) == other
    assert status == NO_RESTART
    assert "step 28 (batch 6 of epoch 1), where its last 2 starts failed" in message
    assert f"or delete {config.run_dir / FAILED_STEP_FILE} to go on" in message
    rows = json.loads((config.run_dir / FAILED_STEP_FILE).read_text())["rows"]
    assert list(rows) == ["28", "29", "30"]
    # The listed rows are those of the batch.
    loader = open_loader(dataset, "train", 96, seed=config.seed, window_rows=400, prefetch=0)
    batches = list(loader.batches(1))
    for step, batch in (("28", batches[6]), ("30", batches[8])):
        found = np.concatenate(
            [
                pq.read_table(dataset / file)["timestamp"].to_numpy()[wanted]
                for file, wanted in rows[step].items()
            ]
        )
        np.testing.assert_array_equal(np.sort(found), np.sort(batch.row_id[batch.weight > 0]))
    assert "train/part-00000.parquet rows " in message
    # Every further start is refused, until the file is deleted.
    assert run_ranks(fit, 2, config)[0] == (message, status)
    (config.run_dir / FAILED_STEP_FILE).unlink()
    assert run_ranks(fit, 2, config) == [42, 42]
    assert not (config.run_dir / FAILED_STEP_FILE).exists()


def test_a_mistake_at_a_step_gets_another_start(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    assert run_ranks(fit, 1, config, 7, refuse) == [("the rows of this step", True)]
    assert run_ranks(fit, 1, config, 7, refuse) == [("the rows of this step", True)]
    assert run_ranks(fit, 1, config)[0][1] == NO_RESTART


def test_failures_at_two_steps_and_those_before_a_run_that_ended_do_not_count(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (7, fail), (9, fail), (7, fail))
    assert json.loads((config.run_dir / FAILED_STEP_FILE).read_text())["times"] == 1
    assert run_ranks(fit, 2, config, 9, stop)[0] in (10, 11, 12)
    starts(config, (13, fail))
    assert run_ranks(fit, 2, config) == [42, 42]
    assert run_ranks(fit, 2, config) == [42, 42]
    assert not (config.run_dir / FAILED_STEP_FILE).exists()


def test_kills_from_outside_at_one_step_do_not_count_and_clear_nothing(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.max_steps=42", "trainer.eval_batch=96")
    starts(config, (7, die), (7, die), (7, die))
    assert not (config.run_dir / FAILED_STEP_FILE).exists()
    starts(config, (7, fail), (7, die), (7, fail))
    ((message, _), _) = run_ranks(fit, 2, config)
    assert "step 8 (batch 7 of epoch 0), where its last 2 starts failed" in message


def test_a_kill_for_memory_counts(dataset, tmp_path, monkeypatch):
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(heartbeat, "VMSTAT", vmstat)
    config = config_of(dataset, tmp_path, *OPTIONS)

    def kill_for_memory():
        vmstat.write_text(f"nr_free_pages 12\noom_kill {heartbeat.oom_kills() + 1}\n")
        die()

    vmstat.write_text("nr_free_pages 12\noom_kill 3\n")
    starts(config, (7, kill_for_memory), (7, kill_for_memory))
    ((message, status), _) = run_ranks(fit, 2, config)
    assert status == NO_RESTART
    assert "where its last 2 starts failed" in message


def test_failures_are_forgotten_when_the_config_changes(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (7, fail), (7, fail))
    assert run_ranks(fit, 2, config)[0][1] == NO_RESTART
    changed = with_overrides(config, ["optimizer.lr=0.0005"])
    starts(changed, (7, fail))
    assert run_ranks(fit, 2, changed) == [42, 42]


def test_preemptions_at_the_same_step_do_not_count(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.max_steps=9")
    for _ in range(3):
        # The checkpoint is taken away, so that each start comes to the same step.
        assert run_ranks(fit, 1, config, 6, stop) == [7]
        shutil.rmtree(config.run_dir / "checkpoints")
    assert run_ranks(fit, 1, config) == [9]


def test_a_validation_that_fails_twice_is_named(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (3, fail), (3, fail), in_valid=True)
    ((message, _), _) = run_ranks(fit, 2, config)
    assert "must get past the validation after step 21, where" in message
    assert "rows" not in message.replace("msrec launch", "")


def test_a_spoilt_file_is_the_same_error_on_every_rank(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / FAILED_STEP_FILE).write_text("{")
    message = [rank[0] for rank in run_ranks(fit, 2, config)]
    assert message[0] == message[1]
    file = config.run_dir / FAILED_STEP_FILE
    assert f"{file} must be the record of a failed step" in message[0]
