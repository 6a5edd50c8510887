"""Fixtures: a network, two hosts, datasets and an undisturbed run."""

import os
from pathlib import Path

import hosts as machines
import jobs
import pytest
from tiny import tiny_dataset

INSIDE = "MSREC_CLUSTER"


def pytest_collection_modifyitems(items):
    if INSIDE not in os.environ:
        reason = "it makes hosts in its own namespaces: run it with `make test-cluster`"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def folder():
    """Folder with a short path, for sockets; tests/cluster/run removes it."""
    return Path(os.environ[INSIDE])


@pytest.fixture(scope="session", autouse=True)
def network(folder):
    machines.network(folder)


@pytest.fixture
def nodes():
    """Two hosts that end with the test."""
    hosts = {name: machines.Host(name) for name in machines.NODES}
    yield hosts
    for host in hosts.values():
        host.kill()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=9600, group_rows=960)


@pytest.fixture(scope="session")
def damaged(tmp_path_factory):
    """(dataset, file, window): in that window only rank 1 reads a value that is NaN."""
    folder = tiny_dataset(tmp_path_factory.mktemp("damaged") / "tiny", rows=9600, group_rows=16)
    return (folder, *jobs.write_nan(folder))


@pytest.fixture(scope="session")
def undisturbed(dataset, tmp_path_factory):
    """Config of a finished run on two ranks of this machine."""
    config = jobs.config_of(dataset, tmp_path_factory.mktemp("whole"), "run_id=whole")
    done = jobs.msrec("launch", "train", jobs.saved(config, "conf.yaml"), "-j", "1x2")
    assert done.exit_code == 0, done.output
    return config
