"""Two machines, an agent and a rank on each: one is lost, the other one is lost, both are asked."""

import time

import jobs
from jobs import STEPS, assert_same_end, commands, config_of, logged, newest_step, wait_for_step

from msrec.launch.heartbeat import read_ranks
from msrec.launch.preemption import STOPPED

AGENT = "msrec.launch.agent"


class TwoAgents:
    """The job on both hosts: what a scheduler would start on each, meeting on the first.

    Args:
        config: of the run.
        nodes: name -> host.
        folder: gets what the agents say.
    """

    def __init__(self, config, nodes, folder):
        self._hosts, self._folder = nodes, folder
        self._commands = commands(config)
        self.agents = {name: self.start(name) for name in nodes}

    def start(self, name):
        """An agent on a host, which waits for the other one."""
        words, environment = self._commands[list(self._hosts).index(name)]
        environment |= {"TORCHX_RANK0_HOST": next(iter(self._hosts)), "PYTHONUNBUFFERED": "1"}
        set_all = [f"{key}={value}" for key, value in environment.items()]
        return self._hosts[name].start("env", *set_all, *words, log=self.log(name))

    def log(self, name):
        return self._folder / f"{name}.log"

    def said(self, name):
        return jobs.text(self.log(name))

    def exit_statuses(self, timeout_s=120):
        """Of both agents, when they have ended."""
        return {name: agent.wait(timeout_s) for name, agent in self.agents.items()}

    def signal(self, name, number):
        """To the agent of a host, as a scheduler would send it."""
        (agent,) = [p for p in self._hosts[name].processes(AGENT) if "--module" in p.cmdline()]
        agent.send_signal(number)


def test_a_host_that_is_lost_and_replaced_costs_the_steps_since_the_last_checkpoint(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=lost", "trainer.hang_s=5")
    job = TwoAgents(config, nodes, tmp_path)
    step = wait_for_step(config, 60, job.agents["node1"])
    before = read_ranks(config.run_dir)
    assert step < STEPS
    assert {rank.host for rank in before} == set(nodes)
    nodes["node2"].kill(unplug=True)
    lost = time.monotonic()
    nodes["node2"].boot()
    job.agents["node2"] = job.start("node2")
    wait_for_step(config, step + 40, job.agents["node1"])
    print(f"a host lost: {time.monotonic() - lost:.0f} s until it has trained on")
    assert job.exit_statuses() == {"node1": 0, "node2": 0}, job.said("node1")
    after = read_ranks(config.run_dir)
    assert {rank.start for rank in after} != {rank.start for rank in before}
    assert any(b <= a for a, b in zip(logged(config), logged(config)[1:], strict=False))
    assert_same_end(config, undisturbed)


def test_without_the_host_of_the_rendezvous_the_job_ends_at_once_and_a_retry_goes_on(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=retried")
    job = TwoAgents(config, nodes, tmp_path)
    step = wait_for_step(config, 60, job.agents["node2"])
    nodes["node1"].kill()
    lost = time.monotonic()
    assert job.agents["node2"].wait(30) == 1, job.said("node2")
    assert time.monotonic() - lost < 15
    assert newest_step(config) < STEPS
    nodes["node1"].boot()
    again = TwoAgents(config, nodes, tmp_path)
    assert again.exit_statuses() == {"node1": 0, "node2": 0}, again.said("node1")
    assert min(s for s in logged(config)[::-1][: (STEPS - step) // 10]) > 0
    assert_same_end(config, undisturbed)


def test_agents_that_are_asked_to_stop_save_within_seconds_and_the_next_job_goes_on(
    dataset, tmp_path, undisturbed, nodes
):
    config = config_of(dataset, tmp_path, "run_id=asked")
    job = TwoAgents(config, nodes, tmp_path)
    wait_for_step(config, 60, job.agents["node1"])
    asked = time.monotonic()
    for name in nodes:
        job.signal(name, 15)
    assert set(job.exit_statuses(30).values()) == {STOPPED}, job.said("node1")
    assert time.monotonic() - asked < 5
    step = newest_step(config)
    assert {(rank.phase, rank.step) for rank in read_ranks(config.run_dir)} == {("stopped", step)}
    assert step < STEPS
    again = TwoAgents(config, nodes, tmp_path)
    assert again.exit_statuses() == {"node1": 0, "node2": 0}, again.said("node1")
    assert_same_end(config, undisturbed)
