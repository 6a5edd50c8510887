"""A knowledge store in an object store is that of a local encoding, also after a kill."""

import numpy as np
import pytest
from llm_data import TRAIN, USERS, stop_after, write_dataset, write_model
from upath import UPath

from msrec.data.llm.item_vectors import item_projection
from msrec.data.llm.store import KnowledgeStore
from msrec.launch.config.run_config import load_config
from msrec.launch.encoding.job import encode_config

pytestmark = pytest.mark.slow
LEVELS = ("user", "scenario", "item-sources/lsa")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = tmp_path_factory.mktemp("encode")
    model = write_model(root / "model")
    titles = ["red shoe", "red hat", "blue shoe", "blue hat", "red lamp", "blue lamp"]
    dataset = write_dataset(root / "data", TRAIN, users=USERS, titles=titles)
    llm = {"model": model, "dtype": "float32", "storage": "float32", "max_tokens": 600}
    return [
        *(f"dataset={dataset}", "meta.user=true", "meta.scenario=true", "llm.sources=[lsa]"),
        *(f"llm.{name}={value}" for name, value in llm.items()),
        *("llm.batch_tokens=900", "llm.item_dim=4", "device=cpu"),
    ]


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))
    folder = UPath("memory://apps/store")
    yield folder
    if folder.exists():
        folder.fs.rm(folder.path, recursive=True)


def encode(options, store, on_progress=None):
    return encode_config(load_config(None, [*options, f"llm.store={store}"]), on_progress)


def opened(store):
    return [KnowledgeStore.open(store / level) for level in LEVELS]


def test_a_remote_store_is_that_of_a_local_encoding(options, remote, tmp_path):
    encode(options, tmp_path / "local")
    encode(options, remote)
    for ours, theirs in zip(opened(tmp_path / "local"), opened(remote), strict=True):
        assert theirs.manifest == ours.manifest
        np.testing.assert_array_equal(theirs.vectors, ours.vectors)
    assert not list((tmp_path / "cache/stores").glob("*/*/*"))
    names = {name.rpartition("/")[2] for name in remote.fs.find(remote.path)}
    assert not [name for name in names if name.startswith(".") or name.startswith("part")]


def test_a_kill_is_resumed_from_the_folder_of_this_machine(options, remote, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(options, remote, stop_after(3))
    with pytest.raises(FileNotFoundError, match=r"manifest.json must exist, since it is written"):
        KnowledgeStore.open(remote / "user")
    levels = encode(options, remote).levels
    assert (levels["scenario"]["encoded"], levels["user"]["encoded"]) == (0, 11)
    assert len(KnowledgeStore.open(remote / "scenario")) == levels["scenario"]["keys"] > 0


def test_readers_share_the_projection_that_the_encoding_sent(options, remote, tmp_path):
    encode(options, remote)
    store = KnowledgeStore.open(remote / "item-sources/lsa")
    assert (store.path / "projection-4.npz").is_file()
    item_projection(store, 4)
    message = r"memory://apps/store/item-sources/lsa/projection-8.npz must exist, so that all"
    with pytest.raises(FileNotFoundError, match=message):
        item_projection(store, 8)
    vectors = (remote / "item-sources/lsa/vectors.npy").fs.info(f"{store.copy_of}/vectors.npy")
    encode([*options, "llm.item_dim=8"], remote)  # adds the projection, and sends nothing else
    after = remote.fs.info(f"{store.copy_of}/vectors.npy")
    assert after == vectors
    item_projection(KnowledgeStore.open(remote / "item-sources/lsa"), 8)


def test_other_settings_and_files_of_others_are_refused(options, remote):
    encode(options, remote)
    with pytest.raises(ValueError, match="must be encoded with the same settings throughout"):
        encode([*options, "llm.pooling=last"], remote)
    (remote / "item").mkdir()
    (remote / "item/notes.txt").write_bytes(b"mine")
    with pytest.raises(ValueError, match="item must hold manifest.json to be overwritten"):
        encode([*options, "llm.items=true"], remote)
