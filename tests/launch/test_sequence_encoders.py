"""Runs with `sequence.encoder`: ranks, sharding, checkpoints, and refused settings."""

import numpy as np
import pytest
import torch
from history_rows import with_ties
from ranks import run_ranks
from trainings import config_of, fit, fit_partly_then_resume

from msrec.data.histories.build import build_histories
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import load_results
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.trained_run import open_run
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS

pytestmark = pytest.mark.slow
ONE = Process(0, 1, 1, torch.device("cpu"))
every_encoder = pytest.mark.parametrize("encoder", SEQUENCE_ENCODERS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = with_ties(tmp_path_factory.mktemp("sequences") / "tiny")
    build_histories(folder)
    return folder


def encoder_config(dataset, root, encoder, *overrides):
    sequence = ("sequence.protocol=stream", "sequence.max_len=6", f"sequence.encoder={encoder}")
    return config_of(dataset, root, *sequence, *overrides)


def losses(world_size, config):
    return run_ranks(fit, world_size, config)[0][0]


@every_encoder
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_two_ranks_give_the_losses_of_one_rank(dataset, tmp_path, encoder, sharding):
    of_table = "embeddings.sharding={sequence_item: " + sharding + "}"
    # Layer norms of HSTU turn the rounding of vectors of size 0.01, the default, into large steps.
    options = (of_table, "embeddings.init_std=0.3")
    one, two = (
        losses(ranks, encoder_config(dataset, tmp_path / str(ranks), encoder, *options))
        for ranks in (1, 2)
    )
    assert len(one) >= 20
    np.testing.assert_allclose(two, one, atol=1e-5)


def whole(ranks, name):
    """A table, or any weight, put together from all ranks."""
    return np.concatenate([weights[name] for *_, weights in ranks if name in weights])


def test_a_table_begins_and_ends_the_same_on_one_rank_and_split_by_rows(dataset, tmp_path):
    table = "ranker.sequence_items.ebc.embedding_bags.sequence_item.weight"
    options = ("embeddings.row_wise_from=50", "trainer.max_steps=5")
    one, two = (
        run_ranks(fit, ranks, encoder_config(dataset, tmp_path / str(ranks), "bst", *options))
        for ranks in (1, 2)
    )
    assert [len(weights[table]) for *_, weights in two] == [30, 30]
    np.testing.assert_allclose(whole(two, table), whole(one, table), atol=1e-4)
    assert np.abs(whole(one, table)).mean() > 0.02  # initial values have a deviation of 0.01


def test_tables_trained_with_adam_give_the_same_on_two_ranks(dataset, tmp_path):
    options = ("embeddings.optimizer=adam", "embeddings.lr=0.01")
    one, two = (
        losses(ranks, encoder_config(dataset, tmp_path / str(ranks), "sim", *options))
        for ranks in (1, 2)
    )
    np.testing.assert_allclose(two, one, atol=1e-4)


@every_encoder
def test_a_resumed_run_is_the_run_that_was_never_stopped(dataset, tmp_path, encoder):
    config = encoder_config(dataset, tmp_path / "whole", encoder, "sequence.dropout=0.2")
    ((whole_losses, _, weights),) = run_ranks(fit, 1, config)
    config = encoder_config(dataset, tmp_path / "killed", encoder, "sequence.dropout=0.2")
    ((rest, _, resumed),) = run_ranks(fit_partly_then_resume, 1, config, 7)
    assert rest == whole_losses[7:]
    assert any("sequence_items" in name for name in weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(resumed[name], value, name)


def test_several_layers_and_heads_are_options_of_a_run(dataset, tmp_path):
    options = ("sequence.num_layers=2", "sequence.num_heads=4", "trainer.max_steps=2")
    ((_, _, weights),) = run_ranks(fit, 1, encoder_config(dataset, tmp_path, "hstu", *options))
    assert any("sequence_encoder.blocks.1" in name for name in weights)


def score(rank, world_size, config):
    evaluate(config.run_dir, Process(rank, world_size, world_size, torch.device("cpu")))


def test_two_ranks_score_as_one_rank(dataset, tmp_path):
    config = encoder_config(dataset, tmp_path, "hstu", "trainer.max_steps=3")
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    aucs = []
    for ranks in (1, 2):
        run_ranks(score, ranks, config)
        aucs.append(load_results(config.run_dir).metrics.all.auc)
    assert aucs[0] == pytest.approx(aucs[1], abs=1e-6)


# Refused settings --------------------------------------------------------------------------------


def test_an_encoder_without_ordered_histories_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="sequence: encoder=din reads ordered histories, so that "):
        config_of(dataset, tmp_path, "sequence.encoder=din")


@pytest.mark.parametrize("option", ["scale=0.5", "embeddings.per_scenario=true"])
def test_scaled_tables_and_tables_per_scenario_are_refused(dataset, tmp_path, option):
    config = encoder_config(dataset, tmp_path, "din", option)
    with pytest.raises(ValueError, match=r"sequence.encoder must be none with .*; got din\."):
        KnowledgeInputs(config, load_schema(dataset))


def test_another_dataset_is_refused(dataset, tmp_path):
    config = encoder_config(dataset, tmp_path, "din", "trainer.max_steps=2")
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    with pytest.raises(ValueError, match="--data needs a run with sequence.encoder=none; this one"):
        open_run(config.run_dir, ONE, data=dataset)
