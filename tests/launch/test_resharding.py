"""Checkpoints of tables that are divided by columns: other shards read weights and accumulators."""

import os

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_dataset

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow

COLUMNS, GRID, ROWS, TABLE = (
    ("column_wise", 4, 4),
    ("grid", 4, 2),
    ("row_wise", 1, 1),
    ("table_wise", 2, 2),
)
"""Sharding, ranks and ranks per node."""
DIM = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=600)


def config_of(dataset, root, way, *overrides):
    tables = ", ".join(f"{name}: {way[0]}" for name in ("user_id", "item_id", "genre"))
    return load_config(
        None,
        [
            *(f"dataset={dataset}", f"run_root={root}", "trainer.global_batch=96"),
            *(f"embeddings.dim={DIM}", "embeddings.lr=0.05", "embeddings.min_columns=4"),
            *(f"embeddings.sharding={{{tables}}}", "trainer.max_steps=4", "trainer.epochs=9"),
            *("trainer.patience=9", *overrides),
        ],
    )


def trainer_of(rank, world_size, config, way):
    os.environ["LOCAL_WORLD_SIZE"] = str(way[2])
    return Trainer(config, Process(rank, world_size, way[2], torch.device("cpu")))


def shards_of(trainer):
    """(Name, shape of the whole, first of each axis, values) of this rank's shards of tables."""
    state = trainer.model.state_dict()
    for parameter, tensors in trainer.optimizer.state_dict()["state"].items():
        if "embedding_bags" in parameter:
            state |= {f"{parameter.split('.')[-2]}.momentum": t for t in tensors.values()}
    return [
        (name.removesuffix(".weight").split("embedding_bags.")[-1], tuple(tensor.size()))
        + (tuple(shard.metadata.shard_offsets), shard.tensor.numpy().copy())
        for name, tensor in state.items()
        if hasattr(tensor, "local_shards")
        for shard in tensor.local_shards()
    ]


def whole(ranks):
    """Name -> whole tensor, NaN where no rank has a shard."""
    tensors = {}
    for name, shape, first, values in (shard for rank in ranks for shard in rank):
        out = tensors.setdefault(name, np.full(shape, np.nan, np.float32))
        out[tuple(slice(a, a + n) for a, n in zip(first, values.shape, strict=True))] = values
    return tensors


def train(rank, world_size, config, way):
    trainer = trainer_of(rank, world_size, config, way)
    trainer.fit(trainer.resume())
    return shards_of(trainer)


def load(rank, world_size, config, way):
    trainer = trainer_of(rank, world_size, config, way)
    trainer.resume()
    return shards_of(trainer)


def trained(way, dataset, root, *overrides):
    config = config_of(dataset, root, way, *overrides)
    return whole(run_ranks(train, way[1], config, way))


def loaded(way, dataset, root):
    return whole(run_ranks(load, way[1], config_of(dataset, root, way), way))


@pytest.fixture(scope="module")
def saved(dataset, tmp_path_factory):
    """Way -> folder of its run, and the tables after training."""
    runs = {}
    for way in (COLUMNS, GRID, ROWS):
        root = tmp_path_factory.mktemp(way[0])
        runs[way] = (root, trained(way, dataset, root))
    return runs


def by_shards(accumulators, column_shards, rows):
    """Accumulators (column shards, rows) from those that TorchRec lays end to end."""
    kept = accumulators.reshape(-1, rows)
    if len(kept) == column_shards:
        return kept
    return np.repeat(kept.mean(0, keepdims=True), column_shards, 0)


@pytest.mark.parametrize(
    ("of", "to"),
    [(COLUMNS, ROWS), (COLUMNS, TABLE), (COLUMNS, GRID), (GRID, ROWS), (ROWS, COLUMNS)]
    + [(GRID, ("column_wise", 1, 1)), (ROWS, ("table_row_wise", 4, 2))]
    + [(COLUMNS, ("table_column_wise", 4, 2))],
    ids=str,
)
def test_weights_are_the_same_and_accumulators_those_of_their_columns(dataset, saved, of, to):
    root, wanted = saved[of]
    got = loaded(to, dataset, root)
    assert got.keys() == wanted.keys()
    for table in ("user_id", "item_id", "genre"):
        rows = len(wanted[table])
        np.testing.assert_array_equal(got[table], wanted[table])
        shards = 2 if "column" in to[0] or to[0] == "grid" else 1
        expected = by_shards(wanted[f"{table}.momentum"], shards, rows)
        momentum = got[f"{table}.momentum"].reshape(shards, rows)
        np.testing.assert_allclose(momentum, expected, rtol=1e-6)
        assert momentum.max() > 0


def test_a_run_goes_on_from_columns_to_rows_to_whole_tables(dataset, tmp_path):
    trained(COLUMNS, dataset, tmp_path)
    rows = trained(ROWS, dataset, tmp_path, "trainer.max_steps=7")
    assert Checkpoints(tmp_path / "default/checkpoints").newest().name == "step-00000007"
    tables = loaded(TABLE, dataset, tmp_path)
    assert tables.keys() == rows.keys()
    for name, values in rows.items():
        np.testing.assert_array_equal(tables[name], values)


def test_a_run_with_two_copies_resumes_exactly_and_loads_into_one(dataset, tmp_path):
    """Copies are averaged every three steps, and before the checkpoint of step 4."""
    way, copies = ("row_wise", 4, 4), ["embeddings.group_ranks=2", "embeddings.sync_every=3"]
    options = [*copies, "trainer.max_steps=6", "trainer.checkpoint_every_steps=4"]
    undisturbed = trained(way, dataset, tmp_path, *options)
    checkpoints = tmp_path / "default/checkpoints"
    (checkpoints / "step-00000006/COMMIT").unlink()
    assert Checkpoints(checkpoints).newest().name == "step-00000004"
    resumed = trained(way, dataset, tmp_path, *options)
    one_copy = loaded(ROWS, dataset, tmp_path)
    assert undisturbed.keys() == resumed.keys() == one_copy.keys()
    for name, values in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], values)
        np.testing.assert_array_equal(one_copy[name], values)


def test_a_checkpoint_without_the_state_of_the_optimizer_is_refused(dataset, saved):
    adam = ("embeddings.optimizer=adam", "embeddings.sharding={}")
    config = config_of(dataset, saved[ROWS][0], TABLE, *adam)
    with pytest.raises(AssertionError, match=r"must hold the state .* lacks tables\..*exp_avg"):
        run_ranks(load, 2, config, TABLE)
