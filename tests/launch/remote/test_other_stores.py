"""Datasets, runs and stores in Google Cloud Storage and Azure Blob Storage, as in a folder."""

import shutil

import numpy as np
import other_stores
import polars as pl
import pytest
from llm_data import TRAIN, USERS, write_model
from llm_data import write_dataset as write_items
from part_tables import differences, write_raw

import msrec
from msrec.data.io import exclusive_files
from msrec.data.io.local_copies import local_copy
from msrec.data.io.paths import entries, to_path
from msrec.data.llm.store import KnowledgeStore
from msrec.launch.checkpointing.commit import committed, read_commit
from msrec.launch.config.run_config import load_config
from msrec.launch.encoding.job import encode_config

pytestmark = [
    pytest.mark.slow,
    # aiohttp, to which both libraries give the bytes of a checkpoint.
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]


@pytest.fixture(scope="module", params=["gs", "abfs"])
def url(request):
    """URL of an empty bucket."""
    with getattr(other_stores, request.param)():
        yield f"{request.param}://apps"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))


def upload(folder, url):
    target = to_path(url)
    target.fs.put(f"{folder}/", f"{target.path}/", recursive=True)


def train(dataset, root, *options, epochs=2):
    config = root.with_suffix(".yaml")
    config.write_text(f"dataset: '{dataset}'\nrun_root: {root}\nrun_id: first\ndevice: cpu\n")
    options += ("trainer.global_batch=96", "trainer.checkpoint_every_steps=20", "embeddings.dim=8")
    return msrec.train(config, [*options, f"trainer.epochs={epochs}"]).folder


def newest(run):
    return read_commit(committed(run / "checkpoints")[-1])


def test_a_run_is_that_of_local_folders(url, tmp_path):
    (tmp_path / "raw").mkdir()
    write_raw(tmp_path / "raw")
    upload(tmp_path / "raw", f"{url}/raw")
    msrec.convert("tables", tmp_path / "raw", tmp_path / "data", split="time")
    parts = {"engine": "processes", "workers": 2, "work": tmp_path / "work"}
    for options in ({}, parts):
        out = f"{url}/data *"  # a character of patterns is one of names
        msrec.convert("tables", f"{url}/raw", out, split="time", overwrite=True, **options)
        assert differences(local_copy(to_path(out), "dataset.yaml"), tmp_path / "data") == []

    here = train(tmp_path / "data", tmp_path / "here")
    copy = f"trainer.copy_to={url}/runs*"
    shutil.rmtree(train(f"{url}/data *", tmp_path / "there", copy, epochs=1))
    assert newest(train(f"{url}/data *", tmp_path / "there", copy)) == newest(here)

    remote = f"{url}/runs*/first"
    expected = msrec.evaluate(here, device="cpu").metrics
    assert msrec.evaluate(remote, device="cpu").metrics == expected
    assert msrec.open_run(remote).results().metrics == expected
    scores = [
        msrec.predict(run, tmp_path / "data/test", out, device="cpu") and out
        for run, out in ((here, tmp_path / "scores"), (remote, f"{url}/scores"))
    ]
    ours, theirs = (local_copy(to_path(out), "_COMMIT") for out in scores)
    assert pl.read_parquet(theirs / "*.parquet").equals(pl.read_parquet(ours / "*.parquet"))


def test_a_knowledge_store_is_that_of_a_local_folder(url, tmp_path):
    titles = ["red shoe", "red hat", "blue shoe", "blue hat", "red lamp", "blue lamp"]
    options = [
        f"dataset={write_items(tmp_path / 'data', TRAIN, users=USERS, titles=titles)}",
        *(f"llm.model={write_model(tmp_path / 'model')}", "llm.dtype=float32", "device=cpu"),
        *("meta.user=true", "llm.sources=[lsa]", "llm.item_dim=4", "llm.max_tokens=600"),
    ]
    for store in (tmp_path / "store", f"{url}/store"):
        encode_config(load_config(None, [*options, f"llm.store={store}"]), None)
    for level in ("user", "item-sources/lsa"):
        ours = KnowledgeStore.open(tmp_path / "store" / level)
        theirs = KnowledgeStore.open(to_path(f"{url}/store") / level)
        np.testing.assert_array_equal(theirs.vectors, ours.vectors)


def test_a_second_writer_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.setattr(exclusive_files, "STALE_S", 3.0)
    monkeypatch.setattr(exclusive_files, "REMOTE_REFRESH_S", 0.3)
    lock = (to_path(f"{url}/locked"), "dataset.yaml", "it must be written")
    with exclusive_files.exclusive_remote(*lock):
        monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "elsewhere"))  # as on another machine
        with pytest.raises(ValueError, match="it must be written by one job at a time; process "):
            with exclusive_files.exclusive_remote(*lock):
                raise AssertionError
    assert not lock[0].fs.find(lock[0].path)


def test_brackets_are_names_in_google_and_refused_in_azure(url):
    folder = f"{url}/a [1]"
    if url.startswith("gs"):
        (to_path(folder) / "x.txt").write_bytes(b"1")
        assert [path.name for path in entries(to_path(folder))] == ["x.txt"]
    else:
        with pytest.raises(ValueError, match="must have no square brackets, which adlfs cannot"):
            to_path(folder)


def test_a_bucket_that_is_not_there_is_one_sentence(url, tmp_path):
    missing = url.replace("apps", "none") + "/data"
    write_raw(tmp_path)
    with pytest.raises(OSError, match=f"{missing}.* must be (read|writ)able"):
        msrec.convert("tables", tmp_path, missing, split="time")
