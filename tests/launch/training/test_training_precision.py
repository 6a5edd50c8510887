"""Runs in bfloat16: near float32, resumed bit for bit, scored in float32; tables in float16."""

import numpy as np
import pytest
import torch
from label_rows import labelled_config, labelled_dataset
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import BOTH, config_of, fit, fit_partly_then_resume

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS
from msrec.launch.checkpointing.dcp_storage import read_index
from msrec.launch.config.run_config import save_config, with_overrides
from msrec.launch.daily.warm_start import load_weights
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow

BF16, FP16 = "trainer.precision=bf16", "embeddings.dtype=fp16"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny", rows=1000), folder / "store")
    return folder / "tiny"


def on_cpu(rank, world_size):
    return Process(rank, world_size, world_size, torch.device("cpu"))


@pytest.mark.parametrize("option", [BF16, FP16])
def test_a_run_is_near_the_run_in_float32(dataset, tmp_path, option):
    exact = run_ranks(fit, 1, config_of(dataset, tmp_path / "32", *BOTH))[0][0]
    rough = run_ranks(fit, 1, config_of(dataset, tmp_path / "16", *BOTH, option))[0][0]
    assert exact != rough
    np.testing.assert_allclose(rough, exact, atol=0.02)


@pytest.mark.parametrize("options", [[BF16], [FP16], [BF16, FP16]], ids=str)
def test_a_resumed_run_has_the_losses_and_weights_of_an_undisturbed_one(dataset, tmp_path, options):
    whole = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *BOTH, *options))[0]
    config = config_of(dataset, tmp_path / "cut", *BOTH, *options)
    cut = run_ranks(fit_partly_then_resume, 1, config, 5)[0]
    assert cut[0] == whole[0][5:]
    for name, values in whole[2].items():
        np.testing.assert_array_equal(cut[2][name], values)


def trained_and_scored(rank, world_size, config):
    """Results of a run, and the scores of the same weights by a float32 model."""
    process, folder = on_cpu(rank, world_size), config.run_dir
    Trainer(config, process).fit()
    results, scores = [], []
    for each in (config, with_overrides(config, ["trainer.precision=fp32"])):
        save_config(each, folder / "config.yaml")
        results.append(evaluate(folder, process))
        scores.append(load_predictions(folder / "predictions" / "test").score)
    return results, scores


def test_a_bfloat16_run_is_scored_in_float32(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *BOTH, BF16)
    results, scores = run_ranks(trained_and_scored, 1, config)[0]
    np.testing.assert_array_equal(*scores)
    assert len(np.unique(scores[0])) > 350  # of 400: float32 scores have hardly any ties
    assert [each.precision for each in results] == ["bf16", "fp32"]
    saved = read_index(Checkpoints(config.run_dir / "checkpoints").best())
    floats = {entry["dtype"] for name, entry in saved.items() if name.startswith("model.")}
    assert floats <= {"float32", "int64", "bool"}


@pytest.mark.parametrize("weighting", ["gradnorm", "uncertainty"])
def test_several_labels_train_in_bfloat16_with_learned_weights(tmp_path, weighting):
    labelled_dataset(tmp_path / "data", rows=600)
    options = [f"objective.weighting={weighting}", "trainer.epochs=1", "trainer.log_every=1"]
    exact, rough = (
        run_ranks(fit, 1, labelled_config(tmp_path / "data", tmp_path / name, *options, *more))[0]
        for name, more in (("32", []), ("16", [BF16]))
    )
    np.testing.assert_allclose(rough[0], exact[0], atol=0.05)
    assert exact[0] != rough[0]


def started(rank, world_size, config):
    Trainer(config, on_cpu(rank, world_size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.precision=tf32"], "precision=tf32 needs a GPU"),
        (
            [FP16, "embeddings.optimizer=adam"],
            "embeddings.dtype=fp16 needs embeddings.optimizer=rowwise_adagrad on a CPU; adam",
        ),
        (
            ["embeddings.comms=fp16", "embeddings.optimizer=adam"],
            "embeddings.comms=fp16 needs embeddings.optimizer=rowwise_adagrad on a CPU",
        ),
        (
            ["embeddings.sharding={user_id: row_wise}", "embeddings.optimizer=adam"],
            "embeddings.sharding=.* needs embeddings.optimizer=rowwise_adagrad on a CPU",
        ),
    ],
)
def test_what_a_cpu_does_not_compute_is_refused(dataset, tmp_path, options, message):
    with pytest.raises(AssertionError, match=message):
        run_ranks(started, 1, config_of(dataset, tmp_path, *options))


def test_tables_that_fbgemm_does_not_train_are_refused(dataset, tmp_path):
    message = "embeddings.dtype: must be fp32 or fp16: FBGEMM has no kernel that trains bf16 tables"
    with pytest.raises(ValueError, match=message):
        config_of(dataset, tmp_path, "embeddings.dtype=bf16")


def resumed_with(rank, world_size, config, *overrides):
    """Trains one epoch, then continues the run with other options."""
    Trainer(config, on_cpu(rank, world_size)).fit()
    trainer = Trainer(with_overrides(config, overrides), on_cpu(rank, world_size))
    return trainer.fit().losses


def test_a_run_may_go_on_in_another_precision_but_not_with_tables_of_another_type(
    dataset, tmp_path
):
    config = config_of(dataset, tmp_path / "a", "trainer.epochs=1")
    assert run_ranks(resumed_with, 1, config, BF16, "trainer.epochs=2")[0]
    config = config_of(dataset, tmp_path / "b", "trainer.epochs=1")
    message = r"weight is float32 there and float16 here. Keep embeddings.dtype, or start"
    with pytest.raises(AssertionError, match=message):
        run_ranks(resumed_with, 1, config, FP16, "trainer.epochs=2")


def warmly_started(rank, world_size, source, config):
    """Reports, and the user table, of a run that starts with the weights of another."""
    Trainer(source, on_cpu(rank, world_size)).fit()
    trainer = Trainer(config, on_cpu(rank, world_size))
    reports = load_weights(
        Checkpoints(source.run_dir / CHECKPOINTS).best(), trainer.model, strict=True
    )
    tables = []
    for run in (Trainer(source, on_cpu(rank, world_size)), trainer):
        if run is not trainer:
            run.resume()
        name = "ranker.embeddings.ebc.embedding_bags.user_id.weight"
        tables.append(run.model.state_dict()[name].local_shards()[0].tensor.numpy().copy())
    return reports, tables


def test_a_warm_start_converts_tables_and_reports_it(dataset, tmp_path):
    source = config_of(dataset, tmp_path / "32", "trainer.epochs=1")
    config = config_of(dataset, tmp_path / "16", FP16)
    reports, (exact, half) = run_ranks(warmly_started, 1, source, config)[0]
    converted = [each.name.split(".")[-2] for each in reports if each.converted]
    assert sorted(converted) == ["genre", "item_id", "user_id"]
    assert {each.action for each in reports} == {"taken"}
    np.testing.assert_array_equal(half, exact.astype(np.float16))
