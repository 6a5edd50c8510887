"""Tests of `msrec explain`: each number against a slow computation; terminal and page."""

import io
from contextlib import nullcontext
from functools import wraps
from inspect import signature

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset, tiny_store
from trainings import BOTH, config_of

from msrec.data.llm.store import KnowledgeStore
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.explanations import explain as engine
from msrec.launch.explanations import explain as module
from msrec.launch.explanations.explain import Explainer
from msrec.launch.explanations.explanation_file import (
    VARIANTS,
    load_explanations,
    save_explanation,
    user_file,
)
from msrec.launch.reporting.report import write_report
from msrec.launch.training.trainer import Trainer
from msrec.tools import explain as command

pytestmark = pytest.mark.slow

OPTIONS = [*BOTH, "meta.rank=3", "meta.num_layers=2", "trainer.epochs=1", "run_id=knowing"]


def train_and_judge(rank, world_size, config):
    save_config(config, config.run_dir / "config.yaml")
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    Trainer(config, process).fit()
    evaluate(config.run_dir, process)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    dataset = tiny_dataset(folder / "tiny")
    tiny_store(dataset, folder / "store")
    for options in (OPTIONS, ["run_id=bare", "trainer.epochs=1"]):
        run_ranks(train_and_judge, 1, config_of(dataset, folder, *options))
    return folder / "knowing"


ALONE = Process(0, 1, 1, torch.device("cpu"))


def in_rank(check):
    """Runs a test in a forked rank with a process group; a failed assert is passed on."""

    @wraps(check)
    def test(run):
        run_ranks(lambda rank, world_size: check(run, Explainer(run, ALONE)), 1)

    test.__signature__ = signature(lambda run: None)
    return test


def printed(run, users, scenario=False):
    """Returns the output of the command."""

    def work(rank, world_size):
        engine.process_group = lambda device: nullcontext(ALONE)
        console = Console(file=io.StringIO(), width=160)
        command.explain(run, users, scenario, "test", 3, console)
        return console.file.getvalue()

    return run_ranks(work, 1)[0]


@pytest.fixture(autouse=True)
def no_llm(monkeypatch):
    """Replaces the prompts, which need a tokenizer; `msrec encode --show` tests them."""

    def prompts(config, level):
        names = {"user": [f"u{i}" for i in range(40)], "scenario": ["search", "feed", "shop"]}
        return {name: f"prompt of {name}" for name in names[level]}

    monkeypatch.setattr(module, "prompts_by_key", prompts)


@in_rank
def test_scores_equal_the_predictions_and_those_of_a_model_without_knowledge(run, explainer):
    found = explainer.user("u7")
    predictions = pq.read_table(run / "predictions/test/part-00000.parquet").to_pylist()
    own = {row["row_id"]: row for row in predictions if row["user"] == "u7"}
    assert {row.row_id for row in found.rows} == set(own)
    assert len(own) > 3
    for row in found.rows:
        assert row.score == pytest.approx(own[row.row_id]["score"], abs=1e-6)
        assert row.label == own[row.row_id]["label"]
    # Slowly: a store whose vectors are all the mean, a buffer whose rows are all the mean.
    rows = np.array([row.row_id for row in found.rows])
    batch = explainer.loader.batch_of(rows)
    mean = torch.from_numpy(explainer.knowledge.user.mean)
    batch.user_vectors.vectors[:] = mean.to(batch.user_vectors.vectors.dtype)
    torch.testing.assert_close(
        torch.tensor([row.without_user for row in found.rows]), explainer._score(batch)
    )
    meta = explainer.dense_arch.scenario_meta
    kept = meta.knowledge.clone()
    meta.knowledge[:] = kept.mean(dim=0)
    without_both = explainer._score(batch)
    meta.knowledge[:] = kept
    torch.testing.assert_close(torch.tensor([row.without_both for row in found.rows]), without_both)
    again = explainer.user("u7")
    assert [row.score for row in again.rows] == [row.score for row in found.rows]
    assert found.losses().keys() == VARIANTS.keys()
    p = np.array([row.score for row in found.rows])
    label = np.array([row.label for row in found.rows])
    loss = -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))
    assert found.losses()["score"] == pytest.approx(loss)


def generated(layer, code):
    """All weights and biases of a layer for one code, summed one by one."""
    weight = sum(z * layer.weight[r] for r, z in enumerate(code))
    bias = sum(z * layer.bias[r] for r, z in enumerate(code))
    return torch.cat([weight.flatten(), bias]).detach().numpy()


@in_rank
def test_distances_equal_those_of_layers_generated_one_by_one(run, explainer):
    meta = explainer.dense_arch.user_meta
    vectors, has = explainer.knowledge.user.gather(torch.arange(40))
    codes = meta.reducer(vectors, has)
    found = explainer.user("u3")
    assert [layer.layer for layer in found.layers] == ["layer 1", "layer 2"]
    for layer, reported in zip(meta.layers, found.layers, strict=True):
        every = np.stack([generated(layer, code) for code in codes])
        average = every.mean(axis=0)
        distances = np.linalg.norm(every - average, axis=1)
        expected = distances[3] / np.linalg.norm(average)
        assert reported.distance == pytest.approx(expected, rel=1e-4)
        assert reported.rank == pytest.approx((distances < distances[3]).mean())


@in_rank
def test_scenarios_are_compared_by_their_states_and_their_layers(run, explainer):
    found = explainer.scenarios()
    assert found.names == ["search", "feed", "shop"]
    assert found.prompts == [f"prompt of {name}" for name in found.names]
    assert found.texts == [None] * 3
    store = KnowledgeStore.open(run.parent / "store/scenario")
    states = store.vectors.astype(np.float64)
    np.testing.assert_allclose(found.states, cosines(states), atol=1e-5)
    np.testing.assert_allclose(
        found.states_centred, cosines(states - states.mean(axis=0)), atol=1e-5
    )
    meta = explainer.dense_arch.scenario_meta
    codes = meta.reducer(meta.knowledge)
    assert list(found.layers) == ["layer 1", "layer 2", "head"]
    for layer, name in zip([*meta.layers, meta.head], found.layers, strict=True):
        every = np.stack([generated(layer, code) for code in codes]).astype(np.float64)
        np.testing.assert_allclose(found.layers[name], cosines(every), atol=1e-5)
        centred = cosines(every - every.mean(axis=0))
        np.testing.assert_allclose(found.layers_centred[name], centred, atol=1e-3)


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@in_rank
def test_a_user_without_a_vector_has_no_neighbours(run, explainer):
    found = explainer.user("u39")
    assert not found.has_vector
    assert found.nearest == []
    assert found.training_rows > 0


@pytest.mark.parametrize(
    ("name", "users", "message"),
    [
        ("knowing", ["nobody"], "must hold the user 'nobody'; it is not among 40 users"),
        ("bare", ["u1"], "must have meta.user=true, meta.scenario=true or interest.enabled=true"),
        ("knowing", [], "must be asked something"),
    ],
)
def test_requests_that_cannot_be_explained_are_refused(run, name, users, message):
    with pytest.raises(AssertionError, match=message):
        printed(run.parent / name, users)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="must be a run folder"):
        printed(tmp_path, ["u1"])


def test_the_terminal_and_the_page_show_an_explanation(run, tmp_path):
    text = printed(run, ["u7"], scenario=True)
    for message in (
        "prompt of u7",
        "prompt of shop",
        "Nearest users by vector",
        "away from the average",
        "LLM states",
    ):
        assert message in text
    users, scenarios = load_explanations(run)
    assert [user.user for user in users] == ["u7"]
    page = write_report(tmp_path / "page.html", {"knowing": run}).read_text()
    assert "prompt of u7" in page
    assert "prompt of shop" in page
    assert f"test rows, {len(users[0].rows)} of {len(users[0].rows)}" in page
    assert page.count('"type": "heatmap"') == 2 + 2 * len(scenarios.layers)
    answered = users[0].model_copy(update={"text": "Likes <b>red</b>"})
    save_explanation(answered, user_file(run, "u7"))
    page = write_report(tmp_path / "page.html", {"knowing": run}).read_text()
    assert "Likes &lt;b&gt;red&lt;/b&gt;" in page


def test_a_key_makes_a_plain_file_name(tmp_path):
    assert user_file(tmp_path, "a/../b c").name == "user-a%2F%2E%2E%2Fb c.json"
