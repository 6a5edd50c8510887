"""Training with managed features: ranks, resume, evaluation, and rows that get new ids."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from managed_data import ROWS, managed_dataset
from ranks import run_ranks
from trainings import config_of, fit, fit_partly_then_resume, weights

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.distributed import Process, process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.trained_run import open_run, unwrapped
from msrec.launch.training.trainer import Trainer, train_run
from msrec.model.distributed.managed_tables import table_shards
from msrec.tools.planner.sources.run_memory import tables_and_dense

pytestmark = pytest.mark.slow

OPTIONS = ["embeddings.eviction=lru", "embeddings.eviction_every_steps=5"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return managed_dataset(tmp_path_factory.mktemp("data") / "tiny")


def maps(weights):
    return {name: value for name, value in weights.items() if ".managed.maps." in name}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise"])
def test_two_ranks_have_the_losses_and_the_map_of_one_rank(dataset, tmp_path, sharding):
    tables = "{" + f"user_id: {sharding}, item_id: {sharding}" + "}"
    options = [*OPTIONS, f"embeddings.sharding={tables}", "embeddings.min_columns=4"]
    one, _, of_one = run_ranks(fit, 1, config_of(dataset, tmp_path / "1", *options))[0]
    both = run_ranks(fit, 2, config_of(dataset, tmp_path / "2", *options))
    np.testing.assert_allclose(both[0][0], one, atol=1e-4)
    for _, _, of_two in both:
        assert len(maps(of_one)) == len(maps(of_two)) > 8
        for name, value in maps(of_two).items():
            np.testing.assert_array_equal(value, of_one[name], err_msg=name)


@pytest.mark.parametrize(("eviction", "steps"), [("lfu", 7), ("lru", 10), ("distance", 13)])
def test_a_resumed_run_equals_one_that_was_never_stopped(dataset, tmp_path, eviction, steps):
    options = [f"embeddings.eviction={eviction}", "embeddings.eviction_every_steps=5"]
    whole = run_ranks(fit, 2, config_of(dataset, tmp_path / "whole", *options))
    config = config_of(dataset, tmp_path / "resumed", *options)
    resumed = run_ranks(fit_partly_then_resume, 2, config, steps)
    for (losses, _, expected), (rest, _, found) in zip(whole, resumed, strict=True):
        assert losses[steps:] == rest
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_goes_on_with_its_map_on_another_number_of_ranks(dataset, tmp_path):
    whole, _, expected = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *OPTIONS))[0]
    some = config_of(dataset, tmp_path / "some", *OPTIONS, "trainer.max_steps=13")
    run_ranks(fit, 2, some)
    rest, _, found = run_ranks(fit, 1, config_of(dataset, tmp_path / "some", *OPTIONS))[0]
    np.testing.assert_allclose(rest, whole[13:], atol=1e-4)
    for name, value in maps(expected).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_new_run_starts_with_the_map_of_another(dataset, tmp_path):
    config = config_of(dataset, tmp_path / "old", *OPTIONS, "trainer.epochs=1")
    new = config_of(dataset, tmp_path / "new", *OPTIONS, f"init_from={config.run_dir}")
    with process_group("cpu") as process:
        train_run(config, process)
        expected = weights(open_run(config.run_dir, process))
        trainer = Trainer(new, process)
        trainer.resume()
        found = weights(trainer)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_plan_counts_the_maps_and_one_lookup_of_each_row(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "embeddings.eviction=distance")
    loads, dense = tables_and_dense(config, 96)
    assert {load.name: load.pooling for load in loads if load.name in ROWS} == {
        "user_id": 1,
        "item_id": 1,
    }
    # Ids, slots, counts and last steps of each row; the ids of 50 steps; segments of TorchRec.
    expected = 2 * 50 * 96 * 8 + sum(ROWS.values()) * 32 + 2 * 1025 * 8
    assert expected <= dense.fixed["maps of managed features"] < expected + 200


def test_a_map_that_cannot_fit_is_refused_with_its_size(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "embeddings.eviction_every_steps=400000000")
    with pytest.raises(ValueError, match=r"Largest: the maps of managed .*: 572\.\d GiB"):
        with process_group("cpu") as process:
            Trainer(config, process)


def updated_shards(rank, world_size, config):
    """Trains 15 steps; returns weights, state and new rows of every shard after each of them."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    managed = unwrapped(trainer.model).ranker.embeddings.managed
    batches, found = trainer.train.batches(0), []
    trainer.model.train()
    for _ in range(15):
        old = [of_map.ids_and_rows()[0].clone() for of_map in managed.maps]
        trainer.pipeline.progress(batches)
        for of_map, old_ids, table in zip(managed.maps, old, managed.tables, strict=True):
            ids, rows = of_map.ids_and_rows()
            new = rows[~torch.isin(ids, old_ids)]
            for shard in table_shards(trainer.model, table):
                is_new = torch.isin(torch.arange(len(shard.weights)) + shard.first_row, new)
                parts = (shard.weights, shard.states[0], is_new)
                found.append([each.numpy().copy() for each in parts])
    return found


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_row_that_gets_a_new_id_has_nothing_of_the_old_one(dataset, tmp_path, sharding):
    tables = "{" + f"user_id: {sharding}, item_id: {sharding}" + "}"
    options = [*OPTIONS, f"embeddings.sharding={tables}", "embeddings.lr=10"]
    ranks = run_ranks(updated_shards, 2, config_of(dataset, tmp_path, *options), timeout_s=90)
    shards = [shard for of_rank in ranks for shard in of_rank]
    assert sum(is_new.sum() for _, _, is_new in shards) > 60
    for values, state, is_new in shards:
        assert (state[is_new] == 0).all()
        # Trained values are of the size of the learning rate, new ones of init_std = 0.01.
        assert np.abs(values[is_new]).max(initial=0) < 0.06
    values, state, is_new = shards[-1]
    assert (state[~is_new] > 0).any()
    assert np.abs(values[~is_new]).max() > 1


def test_evaluation_uses_the_map_and_leaves_it_as_it_is(dataset, tmp_path, caplog):
    config = config_of(dataset, tmp_path, *OPTIONS)
    with process_group("cpu") as process:
        train_run(config, process)
        run = open_run(config.run_dir, process)
        before = weights(run)
        results = evaluate(config.run_dir, process)
        again = open_run(config.run_dir, process)
    ids, _ = unwrapped(run.model).ranker.embeddings.managed.maps[0].ids_and_rows()
    users = np.concatenate(
        [pq.read_table(path)["user_id"].to_numpy() for path in (dataset / "test").glob("*")]
    )
    unknown = int((~np.isin(users, ids.numpy())).sum())
    assert f"test: user_id: {unknown} of 400 values unknown" in caplog.text
    assert 0 < unknown < 400
    assert results.metrics.all.rows == 400
    for name, value in maps(weights(again)).items():
        np.testing.assert_array_equal(value, before[name])


def test_the_log_has_the_ids_that_got_and_lost_rows(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS)
    with process_group("cpu") as process:
        train_run(config, process)
        run = open_run(
            config.run_dir, process, Checkpoints(config.run_dir / "checkpoints").newest()
        )
    last = [
        line["metrics"]
        for line in map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
        if line["split"] == "train"
    ][-1]
    counts = unwrapped(run.model).ranker.embeddings.managed.named_counts()
    assert {name: last[name] for name in counts} == counts
    assert counts["ids_with_row/user_id"] == 23
    assert counts["ids_inserted/user_id"] - counts["ids_evicted/user_id"] == 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["embeddings.per_scenario=true"], "per_scenario must be false with the managed feature"),
        (["embeddings.rare={user_id: 3}"], "'user_id' is managed, and its rare ids leave"),
        (["embeddings.optimizer=adam"], "the managed table 'user_id' must have the kernel fused"),
    ],
)
def test_options_that_do_not_go_with_managed_features_are_refused(
    dataset, tmp_path, options, message
):
    config = config_of(dataset, tmp_path, *options)
    with pytest.raises(ValueError, match=message), process_group("cpu") as process:
        Trainer(config, process)
