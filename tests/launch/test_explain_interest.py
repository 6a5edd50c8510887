"""`msrec explain` of a run with interest blocks: attention, scores without a part, the page."""

import io
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from history_rows import rows_of, slow_history
from interest_runs import MAX_LEN, SOURCES, interest_config, interest_root
from llm_data import whole
from ranks import run_ranks
from rich.console import Console
from trainings import fit

from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.explanations import explain as engine
from msrec.launch.explanations.explain import BEST_ROWS, Explainer
from msrec.launch.explanations.explanation_file import load_explanations
from msrec.launch.reporting.report import write_report
from msrec.tools import explain as command

pytestmark = pytest.mark.slow

ALONE = Process(0, 1, 1, torch.device("cpu"))
USER = "u29"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without meta networks."""
    root = tmp_path_factory.mktemp("explain-interest")
    interest_root(root)
    config = interest_config(root, "matching", "backbone.name=ple")
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    run_ranks(lambda rank, world_size: evaluate(config.run_dir, ALONE) and None, 1)
    return config.run_dir


def in_rank(check, run):
    """Runs a check in a forked rank; a failed assert is passed on."""
    run_ranks(lambda rank, world_size: check(Explainer(run, ALONE)), 1)


def explained(explainer):
    """The explanation of the user, and the batch of the rows that it explains by their history."""
    user = explainer.user(USER)
    rows = np.array([row.row_id for row in user.interest])
    return user, explainer.loader.batch_of(rows)


def test_the_best_rows_have_their_events_and_their_scores(run):
    def check(explainer):
        user, _ = explained(explainer)
        assert user.prompt is None
        predictions = pq.read_table(run / "predictions/test/part-00000.parquet").to_pylist()
        own = [row for row in predictions if row["user"] == USER]
        own.sort(key=lambda row: -row["score"])
        assert [row.row_id for row in user.interest] == [r["row_id"] for r in own[:BEST_ROWS]]
        splits = ("train", "valid", "test")
        dataset = explainer.config.dataset
        events = [
            row | {"timestamp": row["time"]} for name in splits for row in rows_of(dataset, name)
        ]
        test = rows_of(dataset, "test")
        for row, expected in zip(user.interest, own, strict=False):
            assert row.score == pytest.approx(expected["score"], abs=1e-6)
            slow = slow_history(
                test[row.row_id] | {"timestamp": test[row.row_id]["time"]}, events, MAX_LEN
            )
            names = ("feed", "shop")
            assert [(e.item, e.scenario, e.label) for e in row.events] == [
                (f"Item {item}", names[scenario], label) for item, scenario, label, _ in slow
            ]
            assert len(row.events) == MAX_LEN

    in_rank(check, run)


def test_attention_and_similarity_equal_the_formula(run):
    def check(explainer):
        user, batch = explained(explainer)
        interest = explainer.dense_arch.interest
        for at, row in enumerate(user.interest):
            bag = batch.sequence.bag[at]
            items = batch.sequence.items.values()
            for source, block in zip(
                explainer.knowledge.item_sources, interest.blocks, strict=True
            ):
                vectors = torch.from_numpy(whole(source)).float()
                q = vectors[batch.item[at]] @ block.projection
                k = vectors[items[batch.sequence.events[bag]].long()] @ block.projection
                similarity = k @ q
                other = batch.sequence.scenario[bag] != batch.scenario[at]
                penalty = block.other_scenario[batch.scenario[at]] * other
                odds = torch.exp(block.sharpness.exp() * similarity + block.position - penalty)
                weights = odds / (1 + odds.sum())
                for name, values in (("similarity", similarity), ("weight", weights)):
                    shown = [getattr(event, name)[source.name] for event in row.events]
                    np.testing.assert_allclose(shown, values.detach(), atol=1e-5)
        assert len(user.interest) == BEST_ROWS

    in_rank(check, run)


def test_scores_without_a_source_are_those_of_zero_columns(run):
    """Slowly: a block whose norm has the scale 0 and the shift 0."""

    def check(explainer):
        user, batch = explained(explainer)
        interest = explainer.dense_arch.interest
        for number, source in enumerate(SOURCES):
            norm = interest.blocks[number].norm
            state = {name: value.clone() for name, value in norm.state_dict().items()}
            with torch.no_grad():
                for parameter in norm.parameters():
                    parameter.zero_()
            shown = [row.without_source[source] for row in user.interest]
            np.testing.assert_allclose(shown, explainer._score(batch), atol=1e-6)
            norm.load_state_dict(state)
        scores = [row.score for row in user.interest]
        np.testing.assert_allclose(scores, explainer._score(batch), atol=1e-6)
        assert all(len(set(row.scores.values())) == 2 + len(SOURCES) for row in user.interest)

    in_rank(check, run)


def test_the_terminal_and_the_page_show_the_history(run, tmp_path):
    def work(rank, world_size):
        engine.process_group = lambda device: nullcontext(ALONE)
        console = Console(file=io.StringIO(), width=200)
        command.explain(run, [USER], False, "test", 3, console)
        return console.file.getvalue()

    text = run_ranks(work, 1)[0]
    for message in ("history of Item", "weight made", "similarity org/other", "without history"):
        assert message in text
    assert "No vector" not in text
    users, scenarios = load_explanations(run)
    assert scenarios is None
    assert len(users[0].interest) == BEST_ROWS
    page = write_report(tmp_path / "page.html", {"matching": run}).read_text()
    assert f"Interest of user {USER} in matching" in page
    assert page.count('"type": "bar"') == BEST_ROWS * len(SOURCES)


def test_scenarios_of_a_run_without_meta_networks_are_refused(run):
    def check(explainer):
        with pytest.raises(ValueError, match="must have meta.scenario=true"):
            explainer.scenarios()

    in_rank(check, run)
