"""Fixtures: the network, two hosts, a Slurm on them, a data set, a run that nobody disturbed."""

import os
from pathlib import Path

import hosts as machines
import jobs
import pytest
from tiny import tiny_dataset

INSIDE = "MSREC_CLUSTER"


def pytest_collection_modifyitems(items):
    if INSIDE not in os.environ:
        reason = "it makes hosts in namespaces of its own: run it by `make test-cluster`"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def folder():
    """Short, for sockets; tests/cluster/run removes it."""
    return Path(os.environ[INSIDE])


@pytest.fixture(scope="session", autouse=True)
def network(folder):
    machines.network(folder)


@pytest.fixture
def nodes():
    """Two hosts, gone when the test ends."""
    found = {name: machines.Host(name) for name in machines.NODES}
    yield found
    for host in found.values():
        host.kill()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=9600, group_rows=960)


@pytest.fixture(scope="session")
def spoilt(tmp_path_factory):
    """(data set, file, window): in that window rank 1 alone meets a value that is no number."""
    found = tiny_dataset(tmp_path_factory.mktemp("spoilt") / "tiny", rows=9600, group_rows=16)
    return (found, *jobs.spoil(found))


@pytest.fixture(scope="session")
def undisturbed(dataset, tmp_path_factory):
    """The config of a run of two ranks on this machine, to its end."""
    config = jobs.config_of(dataset, tmp_path_factory.mktemp("whole"), "run_id=whole")
    done = jobs.msrec("launch", "train", jobs.saved(config, "conf.yaml"), "-j", "1x2")
    assert done.exit_code == 0, done.output
    return config
