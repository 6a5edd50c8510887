"""Slurm through torchx: the options of sbatch, and states from squeue and sacct."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.schedulers.slurm_scheduler import SLURM_STATES
from torchx.specs import AppDef, AppState, Resource, Role

from msrec.launch.cluster.schedulers import slurm_states
from msrec.launch.cluster.schedulers.slurm import MsrecSlurmScheduler
from msrec.launch.cluster.submitted import Submitted, job_state

pytestmark = pytest.mark.slow

FAKE = """#!/bin/sh
echo "$@" > {called}
{body}
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Function that puts a fake Slurm command into the path: (name, output)."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    # A real Slurm of this machine must not be asked.
    for name in ("squeue", "sacct", "sinfo"):
        write(tmp_path, name, "exit 1")
    return lambda name, lines: write(tmp_path, name, f"cat <<'END'\n{lines}\nEND")


def write(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(FAKE.format(called=folder / f"{name}.called", body=body))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def app():
    resource = Resource(cpu=2, gpu=0, memMB=2000)
    roles = [Role(name="train", image="/", entrypoint="bash", num_replicas=2, resource=resource)]
    return AppDef(name="train", roles=roles)


STATES = {
    "both run": (("RUNNING", "RUNNING"), AppState.RUNNING),
    "one waits": (("RUNNING", "PENDING"), AppState.RUNNING),
    "one failed": (("RUNNING", "FAILED"), AppState.FAILED),
    "done": (("COMPLETED", "COMPLETED"), AppState.SUCCEEDED),
    "cancelled by somebody": (("CANCELLED by 0", "CANCELLED by 0"), AppState.CANCELLED),
    "out of memory": (("OUT_OF_MEMORY", "CANCELLED"), AppState.FAILED),
    "preempted": (("PREEMPTED", "PREEMPTED"), AppState.FAILED),
    "of a future Slurm": (("NEVER_HEARD_OF", "NEVER_HEARD_OF"), AppState.UNKNOWN),
}


@pytest.mark.parametrize("command", ["squeue", "sacct"])
@pytest.mark.parametrize(("states", "expected"), STATES.values(), ids=STATES)
def test_a_jobs_state_is_that_of_its_nodes(commands, command, states, expected):
    lines = [f"7+{i}|train-{i}|{state}|node{i}|None" for i, state in enumerate(states)]
    commands(command, "\n".join(lines))
    response = MsrecSlurmScheduler("x").describe("7")
    assert response.state == expected
    (role,) = response.roles_statuses
    assert [(r.id, r.hostname) for r in role.replicas] == [(0, "node0"), (1, "node1")]
    assert response.roles[0].num_replicas == 2


def test_the_reason_for_waiting_is_shown(commands):
    commands("squeue", "7|train-0|PENDING||Resources")
    assert MsrecSlurmScheduler("x").describe("7").msg == "Resources"


def test_an_unknown_job_is_none_and_missing_accounting_is_no_error(commands):
    assert MsrecSlurmScheduler("x").describe("7") is None


def test_squeue_is_asked_for_finished_jobs_too(commands, tmp_path):
    commands("squeue", "7|train-0|COMPLETED|n|None")
    MsrecSlurmScheduler("x").describe("7")
    called = (tmp_path / "squeue.called").read_text()
    assert "--states=all" in called
    assert "--jobs=7" in called


def test_options_reach_sbatch_for_every_node(commands):
    wanted = {"account": "ads", "qos": "high", "gres": "gpu:8", "exclusive": True}
    script = str(MsrecSlurmScheduler("x").submit_dryrun(app(), wanted | {"partition": "p"}))
    groups = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert len(groups) == 2
    for group in groups:
        for option in ("--account=ads", "--qos=high", "--gres=gpu:8", "--partition=p"):
            assert f" {option}" in group
        assert group.endswith(" --exclusive") or " --exclusive " in group
    plain = str(MsrecSlurmScheduler("x").submit_dryrun(app(), {}))
    assert "--exclusive" not in plain
    assert "--account" not in plain


def test_torchx_uses_our_scheduler_and_keeps_its_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with get_runner() as runner:
        assert isinstance(runner._scheduler("slurm"), MsrecSlurmScheduler)
        assert {"local_cwd", "kubernetes", "aws_batch", "ray"} <= set(runner.scheduler_backends())


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_jobs_are_listed_with_or_without_accounting(commands, command):
    commands(command, "7+0|train-0|RUNNING|n1|\n7+1|train-1|FAILED|n2|\n8|x|COMPLETED|n1|")
    jobs = MsrecSlurmScheduler("x").list()
    assert [(job.app_id, job.state) for job in jobs] == [
        ("7", AppState.FAILED),
        ("8", AppState.SUCCEEDED),
    ]


def test_slurm_that_does_not_answer_is_one_sentence(commands):
    with pytest.raises(ValueError, match="squeue or sacct must list the jobs of Slurm"):
        MsrecSlurmScheduler("x").list()


def test_slurms_states_are_those_of_torchx():
    ours = slurm_states.SLURM_STATES
    assert {name: AppState[state.upper()] for name, state in ours.items()} == SLURM_STATES


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED by 0", "NEVER_HEARD_OF"])
def test_a_submitted_job_has_the_state_that_torchx_says(commands, state):
    job = {"job": "train", "profile": "p", "scheduler": "slurm", "nodes_and_ranks": "2x1"}
    submitted = Submitted(**job, handle="slurm://msrec/7", time=0.0, pid=1)
    assert job_state(submitted) == ("forgotten", "")
    commands("squeue", f"7+0|train-0|{state}|n1|None\n7+1|train-1|{state}|n2|None")
    with get_runner() as runner:
        assert job_state(submitted).word == runner.status(submitted.handle).state.name.lower()


def test_the_state_of_a_slurm_job_needs_neither_torchx_nor_torch(commands):
    commands("squeue", "7+0|train-0|RUNNING|n1|None")
    code = (
        "import sys\n"
        "from msrec.launch.cluster.submitted import Submitted, job_state\n"
        "job = dict(job='train', profile='p', scheduler='slurm', nodes_and_ranks='1x1')\n"
        "state = job_state(Submitted(**job, handle='slurm://m/7', time=0, pid=1))\n"
        "assert state.word == 'running'\n"
        "sys.exit(bool({'torch', 'torchx'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
