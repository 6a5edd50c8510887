"""Scores of the serving model against those of the trained one."""

import pytest
import torch

from msrec.data.loading.batch import EntityVectors
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import make_backbone
from msrec.model.layers.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.meta import MetaOptions, ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch, KnowledgeParts
from msrec.model.serving_model import (
    ServingModel,
    ServingScenarioMeta,
    knowledge_rows,
    knowledge_widths,
)

B, F, H, D, U, I = 30, 3, 2, 4, 7, 5  # noqa: E741 - rows, features, histories, sizes
USER_DIM, ITEM_DIM = 9, 6


def moments(size):
    return torch.randn(size), torch.rand(size) + 0.5


def moved(model):
    """Moves parameters away from their initial values, because some are zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def trained(scenarios, parts, width=5, fusion="add", residual=True):
    """The dense part of a model with some of the modules that read LLM vectors."""
    torch.manual_seed(0)
    interaction = Interaction(F + H, D, num_dense=2, bottom_dims=[3], mode="concat")
    user, item = moments(USER_DIM), moments(ITEM_DIM)
    made = {
        "user_feature": lambda: KnowledgeFeature(*user, kind="experts"),
        "item_feature": lambda: KnowledgeFeature(*item, kind="concat", dim=3),
        "match": lambda: KnowledgeMatch(user, item, 4, dropout=0.0),
    }
    features = {name: make() for name, make in made.items() if name in parts}
    size = interaction.out_dim + sum(part.out_dim for part in features.values())
    options = MetaOptions(rank=4, width=width, num_layers=2)
    made = {
        "user_meta": lambda: UserMeta(size, *user, options, residual),
        "item_meta": lambda: UserMeta(size, *item, options),
        "scenario_meta": lambda: ScenarioMeta(size, torch.randn(scenarios, 8), 2, options, fusion),
    }
    metas = {name: make() for name, make in made.items() if name in parts}
    layout = FeatureLayout(tuple("abcde"), D, interaction.dense_dim)
    backbone = make_backbone("mmoe", BackboneShape(size, scenarios, 2, layout))
    return moved(DenseArch(interaction, backbone, KnowledgeParts(**metas, **features)))


@pytest.mark.parametrize("scenarios", [3, 8])  # up to rank + 1, each one's layers are made
@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("user_meta",),
        ("user_meta", "item_meta", "scenario_meta"),
        ("user_feature", "item_feature", "match"),
        ("user_meta", "scenario_meta", "item_feature", "match"),
    ],
)
def test_precomputed_rows_give_the_scores_of_the_vectors(scenarios, parts):
    over = trained(scenarios, parts)
    check(over, scenarios)


def test_precomputed_rows_of_layers_on_all_of_x():
    check(trained(3, ("user_meta", "scenario_meta"), width=None), 3)


def test_precomputed_rows_with_another_fusion_and_without_residual():
    check(trained(3, ("user_meta", "scenario_meta"), fusion="gate", residual=False), 3)


def check(over, scenarios):
    user = (torch.randn(U, USER_DIM), (torch.arange(U) % 3 != 1).float())
    item = (torch.randn(I, ITEM_DIM), (torch.arange(I) % 2).float())
    places = torch.randint(U, (B,)), torch.randint(I, (B,))
    known = [
        EntityVectors(torch.arange(len(has)), vectors, has, place)
        for (vectors, has), place in zip((user, item), places, strict=True)
    ]
    sums, lengths = torch.randn(B, F + H, D), torch.randint(0, 4, (B, F)).float()
    vectors = torch.cat([sums[:, :F] / lengths.clamp(min=1).unsqueeze(2), sums[:, F:]], dim=1)
    dense, scenario = torch.randn(B, 2), torch.randint(scenarios, (B,))
    with torch.no_grad():
        logits = over(vectors, dense, scenario, torch.ones(B), *known)
        rows = [
            knowledge_rows(over, side, *of)[place]
            for side, of, place in zip(("user", "item"), (user, item), places, strict=True)
        ]
        assert [part.shape[1] for part in rows] == [
            knowledge_widths(over, side).total for side in ("user", "item")
        ]
        found = ServingModel(over, F, H, D)(
            torch.cat([sums.flatten(1), *rows], dim=1), lengths, dense, scenario
        )
    assert logits[:, 0].std() > 0.1
    torch.testing.assert_close(found, torch.sigmoid(logits[:, 0]), atol=2e-6, rtol=1e-5)


def test_few_scenarios_keep_their_layers_and_many_their_codes():
    few, many = (
        ServingScenarioMeta(ScenarioMeta(6, torch.randn(count, 8), 1, MetaOptions(4, 3)))
        for count in (5, 6)
    )
    assert few.has_layers
    assert not many.has_layers
    assert {len(weight) for weight in few.weights} == {5}


def test_learned_vectors_cannot_be_served():
    over = trained(3, ("user_meta",))
    over.learned_users = torch.nn.Embedding(U, USER_DIM)
    with pytest.raises(ValueError, match="llm.control must not be learned"):
        ServingModel(over, F, H, D)
