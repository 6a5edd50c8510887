"""One host, two ranks, started by torchx: a rank is killed and torchrun restarts both."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jobs
import psutil
from jobs import (
    BATCH,
    SAVE_EVERY,
    STEPS,
    WINDOW_ROWS,
    assert_same_end,
    config_of,
    saved,
    wait_for_step,
)

from msrec.launch.rank_states import read_ranks


def test_a_killed_rank_is_restarted_and_the_run_ends_as_an_undisturbed_one(
    dataset, tmp_path, undisturbed
):
    config = config_of(dataset, tmp_path, "run_id=killed")
    torchx = Path(sys.executable).parent / "torchx"
    command = [torchx, "run", "-s", "local_cwd", "msrec.train", "-j", "1x2"]
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(
            [*command, "--", f"config={saved(config, 'conf.yaml')}"],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        step = wait_for_step(config, job)
        first = {rank.rank: rank for rank in read_ranks(config.run_dir)}
        assert step < STEPS
        killed = time.monotonic()
        psutil.Process(first[1].pid).kill()
        wait_for_step(config, job, step + 2 * SAVE_EVERY)
        print(f"a rank killed: trained on after {time.monotonic() - killed:.0f} s", file=sys.stderr)
        assert job.wait(120) == 0, jobs.text(tmp_path / "output")
    again = {rank.rank: rank for rank in read_ranks(config.run_dir)}
    starts = [line for line in jobs.text(tmp_path / "output").splitlines() if "start again" in line]
    assert len(starts) == 1
    assert "rank 1 failed, all ranks start again (starts left: 1): Signal 9" in starts[0]
    assert again[1].pid != first[1].pid
    assert all((rank.phase, rank.step) == ("done", STEPS) for rank in again.values())
    assert {rank.first_step for rank in again.values()} in ({step}, {step + SAVE_EVERY})
    assert_same_end(config, undisturbed)


def test_a_step_that_fails_twice_is_not_tried_a_third_time(damaged, tmp_path, monkeypatch):
    dataset, file, window = damaged
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text("here: { scheduler: local_cwd, max_restarts: 5 }")
    config = config_of(dataset, tmp_path, "run_id=twice", "trainer.max_steps=60")
    words = (
        "launch",
        "train",
        saved(config, "conf.yaml"),
        "--on",
        "here",
        "--profiles",
        "site.yaml",
    )
    failed = jobs.msrec(*words)
    assert failed.exit_code == 1, failed.output
    # Two of five: the pipeline asks for a batch two steps ahead.
    assert failed.output.count("all ranks start again") == 2, failed.output
    step = window * WINDOW_ROWS // BATCH - 1
    assert f"must get past step {step} (batch {step - 1} of epoch 0)" in failed.output
    status = jobs.msrec("launch", "status", config.run_dir)
    assert status.exit_code == 1
    assert f"{file}: column 'price'" in status.output  # the cause, which came before the refusal
    rows = json.loads((config.run_dir / "failed_step.json").read_text())["rows"]
    assert f"train/{file}" in rows[str(step + 2)]
    (config.run_dir / "failed_step.json").unlink()
    again = jobs.msrec(*words, "faults=skip")
    assert again.exit_code == 0, again.output
    assert {rank.phase for rank in read_ranks(config.run_dir)} == {"done"}
    assert min(rank.first_step for rank in read_ranks(config.run_dir)) > 0
