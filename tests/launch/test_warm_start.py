"""init_from: the same predictions from a bare run, grown tables, and what does not fit."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_dataset, tiny_schema, tiny_store

from msrec.data.schema import save_schema
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny", rows=1000), folder / "store")
    return folder / "tiny"


def config_of(dataset, root, *overrides):
    return load_config(
        None,
        [
            *(f"dataset={dataset}", f"run_root={root}", f"llm.store={dataset.parent / 'store'}"),
            *("trainer.global_batch=96", "embeddings.dim=8", "embeddings.lr=0.05"),
            *("backbone.name=mmoe", "trainer.epochs=1", *overrides),
        ],
    )


def trained(rank, world_size, config):
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    trainer.fit()


def begun(rank, world_size, config):
    """Predictions of the validation rows, and the tables, before the first step."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    trainer.resume()
    trainer.model.eval()
    logits = torch.cat(
        [o.outputs[:, 0] for o in trainer.pipeline.outcomes(trainer.valid.batches())]
    )
    tables = {}
    for name, value in trainer.model.state_dict().items():
        for shard in value.local_shards() if hasattr(value, "local_shards") else []:
            tables[name.split(".")[-2], shard.metadata.shard_offsets[0]] = (
                shard.tensor.numpy().copy()
            )
    return logits.numpy(), tables


def whole(ranks, table):
    parts = {
        first: rows for _, own in ranks for (name, first), rows in own.items() if name == table
    }
    return np.concatenate([parts[first] for first in sorted(parts)])


@pytest.fixture(scope="module")
def bare(dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp("bare")
    run_ranks(trained, 1, config_of(dataset, root))
    return root / "default"


def record(root):
    return {
        part["name"]: part["action"]
        for part in json.loads((root / "default/init_from.json").read_text())["tensors"]
    }


def test_llm4msr_from_a_bare_run_begins_with_its_predictions(dataset, bare, tmp_path):
    expected = run_ranks(begun, 1, config_of(dataset, bare.parent))[0][0]
    options = ["meta.user=true", "meta.scenario=true", f"init_from={bare}", "strict=false"]
    found = run_ranks(begun, 1, config_of(dataset, tmp_path, *options))[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    actions = record(tmp_path)
    assert {actions[name] for name in actions if "_meta." in name} == {"new"}
    assert {actions[name] for name in actions if "_meta." not in name} == {"taken"}
    fresh = run_ranks(begun, 1, config_of(dataset, tmp_path / "fresh", *options[:2]))[0][0]
    assert np.abs(fresh - expected).max() > 0.01


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_grown_table_keeps_its_rows(dataset, bare, tmp_path, ranks, sharding):
    grown = tmp_path / "grown"
    shutil.copytree(dataset, grown)
    sizes = {"user_id": 47, "item_id": 95, "genre": 7}
    save_schema(tiny_schema(tables=sizes, num_users=46), grown)
    users = {"user_key": [f"u{i}" for i in range(46)]}
    pq.write_table(pa.table(users), grown / "users.parquet")
    tables = f"embeddings.sharding={{user_id: {sharding}, item_id: {sharding}}}"
    options = [f"init_from={bare}", "strict=false", tables, "llm.store=null"]
    found = run_ranks(begun, ranks, config_of(grown, tmp_path, *options))
    before = run_ranks(begun, 1, config_of(dataset, bare.parent))
    fresh = run_ranks(begun, 1, config_of(grown, tmp_path / "fresh", "llm.store=null"))
    for table, rows in {"user_id": 41, "item_id": 61, "genre": 7}.items():
        now = whole(found, table)
        assert len(now) == sizes[table]
        np.testing.assert_array_equal(now[:rows], whole(before, table))
        np.testing.assert_array_equal(now[rows:], whole(fresh, table)[rows:])
    actions = record(tmp_path)
    assert sorted(set(actions.values())) == ["grown", "taken"]
    assert sum(action == "grown" for action in actions.values()) == 2


def refusal(*args):
    with pytest.raises(AssertionError) as caught:
        run_ranks(begun, *args)
    return str(caught.value)


def test_strict_lists_all_that_differs(dataset, bare, tmp_path):
    options = ["backbone.name=shared_bottom", f"init_from={bare}"]
    message = refusal(1, config_of(dataset, tmp_path, *options))
    assert "must hold every tensor of this model and no other" in message
    assert "new ranker.over.backbone.bottom" in message
    assert "; unused ranker.over.backbone." in message
    assert "To take what fits, say strict=false" in message


def test_a_folder_without_a_checkpoint_is_an_error(dataset, tmp_path):
    message = refusal(1, config_of(dataset, tmp_path, f"init_from={tmp_path}"))
    assert "must be a run folder with a committed checkpoint" in message


def test_a_run_that_resumes_does_not_begin_anew(dataset, bare, tmp_path):
    shutil.copytree(bare, tmp_path / "default")
    options = [f"init_from={tmp_path}/nowhere"]
    run_ranks(begun, 1, config_of(dataset, tmp_path, *options))
    assert not (tmp_path / "default/init_from.json").exists()
