"""Two nodes of a real Slurm with `msrec launch`: lost processes, cancel and status."""

import sys
import time
from pathlib import Path

import jobs
import pytest
import slurm as machines
from jobs import SAVE_EVERY, STEPS, assert_same_end, config_of, newest_step, saved, wait_for_step
from part_tables import differences, write_raw

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.launch.cluster.submitted import read_submitted
from msrec.launch.rank_states import read_ranks

PROFILES = """
two: { scheduler: slurm, cfg: { partition: msrec }, cpu: 1, mem_mib: 2048, max_restarts: 0,
  max_retries: 2, port: 29400 }
"""


@pytest.fixture(scope="module")
def slurm(folder):
    if (program := machines.missing()) is not None:
        pytest.skip(f"{program} is not installed: apt-get install slurm-wlm munge")
    (folder / "slurm").mkdir()
    running = machines.Slurm(folder / "slurm")
    yield running
    running.stop()


@pytest.fixture
def launch(slurm, tmp_path, monkeypatch):
    """Function that runs `msrec launch WORDS` with this Slurm, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "site.yaml").write_text(PROFILES)
    yield lambda *words: jobs.msrec("launch", *words)
    # pytest shows this if the test failed.
    print(slurm.command("squeue", "--states=all"), logs(tmp_path))
    slurm.command("scancel", "--user=root")


def submit(launch, config, *more):
    words = ("train", saved(config, "conf.yaml"), "--on", "two", "--profiles", "site.yaml")
    done = launch(*words, "-j", "2x1", *more)
    assert done.exit_code == 0, done.output
    return read_submitted(config.run_dir).handle.rpartition("/")[2]


def logs(tmp_path):
    return "\n".join(jobs.text(file) for file in sorted(tmp_path.glob("slurm-*")))


def wait_for_status(launch, config, word, timeout_s=120):
    """Waits until `msrec launch status` shows a word and returns the result."""
    end = time.monotonic() + timeout_s
    while f": {word}, step" not in (status := launch("status", config.run_dir)).stdout:
        assert time.monotonic() < end, status.output
        time.sleep(0.5)
    return status


def test_a_job_that_lost_the_processes_of_a_node_is_requeued_and_resumes(
    slurm, launch, dataset, tmp_path, undisturbed
):
    config = config_of(dataset, tmp_path, "run_id=requeued")
    job = submit(launch, config)
    step = wait_for_step(config, None)
    status = launch("status", config.run_dir)
    assert status.exit_code == 0
    assert f"train on two, 2x1: slurm://torchx/{job} running" in status.stdout
    assert {rank.host for rank in read_ranks(config.run_dir)} == set(slurm.nodes)
    assert newest_step(config) < STEPS
    killed = time.monotonic()
    for process in slurm.nodes["node2"].processes("msrec"):
        process.kill()  # the launcher and its rank
    wait_for_step(config, None, step + 2 * SAVE_EVERY)
    print(f"Slurm: requeued, trained on after {time.monotonic() - killed:.0f} s", file=sys.stderr)
    status = wait_for_status(launch, config, "done")
    assert status.exit_code == 0, status.stdout
    assert slurm.restarts(job) == 1, logs(tmp_path)
    assert {rank.first_step for rank in read_ranks(config.run_dir)} <= {step, step + SAVE_EVERY}
    assert_same_end(config, undisturbed)


def test_a_cancelled_job_saves_and_stops_and_the_same_command_resumes_it(
    slurm, launch, dataset, tmp_path, undisturbed
):
    config = config_of(dataset, tmp_path, "run_id=cancelled")
    submit(launch, config)
    wait_for_step(config, None)
    asked = time.time()
    assert launch("cancel", config.run_dir).exit_code == 0
    status = wait_for_status(launch, config, "stopped", 30)
    assert status.exit_code == 0, status.stdout
    step = newest_step(config)
    commit = config.run_dir / f"checkpoints/step-{step:08d}/COMMIT"
    assert asked < commit.stat().st_mtime < asked + 10
    assert f": stopped, step {step} of {STEPS}" in status.stdout
    assert step < STEPS
    job = submit(launch, config, "--wait")  # exit status 0: the job succeeded
    assert slurm.restarts(job) == 0
    assert {rank.first_step for rank in read_ranks(config.run_dir)} == {step}
    assert_same_end(config, undisturbed)


def test_the_first_error_is_shown_with_its_rank_its_node_and_its_log(
    slurm, launch, damaged, tmp_path
):
    dataset, file, _ = damaged
    config = config_of(dataset, tmp_path, "run_id=wrong")
    (tmp_path / "site.yaml").write_text(PROFILES.replace("retries: 2", "retries: 0"))
    words = ("train", saved(config, "conf.yaml"), "--on", "two", "--profiles", "site.yaml")
    failed = launch(*words, "-j", "2x1", "--wait")
    assert failed.exit_code == 1, failed.output
    status = launch("status", config.run_dir)
    assert status.exit_code == 1
    start = "The error, of rank 1 on node2 (its output is in "
    (line,) = [line for line in status.stdout.splitlines() if line.startswith(start)]
    assert f"{file}: column 'price', row" in status.stdout
    log = Path(line.removeprefix(start).partition("): ")[0]) / "stderr.log"
    assert f"error on rank 1: {dataset}" in jobs.text(log)


def test_a_conversion_on_two_nodes_survives_the_loss_of_one(slurm, launch, tmp_path, undisturbed):
    """Slurm requeues the job, which goes on with the parts that are not done."""
    raw, out = tmp_path / "raw", tmp_path / "app"
    raw.mkdir()
    write_raw(raw)
    write_dataset(read_tables(raw), tmp_path / "whole", SplitChoice("user_last"))
    words = ("convert", str(raw), str(out), "split=user_last", "part_rows=100")
    done = launch(*words, "--on", "two", "--profiles", "site.yaml", "-j", "2x1")
    assert done.exit_code == 0, done.output
    deadline = time.monotonic() + 240
    parts = tmp_path / ".app.parts"
    while len(list(parts.glob("encode/*/result.json"))) < 10:
        assert time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.05)
    for process in slurm.nodes["node2"].processes("msrec"):
        process.kill()
    assert not out.exists()
    while "app.job: done" not in (status := launch("status", tmp_path / "app.job")).stdout:
        assert time.monotonic() < deadline, status.output + logs(tmp_path)
        time.sleep(0.5)
    assert differences(out, tmp_path / "whole") == []
