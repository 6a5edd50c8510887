"""Training with a copy in an object store: hosts without a shared folder, lost machines."""

import os
import shutil

import pytest
import torch
from object_store import store
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import BOTH, config_of

from msrec.data.io import remote_folders
from msrec.data.io.paths import to_path
from msrec.launch.checkpointing import run_store
from msrec.launch.checkpointing.commit import COMMIT, best_of, committed, read_commit, step_name
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer, train_run

pytestmark = pytest.mark.slow
OPTIONS = (*BOTH, "meta.rank=3", "trainer.checkpoint_every_steps=4", "backbone.dropout=0.1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dataset = tiny_dataset(folder / "tiny")
    tiny_store(dataset, folder / "store")
    return dataset


@pytest.fixture(scope="module")
def server():
    with store() as bucket:
        yield bucket


@pytest.fixture
def bucket(server):
    for name in server.names("runs"):
        server.delete(f"runs/{name}")
    return server


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """Last checkpoint of a run on two ranks that share a folder, without interruption."""
    root = tmp_path_factory.mktemp("whole")
    run_ranks(train, 2, [config_of(dataset, root, *OPTIONS)] * 2, 2)
    return read_commit(committed(root / "default/checkpoints")[-1])


class Killed(Exception):
    pass


def train(rank, world_size, configs, per_host=1, kill_at=None, before=None):
    """Trains as a rank of a host of `per_host` ranks; kills it after the save of a step."""
    save = Trainer._save

    def save_and_die(trainer, progress):
        save(trainer, progress)
        if progress.step == kill_at:
            trainer.checkpoints.wait()
            raise Killed

    Trainer._save = save_and_die
    if before is not None:
        before(rank)
    try:
        train_run(configs[rank], Process(rank, world_size, per_host, torch.device("cpu")))
    except Killed:
        return
    assert kill_at is None


def hosts(dataset, folder, *options):
    """Config of each rank: two hosts, each with a disk of its own."""
    copy = "trainer.copy_to=s3://apps/runs"
    roots = (folder / "host0", folder / "host1")
    return [config_of(dataset, root, copy, *OPTIONS, *options) for root in roots]


def steps(bucket):
    return sorted(n.split("/")[2] for n in bucket.names("runs") if n.endswith(COMMIT))


def assert_is(bucket, whole):
    """The newest checkpoint of the store is that of the run without interruption."""
    newest = to_path(f"s3://apps/runs/default/checkpoints/{steps(bucket)[-1]}")
    assert read_commit(newest) == whole
    assert step_name(whole.state["best_step"]) in steps(bucket)


def test_a_run_resumes_on_new_machines_bit_for_bit(dataset, bucket, whole, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path / "old"), 1, 8)
    assert steps(bucket) == ["step-00000004", "step-00000008"]
    local = tmp_path / "old/host1/default/checkpoints"
    assert committed(local) == []  # the other host has pieces only
    shutil.rmtree(tmp_path / "old")
    run_ranks(train, 2, hosts(dataset, tmp_path / "new"))
    assert_is(bucket, whole)
    assert len(steps(bucket)) in (2, 3)  # as trainer.keep says, and the best one
    for host in ("host0", "host1"):
        local = tmp_path / "new" / host / "default/checkpoints"
        assert sorted(path.name for path in local.iterdir()) == steps(bucket)
    log = bucket.download("runs/default", tmp_path / "copy") / "metrics.jsonl"
    trained = [line for line in log.read_text().splitlines() if '"split": "train"' in line]
    assert len(trained) == whole.state["step"]


def test_hosts_that_come_back_continue_from_their_folders(dataset, bucket, whole, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 8)
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 12)
    run_ranks(train, 2, hosts(dataset, tmp_path))
    assert_is(bucket, whole)


def without_network(rank):
    def fail(*_):
        raise OSError("no route to host")

    run_store.send_checked = fail


def test_a_checkpoint_that_was_not_sent_is_sent_by_the_next_start(dataset, bucket, whole, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 4)
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 8, without_network)
    assert steps(bucket) == ["step-00000004"]
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 12)
    assert "step-00000008" in steps(bucket)
    run_ranks(train, 2, hosts(dataset, tmp_path))
    assert_is(bucket, whole)


def test_without_one_host_an_unsent_checkpoint_is_trained_again(dataset, bucket, whole, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 4)
    run_ranks(train, 2, hosts(dataset, tmp_path), 1, 8, without_network)
    shutil.rmtree(tmp_path / "host1")
    run_ranks(train, 2, hosts(dataset, tmp_path))
    assert_is(bucket, whole)


def test_a_run_that_cannot_be_sent_at_the_end_fails_and_keeps_its_checkpoints(
    dataset, bucket, tmp_path
):
    with pytest.raises(AssertionError, match="OSError: no route to host"):
        run_ranks(train, 2, hosts(dataset, tmp_path), 1, None, without_network)
    assert steps(bucket) == []
    assert committed(tmp_path / "host0/default/checkpoints")


def test_a_run_that_was_trained_without_a_copy_is_sent_with_its_best_checkpoint(
    dataset, bucket, tmp_path
):
    (config,) = hosts(dataset, tmp_path)[:1]
    trainer = config.trainer.model_copy(update={"copy_to": None})
    run_ranks(train, 1, [config.model_copy(update={"trainer": trainer})])
    assert steps(bucket) == []
    run_ranks(train, 1, [config])
    paths = committed(tmp_path / "host0/default/checkpoints")
    assert {paths[-1].name, best_of(paths).name} <= set(steps(bucket))


def test_one_host_trains_on_another_number_of_ranks(dataset, bucket, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path / "old")[:1] * 2, 2, 8)
    run_ranks(train, 1, hosts(dataset, tmp_path / "new")[:1])
    assert steps(bucket)[-1] > "step-00000008"


def test_hosts_that_share_a_folder_fetch_once(dataset, bucket, whole, tmp_path):
    run_ranks(train, 2, hosts(dataset, tmp_path)[:1] * 2, 1, 8)
    shutil.rmtree(tmp_path / "host0")
    run_ranks(train, 2, hosts(dataset, tmp_path)[:1] * 2, 1)
    assert_is(bucket, whole)


def test_the_marker_is_sent_after_all_files_and_old_ones_are_deleted_after_it(
    dataset, bucket, tmp_path, monkeypatch
):
    events = tmp_path / "events"
    send, delete = run_store.send_file, remote_folders.delete_files

    def sent(source, target):
        send(source, target)
        with events.open("a") as file:
            file.write(f"send {target.path}\n")

    def deleted(folder, names):
        names = list(names)
        with events.open("a") as file:
            file.writelines(f"delete {name}\n" for name in names)
        delete(folder, names)

    monkeypatch.setattr(run_store, "send_file", sent)
    monkeypatch.setattr(remote_folders, "send_file", sent)
    monkeypatch.setattr(run_store, "delete_files", deleted)
    run_ranks(train, 1, hosts(dataset, tmp_path)[:1])
    lines = events.read_text().splitlines()
    (first,) = [line for line in lines if "step-00000004/COMMIT" in line and "delete" in line]
    kept = lines[: lines.index(first)]
    assert f"send apps/runs/default/checkpoints/step-00000012/{COMMIT}" in kept
    for step in ("04", "08", "12"):
        file = f"send apps/runs/default/checkpoints/step-000000{step}/"
        of_step = [line for line in kept if line.startswith(file)]
        assert of_step[-1].endswith(COMMIT)
        assert len(of_step) >= 3


def test_a_folder_of_this_machine_is_no_copy(dataset):
    with pytest.raises(ValueError, match="copy_to must be a URL such as s3://bucket/runs; got"):
        load_config(None, [f"dataset={dataset}", f"trainer.copy_to={os.sep}tmp"])
