"""Training on several labels: ranks, resuming, accumulated and clipped gradients, the best step."""

import numpy as np
import pytest
import torch
from label_rows import LABELS, labelled_config, labelled_dataset
from ranks import run_ranks
from trainings import fit, fit_partly_then_resume

from msrec.data.schema import load_schema
from msrec.launch.build_model import build_model
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import load_results
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.trainer import Trainer
from msrec.model.distributed.optimizers import accumulator

pytestmark = pytest.mark.slow

ENTIRE_SPACE = "objective.entire_space=true"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return labelled_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=700)


def config_of(dataset, root, *options):
    return labelled_config(dataset, root, "backbone.name=mmoe", "trainer.log_every=1", *options)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
def test_two_ranks_give_the_losses_and_weights_of_one(dataset, tmp_path, weighting):
    options = (f"objective.weighting={weighting}", "objective.entire_space=true")
    one, two = (
        run_ranks(fit, ranks, config_of(dataset, tmp_path / str(ranks), *options))[0]
        for ranks in (1, 2)
    )
    np.testing.assert_allclose(one[0], two[0], atol=1e-4)
    for name, value in one[2].items():
        if ".loss." in name or name.startswith("loss."):
            np.testing.assert_allclose(value, two[2][name], atol=1e-4)
    learned = [name for name in one[2] if "loss." in name]
    expected = {"fixed": 0, "uncertainty": 1, "gradnorm": 2}
    assert len(learned) == expected[weighting]


@pytest.mark.parametrize("steps", [5, 6])
def test_a_run_resumes_between_the_batches_of_a_step(dataset, tmp_path, steps):
    options = ("trainer.accumulate=3", "trainer.max_grad_norm=0.5", "objective.weighting=gradnorm")
    whole = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *options))[0]
    config = config_of(dataset, tmp_path / "resumed", *options)
    resumed = run_ranks(fit_partly_then_resume, 1, config, steps)[0]
    assert whole[1] == resumed[1]
    for name, value in whole[2].items():
        np.testing.assert_array_equal(resumed[2][name], value, name)


def accumulate_and_clip(rank, world_size, config):
    """Trains on four batches; returns the norm of the gradients that each step used."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    optimizer = accumulator(trainer.optimizer)
    norms, step = [], optimizer._optimizer.step

    def spy(closure=None):
        step(closure)  # clips the gradients in place before Adam reads them
        gradients = [p.grad for p in optimizer.params.values() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    optimizer._optimizer.step = spy
    batches = trainer.train.batches()
    trainer.model.train()
    for _ in range(4):
        trainer.pipeline.progress(batches)
    return norms


def test_a_step_follows_every_second_batch_and_its_norm_is_clipped(dataset, tmp_path):
    options = ("trainer.accumulate=2", "trainer.max_grad_norm=0.01")
    norms = run_ranks(accumulate_and_clip, 1, config_of(dataset, tmp_path, *options))[0]
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def mean_gradient(rank, world_size, config):
    """Returns the gradient of a step over two batches, and the mean of both alone."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    optimizer = accumulator(trainer.optimizer)
    trainer.model.eval()  # no dropout; tables are not updated before the second batch
    first, second = (b for b, _ in zip(trainer.train.batches(), range(2), strict=False))
    parameters = list(optimizer.params.values())
    alone = []
    for batch in (first, second):
        loss, _ = trainer.model(batch)
        alone.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    mean = [None if a is None else (a + b) / 2 for a, b in zip(*alone, strict=True)]
    for batch_gradients in alone:
        for parameter, gradient in zip(parameters, batch_gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        optimizer.step()
    return [
        float((p.grad - g).abs().max())
        for p, g in zip(parameters, mean, strict=True)
        if g is not None
    ]


def test_a_step_has_the_mean_gradient_of_its_batches(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.accumulate=2")
    differences = run_ranks(mean_gradient, 1, config)[0]
    assert len(differences) > 5
    assert max(differences) < 1e-7


def fit_and_evaluate(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, config.run_dir / "config.yaml")
    progress = Trainer(config, process).fit().progress
    evaluate(config.run_dir, process, "valid")
    return progress.metric, progress.best_value, progress.best_step


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("gauc", max),
        ("log_loss/label=buy/all", min),
        ("spearman/label=watch/all", max),
        ("rmse/label=watch/scenario=feed", min),
        ("ndcg_by_impression/label=like/all", max),
        ("combined_gauc_by_impression/label=buy/scenario=shop", max),
    ],
)
def test_the_best_checkpoint_is_that_of_the_named_metric(dataset, tmp_path, metric, best):
    config = config_of(dataset, tmp_path, f"trainer.metric={metric}", "trainer.epochs=3")
    name, value, step = run_ranks(fit_and_evaluate, 2, config)[0]
    steps, values = load_metric_log(config.run_dir).curve("valid", name)
    assert value == best(values)
    assert step == steps[values.index(value)]
    # The exact metric of that checkpoint on the same rows.
    results = load_results(config.run_dir / "predictions/valid")
    exact = {key.removeprefix("evaluated valid/"): v for key, v, _ in results.logged_values()}
    assert exact[name] == pytest.approx(value, abs=1e-5)


def test_a_single_label_of_several_is_a_run_of_its_own(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "objective.labels=[watch]", "objective.score=null")
    name, value, _ = run_ranks(fit_and_evaluate, 1, config)[0]
    assert name == "rmse/all"
    results = load_results(config.run_dir / "predictions/valid")
    assert results.metrics.all.rmse == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective.labels=[label, absent]"], "must name labels of .* got 'absent'"),
        (["objective.weights={absent: 1}"], "got 'absent'"),
        (
            ["objective.labels=[buy, label]", "objective.score=null"],
            "'buy' must come after 'label'",
        ),
        (
            [
                "objective.labels=[label, like]",
                "objective.entire_space=true",
                "objective.score=null",
            ],
            "needs a label with `exists_where`",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(dataset, tmp_path, options, message):
    config = config_of(dataset, tmp_path, *options)
    schema = load_schema(dataset)
    with pytest.raises(ValueError, match=message):
        build_model(config, schema, KnowledgeInputs(config, schema))


def test_labels_have_the_weights_of_the_config(dataset, tmp_path):
    schema = load_schema(dataset)

    def weights(*options):
        config = config_of(dataset, tmp_path, "objective.score=null", *options)
        return build_model(config, schema, KnowledgeInputs(config, schema)).loss.weights.tolist()

    assert weights() == [1, 1, 1, 1]
    assert weights("objective.weights={label: 2, watch: 0.5}") == [2, 1, 1, 0.5]
    assert weights("objective.aux_weight=0.6") == pytest.approx([1, 0.2, 0.2, 0.2])
    mixed = ("objective.aux_weight=0.6", "objective.weights={buy: 3}")
    assert weights(*mixed) == pytest.approx([1, 0.3, 3, 0.3])
    assert weights("objective.labels=null", "objective.aux_weight=0.3") == pytest.approx(
        [1, 0.1, 0.1, 0.1]
    )
    assert weights("objective.labels=null") == [1]
    assert len(LABELS) == 4
