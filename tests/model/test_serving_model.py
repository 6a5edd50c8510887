"""Scores of the serving model against those of the trained one."""

from types import SimpleNamespace

import pytest
import torch

from msrec.data.labels import LabelScale
from msrec.data.loading.batch import EntityVectors
from msrec.launch.serving.dense_program import export_program
from msrec.launch.serving.export_folder import ExportTable, SequenceFiles
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import make_backbone
from msrec.model.calibration import IsotonicCalibration
from msrec.model.interest.block import InterestOptions
from msrec.model.interest.histories import Histories
from msrec.model.interest.interest import Interest
from msrec.model.layers.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.meta import MetaOptions, ScenarioMeta, UserMeta
from msrec.model.metrics.combined import parse_score
from msrec.model.ranker import DenseArch, ItemInputs, KnowledgeParts
from msrec.model.score_head import ScoreHead
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS
from msrec.model.serving_model import (
    MAX_LAYERS,
    ServingModel,
    ServingScenarioMeta,
    knowledge_rows,
    knowledge_widths,
)
from msrec.model.tasks import Task, TaskScales

B, F, H, D, U, I = 30, 3, 2, 4, 7, 5  # noqa: E741 - rows, features, histories, sizes
USER_DIM, ITEM_DIM = 9, 6
MANY = MAX_LAYERS + 1  # scenarios, whose codes are kept
HEAD = ScoreHead(
    TaskScales([Task("click"), Task("watch", LabelScale(low=0, high=99, mean=2, std=0.5))]),
    IsotonicCalibration([[([0.2, 0.7], [0.1, 0.9]), None]] * MANY),
    parse_score("click^0.5 * watch", ["click", "watch"]),
)
PLACES = 5  # of a history


def moments(size):
    return torch.randn(size), torch.rand(size) + 0.5


def moved(model):
    """Moves parameters away from their initial values, because some are zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def trained(
    scenarios,
    parts,
    width=5,
    fusion="add",
    residual=True,
    cross_scenario=True,
    form="auto",
    encoder=None,
):
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
    if "interest" in parts:
        options = InterestOptions(4, cross_scenario=cross_scenario)
        features["interest"] = Interest([6, 8], PLACES, scenarios, 2, options)
    if encoder is not None:
        encoder = SEQUENCE_ENCODERS[encoder](D, PLACES, scenarios)
    appended = [*features.values(), *([] if encoder is None else [encoder])]
    size = interaction.out_dim + sum(part.out_dim for part in appended)
    options = MetaOptions(rank=4, width=width, num_layers=2, form=form)
    made = {
        "user_meta": lambda: UserMeta(size, *user, options, residual),
        "item_meta": lambda: UserMeta(size, *item, options),
        "scenario_meta": lambda: ScenarioMeta(size, torch.randn(scenarios, 8), 2, options, fusion),
    }
    metas = {name: make() for name, make in made.items() if name in parts}
    layout = FeatureLayout(tuple("abcde"), D, interaction.dense_dim)
    backbone = make_backbone("mmoe", BackboneShape(size, scenarios, 2, layout))
    parts = KnowledgeParts(**metas, **features)
    return moved(DenseArch(interaction, backbone, parts, sequence_encoder=encoder))


@pytest.mark.parametrize("scenarios", [3, MANY])
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


@pytest.mark.parametrize("scenarios", [3, MANY])
def test_precomputed_rows_of_factored_layers(scenarios):
    parts = ("user_meta", "item_meta", "scenario_meta")
    check(trained(scenarios, parts, form="factored"), scenarios)


def test_precomputed_rows_with_another_fusion_and_without_residual():
    check(trained(3, ("user_meta", "scenario_meta"), fusion="gate", residual=False), 3)


@pytest.mark.parametrize("cross_scenario", [True, False])
def test_interest_blocks_give_the_scores_of_the_trained_model(cross_scenario):
    check(trained(3, ("user_meta", "interest"), cross_scenario=cross_scenario), 3)


@pytest.mark.parametrize("encoder", SEQUENCE_ENCODERS)
@pytest.mark.parametrize("parts", [(), ("interest", "user_meta")])
def test_sequence_encoders_give_the_scores_of_the_trained_model(encoder, parts):
    check(trained(3, parts, encoder=encoder), 3)


def item_inputs(over, scenarios):
    """Vectors of 9 items and an empty one, and 4 histories, one of them empty."""
    sources, learned = (), None
    if over.interest is not None:
        sources = [torch.nn.functional.normalize(torch.randn(10, dim), dim=1) for dim in (6, 8)]
    if over.sequence_encoder is not None:
        learned = torch.randn(10, D)
    for vectors in (*sources, *([] if learned is None else [learned])):
        vectors[[3, 9]] = 0
    empty = torch.arange(PLACES) < torch.tensor([[0], [2], [5], [4]])
    events = torch.randint(9, (4, PLACES)).masked_fill(empty, 9)
    scenario = torch.randint(scenarios, (4, PLACES)).masked_fill(empty, -1)
    label = torch.randint(2, (4, PLACES)).float().masked_fill(empty, 0)
    candidate, bag = torch.randint(10, (B,)), torch.randint(4, (B,))
    return ItemInputs(Histories(candidate, events, scenario, label, bag), sources, learned)


def exported(model, inputs):
    """The model as a program of torch.export, as an export has it."""
    tables = [
        ExportTable(name="a", rows=9, dim=table.shape[1], kind="float16", features=[])
        for table in inputs[-1][5:]
    ]
    sequence = SequenceFiles(
        **{"tables": tables, "protocol": "stream", "events": "all", "max_len": PLACES},
        **{"num_events": 9, "history_bytes": 1},
    )
    manifest = SimpleNamespace(sequence=sequence, pooled_width=inputs[0].shape[1])
    return export_program(model, manifest, num_dense=2).module()


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
        reads_items = over.interest is not None or over.sequence_encoder is not None
        items = item_inputs(over, scenarios) if reads_items else None
        logits = over(vectors, dense, scenario, torch.ones(B), *known, items)
        rows = [
            knowledge_rows(over, side, *of)[place]
            for side, of, place in zip(("user", "item"), (user, item), places, strict=True)
        ]
        assert [part.shape[1] for part in rows] == [
            knowledge_widths(over, side).total for side in ("user", "item")
        ]
        inputs = (torch.cat([sums.flatten(1), *rows], dim=1), lengths, dense, scenario)
        model = ServingModel(over, HEAD, F, H, D).eval()
        if items is not None:
            (candidate, events, of_event, label, bag), sources, learned = items
            tables = [*sources, *([] if learned is None else [learned])]
            inputs += ((candidate, bag, events, of_event, label, *tables),)
            program = exported(model, inputs)
            torch.testing.assert_close(program(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)
        found = model(*inputs)
    assert logits[:, 0].std() > 0.1
    torch.testing.assert_close(found, HEAD(logits, scenario), atol=1e-5, rtol=1e-4)


def test_few_scenarios_keep_their_layers_and_many_their_codes():
    few, many = (
        ServingScenarioMeta(ScenarioMeta(6, torch.randn(count, 8), 1, MetaOptions(4, 3)))
        for count in (MAX_LAYERS, MAX_LAYERS + 1)
    )
    assert few.has_layers
    assert not many.has_layers
    assert {len(weight) for weight in few.weights} == {MAX_LAYERS}


def test_learned_vectors_cannot_be_served():
    over = trained(3, ("user_meta",))
    over.learned_users = torch.nn.Embedding(U, USER_DIM)
    with pytest.raises(ValueError, match="llm.control must not be learned"):
        ServingModel(over, HEAD, F, H, D)
