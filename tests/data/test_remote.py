"""Remote datasets, in memory and behind the S3 protocol, read like local ones."""

import os
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from object_store import SECRET, store
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import config_of, fit
from upath import UPath

from msrec.data.features.vocabulary import load_vocabularies
from msrec.data.io.paths import is_file, to_path
from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.text.prompts import item_prompts, user_prompts
from msrec.data.llm.text.templates import load_template
from msrec.data.loading import split_reader
from msrec.data.loading.loader import RankShare, open_loader
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import load_config
from msrec.tools.experiment.sweep import load_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


@pytest.fixture
def memory(local):
    remote = UPath("memory://apps/tiny")
    for file in local.rglob("*"):
        if file.is_file():
            target = remote / str(file.relative_to(local))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    yield remote
    remote.fs.rm(remote.path, recursive=True)


@pytest.fixture(scope="module")
def s3(local):
    with store() as bucket:
        bucket.upload(local, "tiny")
        yield "s3://apps/tiny"


def batches(dataset, rank=0, world_size=1):
    loader = open_loader(dataset, "train", 96, share=RankShare(rank, world_size), window_rows=400)
    return [(b.row_id, b.label, b.sparse.values(), b.dense) for b in loader.batches()]


def read_alike(rank, world_size, local, remote):
    """What a rank reads of both; the loops of s3fs belong to the process that began them."""
    for ours, theirs in zip(
        batches(local, rank, world_size), batches(remote, rank, world_size), strict=True
    ):
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=0)
    return load_schema(local) == load_schema(remote) and is_file(to_path(remote) / "users.parquet")


def test_a_loader_reads_the_same_from_memory(local, memory):
    assert all(run_ranks(read_alike, 2, local, str(memory)))


def test_a_loader_reads_the_same_from_s3(local, s3):
    assert all(run_ranks(read_alike, 2, local, s3))


@pytest.mark.parametrize("where", ["memory", "s3"])
def test_training_from_elsewhere_gives_the_same_weights(local, tmp_path, where, request):
    remote = request.getfixturevalue(where)
    here = run_ranks(fit, 2, config_of(local, tmp_path / "local", "trainer.epochs=1"))
    store = f"llm.store={local.parent / 'store'}"
    options = (f"dataset={remote}", store, "trainer.epochs=1")
    there = run_ranks(fit, 2, config_of(local, tmp_path / "remote", *options))
    for (losses, _, ours), (remote_losses, _, theirs) in zip(here, there, strict=True):
        assert losses == remote_losses
        for name, value in ours.items():
            np.testing.assert_array_equal(theirs[name], value)


def test_prompts_and_vectors_read_the_same_users_and_items(local, memory):
    template = load_template("default")
    for prompts in (user_prompts, item_prompts):
        assert prompts(memory, template).frame.equals(prompts(local, template).frame)
    store = KnowledgeStore.open(local.parent / "store/user")
    users = torch.arange(40)
    ours, theirs = (EntityKnowledge(d, "user", store).gather(users) for d in (local, memory))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_vocabularies_are_read_to_grow_from(tmp_path, local, memory):
    folder = memory / "vocabularies"
    folder.mkdir()
    pl.DataFrame({"value": ["a", "b"]}).write_parquet(tmp_path / "genres.parquet")
    (folder / "genres.parquet").write_bytes((tmp_path / "genres.parquet").read_bytes())
    assert load_vocabularies(memory)["genres"].to_list() == ["a", "b"]


def test_row_groups_are_asked_for_at_the_same_time(memory, monkeypatch):
    both = threading.Barrier(2, timeout=20)
    read = split_reader.read_row_group

    def meet(*args):
        both.wait()  # breaks, and the reader with it, unless two of them are here
        return read(*args)

    monkeypatch.setattr(split_reader, "read_row_group", meet)
    loader = open_loader(memory, "train", 96, window_rows=96, prefetch=0)
    groups = loader.reader.group_rows
    assert len(loader.reader.take(np.array([0, groups[0]]))["user"]) == 2


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="http://host"), ConnectionResetError("reset")]
)
def test_a_network_that_fails_is_no_bad_row(memory, monkeypatch, error):
    loader = open_loader(memory, "train", 96, prefetch=0, faults="skip")

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(type(memory.fs), "open", fail)
    with pytest.raises(ValueError, match="row group 0 could not be read; .*(http://host|reset)"):
        next(loader.batches())
    assert not loader.reader.quarantine.bad_rows


def run(command, **environment):
    words = [sys.executable, "-m", "msrec", *command]
    return subprocess.run(
        words, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_a_run_writes_no_secret_of_the_environment(s3, local, tmp_path):
    options = [
        *(f"dataset={s3}", f"run_root={tmp_path}", "run_id=quiet"),
        *("trainer.epochs=1", "trainer.global_batch=96", "embeddings.dim=8"),
    ]
    config = tmp_path / "conf.yaml"
    config.write_text("".join(o.replace("=", ": ", 1) + "\n" for o in options[:3]))
    trained = run(["train", str(config), *options[3:]], HF_TOKEN=SECRET, OMP_NUM_THREADS="1")
    assert trained.returncode == 0, trained.stderr
    judged = run(["evaluate", str(tmp_path / "quiet")], HF_TOKEN=SECRET, OMP_NUM_THREADS="1")
    assert judged.returncode == 0, judged.stderr
    report = run(["report", str(tmp_path / "quiet"), "--out", str(tmp_path / "report.html")])
    assert report.returncode == 0, report.stderr
    assert s3 in (tmp_path / "quiet/config.yaml").read_text()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "versions.json", "results.json", "report.html"} <= {
        f.name for f in files
    }
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file
    for done in (trained, judged, report):
        assert SECRET not in done.stdout + done.stderr


def test_a_url_with_a_key_is_refused_without_showing_it(tmp_path):
    url = f"s3://someone:{SECRET}@apps/tiny"
    (tmp_path / "conf.yaml").write_text(f"dataset: {url}\n")
    (tmp_path / "sweep.yaml").write_text(f"datasets: {{tiny: [{{dataset: '{url}'}}]}}\n")
    signed = f"https://host/tiny?X-Amz-Signature={SECRET}"
    for refused in (
        lambda: load_config(tmp_path / "conf.yaml"),
        lambda: load_config(None, [f"dataset={url}"]),
        lambda: load_config(None, ["dataset=data/app", f"llm.store={signed}"]),
        lambda: load_config(None, [url]),
        lambda: load_sweep(tmp_path / "sweep.yaml"),
        lambda: to_path(signed),
    ):
        with pytest.raises(ValueError, match="a URL without credentials") as told:
            refused()
        assert SECRET not in str(told.value)


def test_a_refused_key_is_one_sentence_without_it(s3):
    done = run(["show", s3], AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {s3}/dataset.yaml must be readable; EndpointConnection")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


def test_what_is_not_there_is_one_sentence(memory):
    with pytest.raises(FileNotFoundError, match=r"memory://apps/none/dataset.yaml must exist"):
        load_schema("memory://apps/none")
    with pytest.raises(ValueError, match="nowhere://x must name a file system"):
        load_config(None, ["dataset=nowhere://x"])
    with pytest.raises(ValueError, match=r"run_root: a path must be a folder or file"):
        load_config(None, [f"dataset={memory}", "run_root=s3://apps/runs"])
