"""Tests of `evaluate --watch`: each checkpoint once, the curve, the end."""

import json
import shutil
import subprocess
import sys
import threading

import polars as pl
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_dataset

from msrec.data.features.vocabulary import Vocabulary, save_vocabularies
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.watch import watch
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow

SIZES = {"user_id": 41, "item_id": 61, "genres": 7}


def process_of(rank, world_size):
    return Process(rank, world_size, world_size, torch.device("cpu"))


def trained(rank, world_size, config):
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, config.run_dir / "config.yaml")
    Trainer(config, process_of(rank, world_size)).fit()


def watched(rank, world_size, run_dir, split="test", data=None):
    reported = []
    process = process_of(rank, world_size)
    count = watch(run_dir, process, split, data, 0.05, lambda step, _: reported.append(step))
    return count, reported


def evaluated(rank, world_size, run_dir, checkpoint):
    return evaluate(run_dir, process_of(rank, world_size), "test", checkpoint).metrics.all.auc


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    tiny_dataset(folder / "tiny", rows=600)
    values = pl.Series(range(1, 100))
    tables = {n: Vocabulary(values.head(size - 1)) for n, size in SIZES.items()}
    save_vocabularies(tables, folder / "tiny")
    options = [
        *(f"dataset={folder / 'tiny'}", f"run_root={folder}", "embeddings.dim=8"),
        *("trainer.global_batch=96", "trainer.epochs=3", "trainer.patience=9", "trainer.keep=5"),
    ]
    run_ranks(trained, 1, load_config(None, options))
    return folder / "default"


@pytest.fixture
def run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def test_each_checkpoint_is_a_point_of_the_curve_and_none_is_scored_twice(run):
    steps = [7, 14, 21]
    assert run_ranks(watched, 1, run)[0] == (3, steps)
    x, y = load_metric_log(run).curve("watched test", "auc/all")
    assert x == steps
    for step, auc in zip(steps, y, strict=True):
        checkpoint = run / f"checkpoints/step-{step:08d}"
        assert run_ranks(evaluated, 1, run, checkpoint)[0] == pytest.approx(auc, abs=1e-12)
    assert run_ranks(watched, 1, run)[0] == (0, [])


def test_two_ranks_find_what_one_finds_and_only_the_first_reports(run):
    (count, reported), (_, silent) = run_ranks(watched, 2, run)
    two = load_metric_log(run).curve("watched test", "auc/all")
    (run / "watched.jsonl").unlink()
    run_ranks(watched, 1, run)
    assert (count, reported, silent) == (3, [7, 14, 21], [])
    assert load_metric_log(run).curve("watched test", "auc/all") == two


def test_other_data_has_a_separate_curve(run, trained_run):
    run_ranks(watched, 1, run, "valid", trained_run.parent / "tiny")
    assert len(load_metric_log(run).curve("watched valid of tiny", "auc/all")[0]) == 3


def test_it_waits_while_the_run_trains_and_ends_with_it(run):
    """The status file names a live process that trains; the run ends with that process."""
    shutil.rmtree(run / "checkpoints/step-00000021")
    file = run / "ranks/0.json"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(4)"])
    state = json.loads(file.read_text()) | {"phase": "trains", "pid": sleeper.pid}
    file.write_text(json.dumps(state))
    threading.Thread(target=sleeper.wait).start()  # or it would stay on as a zombie
    count, reported = run_ranks(watched, 1, run)[0]
    assert (count, reported) == (2, [7, 14])
    assert sleeper.returncode is not None, "it must not end before the run"
