"""LLM vectors as features: against their formulas, and trained on one and two ranks."""

import numpy as np
import pytest
import torch
from ranks import run_ranks
from slow import dense, expert
from tiny import tiny_dataset, tiny_store
from torch.nn import functional as F
from trainings import config_of, fit

from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch

pytestmark = pytest.mark.slow

H, U = 6, 4


def make(**options):
    torch.manual_seed(0)
    std = torch.tensor([1.0, 2, 0, 3, 4, 5])  # a dimension that says nothing
    return KnowledgeFeature(torch.randn(H), std, **options)


def slow_vector(feature, h, has):
    inverse = [0.0 if s == 0 else 1 / s for s in (1, 2, 0, 3, 4, 5)]
    known = [(float(h[i]) - float(feature.standard.mean[i])) * inverse[i] * has for i in range(H)]
    return torch.tensor([*known, 1.0 - has])


@pytest.mark.parametrize(
    "options", [{"kind": "concat"}, {"kind": "concat", "dim": 3}, {"kind": "experts"}]
)
def test_columns_equal_the_formula_for_the_user_of_each_row(options):
    feature = make(**options)
    knowledge, index = torch.randn(U, H), torch.tensor([3, 0, 1, 1, 2])
    has = [1.0, 0.0, 1.0, 1.0]
    columns = feature(knowledge, index, torch.tensor(has))
    for row, user in enumerate(index.tolist()):
        v = slow_vector(feature, knowledge[user], has[user])
        if options["kind"] == "experts":
            gate = F.softmax(dense(feature.gate, v), dim=0)
            v = sum(gate[e] * expert(feature.experts, v, e) for e in range(4))
        elif "dim" in options:
            v = dense(feature.linear, v)
        torch.testing.assert_close(columns[row], v, atol=1e-5, rtol=1e-5)
    assert columns.shape[1] == feature.out_dim


def test_the_stored_vector_of_a_missing_user_does_not_matter():
    feature, index, has = make(kind="concat"), torch.tensor([0, 1]), torch.tensor([1.0, 0.0])
    knowledge = torch.randn(2, H)
    before = feature(knowledge, index, has)
    knowledge[1] += 100
    assert torch.equal(feature(knowledge, index, has), before)


def test_match_columns_are_products_of_both_sides():
    torch.manual_seed(1)
    match = KnowledgeMatch(
        (torch.randn(H), torch.rand(H) + 0.5), (torch.randn(3), torch.rand(3) + 0.5), 5, dropout=0.0
    )
    users = (torch.randn(U, H), torch.tensor([2, 0, 2]), torch.tensor([1.0, 1, 0, 1]))
    items = (torch.randn(2, 3), torch.tensor([1, 1, 0]), torch.tensor([1.0, 0]))
    columns = match(users, items)
    for row in range(3):
        sides = []
        for (h, index, has), standard, linear in (
            (users, match.of_user, match.user),
            (items, match.of_item, match.item),
        ):
            at = int(index[row])
            known = (h[at] - standard.mean) * standard.scale * has[at]
            sides.append(dense(linear, torch.cat([known, 1 - has[at : at + 1]])))
        torch.testing.assert_close(columns[row], sides[0] * sides[1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="dim"):
        KnowledgeMatch((torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.ones(2)), 0, 0.0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="concat or experts; got 'mean'"):
        make(kind="mean")


RUNS = {
    "concat": (["llm_feature.kind=concat"], "user_feature."),
    "experts": (["llm_feature.kind=experts"], "user_feature."),
    "of both": (["llm_feature.kind=concat", "llm_feature.of=[user, item]"], "item_feature."),
    "match": (["llm_feature.kind=match"], "match."),
    "item meta": (["meta.item=true", "meta.user=true"], "item_meta."),
    "learned": (["meta.user=true", "llm.control=learned"], "learned_users."),
    "shuffled": (["meta.user=true", "llm.control=shuffled"], "user_meta."),
}


@pytest.mark.parametrize(("options", "part"), RUNS.values(), ids=RUNS)
def test_training_on_two_ranks_is_training_on_one(tmp_path, options, part):
    dataset = tiny_dataset(tmp_path / "tiny")
    tiny_store(dataset, tmp_path / "store")
    options = [*options, "backbone.name=mlp", "trainer.max_steps=12"]
    one, two = (
        run_ranks(fit, n, config_of(dataset, tmp_path, *options, f"run_id=of-{n}")) for n in (1, 2)
    )
    np.testing.assert_allclose(one[0][0], two[0][0], atol=1e-4)
    assert any(name.startswith(f"ranker.over.{part}") for name in one[0][2])
