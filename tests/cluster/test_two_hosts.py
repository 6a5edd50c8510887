"""Two hosts with an agent and a rank each: either one is lost, or both are asked to stop."""

import os
import subprocess
import sys
import time

import jobs
from jobs import SAVE_EVERY, STEPS, assert_same_end, commands, config_of, newest_step, wait_for_step

from msrec.launch.rank_states import read_ranks
from msrec.launch.training.preemption import STOPPED

AGENT = "msrec.launch.cluster.elastic_agent"


class TwoAgents:
    """A job on both hosts, started as a scheduler would; its agents meet on the first host.

    Args:
        config: config of the run.
        nodes: name -> host.
        folder: folder for the output of the agents.
    """

    def __init__(self, config, nodes, folder):
        self._hosts, self._folder = nodes, folder
        self._commands = commands(config)
        self.agents = {}
        for name in nodes:
            self.start(name)

    def start(self, name):
        """Starts an agent on a host, which waits for the other one."""
        if name in self.agents:
            self.agents[name].wait(10)  # the agent of the lost host
        words, environment = self._commands[list(self._hosts).index(name)]
        environment = os.environ | environment | {"PATH": os.environ["PATH"]}
        environment["TORCHX_RANK0_HOST"] = next(iter(self._hosts))  # torchx's own is localhost
        self.agents[name] = self._hosts[name].start(*words, log=self.log(name), env=environment)

    def log(self, name):
        return self._folder / f"{name}.log"

    def output(self, name):
        return jobs.text(self.log(name))

    def exit_statuses(self, timeout_s=120):
        """Waits for both agents and returns their exit statuses."""
        try:
            return {name: agent.wait(timeout_s) for name, agent in self.agents.items()}
        except subprocess.TimeoutExpired:
            return {name: self.output(name) for name in self.agents}

    def signal(self, name, number):
        """Sends a signal to the agent of a host, as a scheduler would."""
        (agent,) = [p for p in self._hosts[name].processes(AGENT) if "--module" in p.cmdline()]
        agent.send_signal(number)


def test_a_host_that_is_lost_and_replaced_costs_the_steps_since_the_last_checkpoint(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=lost", "trainer.hang_s=5")
    job = TwoAgents(config, nodes, tmp_path)
    step = wait_for_step(config, job.agents["node1"])
    before = read_ranks(config.run_dir)
    assert step < STEPS
    assert {rank.host for rank in before} == set(nodes)
    nodes["node2"].kill(unplug=True)
    lost = time.monotonic()
    nodes["node2"].boot()
    job.start("node2")
    wait_for_step(config, job.agents["node1"], step + 2 * SAVE_EVERY)
    print(f"a host lost: trained on after {time.monotonic() - lost:.0f} s", file=sys.stderr)
    assert job.exit_statuses() == {"node1": 0, "node2": 0}, job.output("node1")
    assert {rank.start for rank in read_ranks(config.run_dir)} != {rank.start for rank in before}
    assert {rank.first_step for rank in read_ranks(config.run_dir)} in ({step}, {step + SAVE_EVERY})
    assert_same_end(config, undisturbed)


def test_without_the_host_of_the_rendezvous_the_job_ends_at_once_and_a_retry_resumes(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=retried")
    job = TwoAgents(config, nodes, tmp_path)
    step = wait_for_step(config, job.agents["node2"])
    nodes["node1"].kill()
    lost = time.monotonic()
    assert job.agents["node2"].wait(30) == 1, job.output("node2")
    assert time.monotonic() - lost < 15
    assert newest_step(config) < STEPS
    assert job.agents["node1"].wait(10) != 0
    nodes["node1"].boot()
    again = TwoAgents(config, nodes, tmp_path)
    assert again.exit_statuses() == {"node1": 0, "node2": 0}, again.output("node1")
    assert min(rank.first_step for rank in read_ranks(config.run_dir)) >= step
    assert_same_end(config, undisturbed)


def test_agents_that_are_asked_to_stop_save_within_seconds_and_the_next_job_resumes(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=asked")
    job = TwoAgents(config, nodes, tmp_path)
    wait_for_step(config, job.agents["node1"])
    asked = time.time()
    for name in nodes:
        job.signal(name, 15)
    assert set(job.exit_statuses(30).values()) == {STOPPED}, job.output("node1")
    step = newest_step(config)
    commit = config.run_dir / f"checkpoints/step-{step:08d}/COMMIT"
    print(f"asked to stop: saved after {commit.stat().st_mtime - asked:.1f} s", file=sys.stderr)
    assert asked < commit.stat().st_mtime < asked + 5
    assert {(rank.phase, rank.step) for rank in read_ranks(config.run_dir)} == {("stopped", step)}
    assert step < STEPS
    again = TwoAgents(config, nodes, tmp_path)
    assert again.exit_statuses() == {"node1": 0, "node2": 0}, again.output("node1")
    assert {rank.first_step for rank in read_ranks(config.run_dir)} == {step}
    assert_same_end(config, undisturbed)
