"""One machine, two ranks, by torchx: a rank is killed, torchrun starts both again."""

import subprocess
import sys
from pathlib import Path

import jobs
import psutil
from jobs import SAVE_EVERY, STEPS, assert_same_end, config_of, saved, wait_for_step

from msrec.launch.heartbeat import read_ranks


def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    dataset, tmp_path, undisturbed
):
    config = config_of(dataset, tmp_path, "run_id=killed")
    torchx = Path(sys.executable).parent / "torchx"
    command = [torchx, "run", "-s", "local_cwd", "msrec.train", "-j", "1x2"]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(
            [*command, "--", f"config={saved(config, 'conf.yaml')}"],
            cwd=tmp_path,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        step = wait_for_step(config, job)
        first = {rank.rank: rank for rank in read_ranks(config.run_dir)}
        assert step < STEPS
        psutil.Process(first[1].pid).kill()
        assert job.wait(120) == 0, jobs.text(tmp_path / "said")
    again = {rank.rank: rank for rank in read_ranks(config.run_dir)}
    assert "rank 1 failed, all ranks start again (1 such starts are left): Signal 9" in jobs.text(
        tmp_path / "said"
    )
    assert again[1].pid != first[1].pid
    assert all((rank.phase, rank.step) == ("done", STEPS) for rank in again.values())
    assert {rank.first_step for rank in again.values()} in ({step}, {step + SAVE_EVERY})
    assert_same_end(config, undisturbed)
