"""A run that fails twice at the same step is refused, with its step and rows; others are not."""

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
from test_trainer import config_of
from tiny import tiny_dataset, tiny_store

from msrec.data.loading.loader import open_loader
from msrec.launch.distributed import Process
from msrec.launch.rank_errors import NO_RESTART
from msrec.launch.training.repeated_failure import FILE, RepeatedFailure
from msrec.launch.training.trainer import Trainer
from msrec.tools.fault_injection.killed_ranks import observe_outcomes

OPTIONS = ("trainer.checkpoint_every_steps=5", "trainer.eval_batch=96")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


def fit(rank, world_size, config, at=None, do=None, in_valid=False):
    """Train; the last rank does something in the step after the `at`-th of the run."""
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
    return progress.step


def fail():
    raise RuntimeError("at this step")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def starts(config, *marks, in_valid=False):
    """Starts of two ranks that fail at the given steps."""
    for at, do in marks:
        with pytest.raises(AssertionError, match=r"died without a word|at this step"):
            run_ranks(fit, 2, config, at, do, in_valid)


@pytest.mark.parametrize("do", [fail, die])
def test_a_step_that_failed_twice_is_not_tried_again_and_its_rows_are_told(dataset, tmp_path, do):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (27, do), (27, do))
    (told, status), other = run_ranks(fit, 2, config)
    assert (told, status) == other
    assert status == NO_RESTART
    assert "step 28 (batch 6 of epoch 1), where its last 2 starts failed" in told
    assert f"delete {config.run_dir / FILE} to go on" in told
    rows = json.loads((config.run_dir / FILE).read_text())["rows"]
    assert list(rows) == ["28", "29", "30"]
    # The rows named are those that the batch has, by its own word.
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
    assert "train/part-00000.parquet rows " in told
    # As often as it is started; until somebody says that the cause is gone.
    assert run_ranks(fit, 2, config)[0] == (told, status)
    (config.run_dir / FILE).unlink()
    assert run_ranks(fit, 2, config) == [42, 42]
    assert not (config.run_dir / FILE).exists()


def test_failures_at_two_steps_and_those_before_a_run_that_ended_do_not_count(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (7, die), (9, die), (7, die))
    assert json.loads((config.run_dir / FILE).read_text())["times"] == 1
    assert run_ranks(fit, 2, config, 9, stop)[0] in (10, 11, 12)
    starts(config, (13, die))
    assert run_ranks(fit, 2, config) == [42, 42]
    assert run_ranks(fit, 2, config) == [42, 42]
    assert not (config.run_dir / FILE).exists()


def test_preemptions_at_the_same_step_do_not_count(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.max_steps=9")
    for _ in range(3):
        # The checkpoint is taken away, so that each start comes to the same step.
        assert run_ranks(fit, 1, config, 6, stop) == [7]
        shutil.rmtree(config.run_dir / "checkpoints")
    assert run_ranks(fit, 1, config) == [9]


def test_a_validation_that_fails_twice_is_told_as_such(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    starts(config, (3, fail), (3, fail), in_valid=True)
    ((told, _), _) = run_ranks(fit, 2, config)
    assert "must get past the validation after step 21, where" in told
    assert "rows" not in told.replace("msrec launch", "")


def test_a_spoilt_file_is_one_sentence_on_every_rank(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / FILE).write_text("{")
    told = [rank[0] for rank in run_ranks(fit, 2, config)]
    assert told[0] == told[1]
    assert f"{config.run_dir / FILE} must be what a run writes of its failures" in told[0]
