"""Runs whose model looks up LLM vectors itself: equal to those whose batches bring them."""

import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store
from trainings import BOTH, config_of

from msrec.data.schema import load_schema
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.explanations import explain
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.training.trainer import Trainer
from msrec.tools.planner.sources.run_memory import tables_and_dense

pytestmark = pytest.mark.slow

OPTIONS = [*BOTH, "meta.item=true", "llm_feature.kind=match", "trainer.epochs=1"]
DEVICE = "llm.vectors_on=device"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny", rows=600), folder / "store")
    return folder / "tiny"


def trained(rank, world_size, config):
    """Weights of the dense part and scores; those of a user's rows that are explained."""
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    if rank == 0:
        save_config(config, config.run_dir / "config.yaml")
    trainer = Trainer(config, process)
    trainer.fit()
    state = trainer.model.state_dict()
    weights = {name: state[name].numpy() for name in state if ".over." in name}
    evaluate(config.run_dir, process)
    if rank > 0:
        return None  # rank 0 commits the predictions
    scores = load_predictions(config.run_dir / "predictions" / "test").score
    explained = None
    if world_size == 1:
        # The prompts, which need a tokenizer, are left out.
        explain.prompts_by_key = lambda config, level: dict.fromkeys(
            ["search", "feed", "shop"] if level == "scenario" else [f"u{i}" for i in range(40)], ""
        )
        explained = explain.Explainer(config.run_dir, process).user("u7").rows
    return weights, scores, explained


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_run_equals_one_whose_batches_bring_the_vectors(dataset, tmp_path, ranks):
    configs = [
        config_of(dataset, tmp_path / on, *OPTIONS, *more)
        for on, more in (("host", []), ("device", [DEVICE]))
    ]
    host, device = (run_ranks(trained, ranks, config)[0] for config in configs)
    assert host[0].keys() == device[0].keys()
    for name, values in host[0].items():
        np.testing.assert_array_equal(device[0][name], values)
    np.testing.assert_array_equal(device[1], host[1])
    if ranks == 1:
        ours, theirs = ([(row.score, row.without_user) for row in of[2]] for of in (device, host))
        assert len(ours) > 3
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # the mean vector as float32, not 16


def test_a_batch_then_brings_no_vectors_and_the_plan_counts_those_of_the_device(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *OPTIONS, DEVICE)
    knowledge = KnowledgeInputs(config, load_schema(dataset))
    alone = Process(0, 1, 1, torch.device("cpu"))
    batch = build_loader(config, "train", alone, knowledge, 16, shuffle=False).batch_of(
        np.arange(16)
    )
    for of in (batch.user_vectors, batch.item_vectors):
        assert of.vectors.numel() == 0
        assert len(of.ids) > 1
    _, dense = tables_and_dense(config, 16)
    expected = 0
    for side in (knowledge.user, knowledge.item):
        values = side._vectors
        expected += values.nbytes + len(side._rows) * (8 + 1)
    assert dense.fixed["vectors of the LLM"] == expected
