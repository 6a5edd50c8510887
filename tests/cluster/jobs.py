"""A small training run: its start, its progress, and the comparison with an undisturbed run."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torchx.runner import get_runner
from typer.testing import CliRunner

from msrec.data.loading.loader import open_loader
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.dcp_storage import read_tensors
from msrec.launch.cluster.job_specs import train_spec
from msrec.launch.cluster.profiles import Target, load_profile
from msrec.launch.cluster.submit import torchx_app
from msrec.launch.config.run_config import load_config, save_config
from msrec.tools.cli.main import app

STEPS, SAVE_EVERY, KILL_AT = 240, 10, 20
"""Steps of a run and of a checkpoint; the run is disturbed after the checkpoint `KILL_AT`."""
BATCH, WINDOW_ROWS = 96, 960


def config_of(dataset, root, *overrides):
    """Config with short steps, dropout, a row-wise table and a checkpoint every few steps."""
    options = [
        *(f"dataset={dataset}", f"run_root={root}", "embeddings.dim=8"),
        *("backbone.name=mmoe", "backbone.dropout=0.2"),
        "embeddings.sharding={user_id: row_wise}",
        *(f"trainer.global_batch={BATCH}", "trainer.epochs=9", "trainer.patience=9"),
        *(f"trainer.max_steps={STEPS}", f"trainer.checkpoint_every_steps={SAVE_EVERY}"),
        *("trainer.log_every=10", f"trainer.window_rows={WINDOW_ROWS}"),
        *overrides,
    ]
    return load_config(None, options)


def write_nan(dataset, window=3):
    """Writes NaN into a row that only rank 1 of two reads, for the first time in that window."""
    loader = open_loader(dataset, "train", BATCH, window_rows=WINDOW_ROWS, prefetch=0)
    read = [
        set(np.searchsorted(loader.reader.starts, loader.order.rows(0, w, r, 2), "right").flat)
        for w in range(window + 1)
        for r in range(2)
    ]
    number = min(read[-1].difference(*read[:-1])) - 1
    group = loader.reader.groups[number]
    table = pq.read_table(group.path)
    prices = table["price"].to_numpy().copy()
    prices[group.first_row] = np.nan
    where = table.column_names.index("price")
    table = table.set_column(where, "price", pa.array(prices, pa.float32()))
    pq.write_table(table, group.path, row_group_size=16)
    return group.path.name, window


def saved(config, name="submitted.yaml"):
    """Saves the config in the run's folder and returns the file."""
    save_config(config, config.run_dir / name)
    return config.run_dir / name


def commands(config, profile="local", j="2x1"):
    """(command, environment) of each node of a job, as a scheduler would start it."""
    spec = train_spec(config)
    spec.prepare()
    job = torchx_app(spec, Target(profile, load_profile(profile), j))
    with get_runner() as runner:
        request = runner.dryrun(job, "local_cwd", {}).request
    return [(replica.args, dict(replica.env)) for replica in request.role_params["train"]]


def msrec(*words):
    """Runs an msrec command in this process, because a new one takes seconds to start."""
    return CliRunner().invoke(app, [str(word) for word in words])


def newest_step(config):
    """Step of the newest checkpoint; 0 if there is none."""
    newest = Checkpoints(config.run_dir / "checkpoints").newest()
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


def wait_until(condition, what, timeout_s=120.0, job=None):
    """Waits for a true value of `condition` and returns it; fails if the job ends before."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        assert job is None or job.poll() is None, f"{what}: the job ended, {job.returncode}"
        time.sleep(0.02)
    return value


def wait_for_step(config, job, step=KILL_AT):
    """Waits for a checkpoint of `step` or later and returns its step."""

    def reached():
        return newest_step(config) if newest_step(config) >= step else 0

    return wait_until(reached, f"step {step}", job=job)


def assert_same_end(config, undisturbed):
    """Asserts that weights, optimizer and metrics of the last checkpoints are equal bit for bit."""
    assert newest_step(config) == newest_step(undisturbed) == STEPS
    a, b = (
        read_tensors(run.run_dir / f"checkpoints/step-{STEPS:08d}") for run in (config, undisturbed)
    )
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value.numpy(), b[name].numpy(), err_msg=name)


def text(path):
    """Text of a log, for the messages of asserts."""
    return Path(path).read_text(errors="replace") if Path(path).is_file() else "nothing"
