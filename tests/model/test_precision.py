"""bfloat16 products: values and gradients near float32, and the sums that stay in float32."""

import copy

import pytest
import torch
from zoo import LAYOUT, PARENTS, S, T, formula

from msrec.data.labels import LabelScale
from msrec.data.loading.batch import EntityVectors
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import BACKBONES, make_backbone
from msrec.model.backbones.star import AdaptDHM
from msrec.model.interest.block import InterestOptions
from msrec.model.interest.histories import Histories
from msrec.model.interest.interest import Interest
from msrec.model.layers import generated_linear
from msrec.model.layers.generated_linear import GeneratedLinear, make_codes
from msrec.model.layers.interaction import Interaction
from msrec.model.layers.knowledge_reducer import KnowledgeReducer
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.precision import (
    LayerNorm,
    bfloat16_products,
    check_precision,
    softmax,
    tf32_products,
)
from msrec.model.layers.row_groups import group_rows
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.losses import LossOptions, RankLoss
from msrec.model.meta import MetaOptions, ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch, ItemInputs, KnowledgeParts
from msrec.model.sequence_encoder import EncoderOptions
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS
from msrec.model.tasks import Task, TaskScales

B, D, H, PLACES, ITEMS = 40, LAYOUT.dim, 9, 4, 8
CPU = torch.device("cpu")
TASKS = [Task("a"), Task("b", parent=0), Task("c", LabelScale(low=0, high=9, mean=2, std=0.5))]


def dense_arch(name, form, encoder):
    """A backbone with every part that reads LLM vectors or histories."""
    torch.manual_seed(0)
    interaction = Interaction(len(LAYOUT.names), D, num_dense=2, bottom_dims=[LAYOUT.start])
    moments, options = (torch.randn(H), torch.rand(H) + 0.5), MetaOptions(4, 5, form=form)
    interest = InterestOptions(4, scenario=True)
    columns = {
        "user_feature": KnowledgeFeature(*moments, kind="experts", expert_dims=[6, 3]),
        "item_feature": KnowledgeFeature(*moments, kind="concat", dim=3),
        "match": KnowledgeMatch(moments, moments, 4, dropout=0.0),
        "interest": Interest([6], PLACES, S, T, interest, torch.randn(S, H)),
    }
    sequence = SEQUENCE_ENCODERS[encoder](D, PLACES, S, EncoderOptions(1, 2, (4,)))
    size = interaction.out_dim + sequence.out_dim + sum(part.out_dim for part in columns.values())
    metas = {
        "user_meta": UserMeta(size, *moments, options, residual=form != "distinct"),
        "item_meta": UserMeta(size, *moments, options),
        "scenario_meta": ScenarioMeta(size, torch.randn(S, H), T, options),
    }
    layout = FeatureLayout(LAYOUT.names, D, LAYOUT.start)
    shape = BackboneShape(size, S, T, layout, PARENTS)
    backbone = make_backbone(name, shape, **formula(name).options)
    parts = KnowledgeParts(**metas, **columns)
    model = DenseArch(interaction, backbone, parts, 0.0, sequence)
    with torch.no_grad():  # so that parts that start at zero take part
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch():
    """Arguments of `DenseArch` but its vectors, and the arguments of the loss but its outputs."""
    torch.manual_seed(1)
    entity = EntityVectors(
        torch.arange(7), torch.randn(7, H), (torch.arange(7) % 3 > 0).float(), torch.arange(B) % 7
    )
    events = torch.randint(ITEMS + 1, (B, PLACES))
    event_scenario = torch.where(events < ITEMS, torch.randint(S, events.shape), -1)
    label = torch.randint(2, events.shape).float()
    candidate, rows = torch.randint(ITEMS, (B,)), torch.arange(B)
    histories = Histories(candidate, events, event_scenario, label, rows)
    frozen = torch.nn.functional.normalize(torch.randn(ITEMS + 1, 6))
    learned = torch.randn(ITEMS + 1, D)
    weight = (torch.arange(B) < B - 2).float()
    labels = torch.stack([torch.randint(2, (B,)).float() for _ in range(T)], dim=1)
    items = ItemInputs(histories, [frozen], learned)
    inputs = (torch.randn(B, 2), torch.randint(S, (B,)), weight, entity, entity, items)
    return inputs, (labels, weight, torch.empty(B, 0))


def step(model, weighting):
    """Loss, outputs, and all gradients, those of the embeddings first."""
    inputs, targets = batch()
    loss = RankLoss(TaskScales(TASKS), LossOptions(weighting=weighting)).train()
    torch.manual_seed(2)
    vectors = torch.randn(B, len(LAYOUT.names), D, requires_grad=True)
    outputs = model.train()(vectors, *inputs)
    total, _ = loss(outputs, *targets, vectors)
    penalty = model.backbone.penalty(outputs, targets[1])
    wrt = [vectors, *model.parameters()]
    total = total if penalty is None else total + penalty
    gradients = torch.autograd.grad(total, wrt, materialize_grads=True)
    return total.detach(), outputs.detach(), gradients


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", ["contracted", "distinct"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_step_in_bfloat16_is_near_the_step_in_float32(name, form):
    """Every backbone with all other parts, several labels and learned weights of their losses."""
    place = list(BACKBONES).index(name) + (form == "distinct")
    exact = dense_arch(name, form, list(SEQUENCE_ENCODERS)[place % len(SEQUENCE_ENCODERS)])
    weighting = ["gradnorm", "uncertainty"][place % 2]
    rough = copy.deepcopy(exact)
    rough.precision = "bf16"
    loss, outputs, gradients = step(exact, weighting)
    total, values, others = step(rough, weighting)
    assert not torch.equal(values, outputs)  # it did compute in bfloat16
    assert {each.dtype for each in (total, values, *others)} == {torch.float32}
    assert abs(total - loss) < 0.01 * loss
    assert distance(values, outputs) < 0.05
    flat, other = (torch.cat([g.flatten() for g in each]) for each in (gradients, others))
    assert distance(other, flat) < 0.1


def test_outside_of_training_a_bfloat16_model_is_the_float32_model():
    exact = dense_arch("mmoe", "contracted", "din").eval()
    rough, (inputs, _) = copy.deepcopy(exact), batch()
    rough.precision = "bf16"
    vectors = torch.randn(B, len(LAYOUT.names), D)
    torch.testing.assert_close(rough(vectors, *inputs), exact(vectors, *inputs), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 7, 4096], ids=lambda rows: f"chunks of {rows}")
def test_a_contracted_layer_sums_its_gradient_in_float32(monkeypatch, rows):
    """In bfloat16 a sum of ones ends at 256, where adding 1 changes nothing."""
    monkeypatch.setattr(generated_linear, "CHUNK_ELEMENTS", 3 * 2 * rows)
    layer, x, z = GeneratedLinear(2, 5, rank=2), torch.ones(4096, 2), torch.ones(4096, 3)
    codes = make_codes(z, torch.arange(4096), "contracted")
    with bfloat16_products("cpu", enabled=True):
        y = layer(x, codes)
    (gradient,) = torch.autograd.grad(y.float().sum(), layer.weight)
    assert (y.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 4096.0))


def test_a_contracted_layer_takes_the_type_of_its_products_into_the_backward_pass():
    """Inside or outside of autocast, whatever the types of x and z are."""
    torch.manual_seed(0)
    layer, codes = GeneratedLinear(6, 4, rank=3), make_codes(torch.randn(9, 4), torch.arange(9))
    x = torch.randn(9, 6, requires_grad=True)
    exact = torch.autograd.grad(layer(x, codes).sin().sum(), [x, layer.weight])
    for dtype in (torch.float32, torch.bfloat16):
        with bfloat16_products("cpu", enabled=True):
            loss = layer(x.to(dtype), codes).float().sin().sum()
            inside = torch.autograd.grad(loss, [x, layer.weight], retain_graph=True)
        outside = torch.autograd.grad(loss, [x, layer.weight])
        for a, b, c in zip(inside, outside, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert a.dtype == torch.float32
            assert 0 < distance(a, c) < 0.02


@pytest.mark.parametrize("norm", ["layer", "partitioned"])
def test_norms_of_bfloat16_rows_are_computed_in_float32(norm):
    torch.manual_seed(0)
    rows = (100 + torch.randn(B, 6)).bfloat16()
    groups = group_rows(torch.arange(B) % 2, 2)
    module = LayerNorm(6) if norm == "layer" else PartitionedNorm(6, 2)
    arguments = () if norm == "layer" else (groups,)
    with bfloat16_products("cpu", enabled=True):
        ours = copy.deepcopy(module)(rows, *arguments)
    torch.testing.assert_close(ours, module(rows.float(), *arguments), rtol=0, atol=0)


def test_a_softmax_of_bfloat16_logits_sums_to_one():
    share = softmax(torch.randn(100, 7).bfloat16(), dim=1)
    torch.testing.assert_close(share.sum(1), torch.ones(100), rtol=1e-6, atol=0)


@pytest.mark.parametrize("part", ["reducer", "feature"])
def test_llm_vectors_are_standardised_in_float32(part):
    """Their means are large: bfloat16 has steps of 2 at 300, where these vectors differ by 1."""
    torch.manual_seed(0)
    mean, std, has = torch.full((H,), 300.0), torch.ones(H), torch.ones(7)
    vectors = 300 + torch.randn(7, H)
    if part == "reducer":
        module = KnowledgeReducer(mean, std, rank=4, flag=True)
    else:
        module = KnowledgeFeature(mean, std, kind="concat").standard
    with bfloat16_products("cpu", enabled=True):
        ours = module(vectors, has)
    torch.testing.assert_close(ours, module(vectors, has), rtol=0, atol=0)


def test_clusters_and_their_centres_are_those_of_float32():
    torch.manual_seed(0)
    exact = AdaptDHM(BackboneShape(6, 3), dims=[4]).train()
    rough, x, scenario = copy.deepcopy(exact), torch.randn(200, 6), torch.arange(200) % 3
    exact(x, scenario)
    with bfloat16_products("cpu", enabled=True):
        rough(x, scenario)
    torch.testing.assert_close(rough.moving_centres, exact.moving_centres, rtol=0, atol=0)


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match=r"precision=tf32 needs a GPU.*runs on a CPU. Use fp32 or"):
        check_precision("tf32", CPU)
    check_precision("bf16", CPU)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_without_the_precision_is_refused(monkeypatch, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match=rf"{precision} needs .* 8.0 .*Tesla T4 has 7.5. Use fp32"):
        check_precision(precision, torch.device("cuda"))
    check_precision("fp32", torch.device("cuda"))


def test_tf32_ends_with_the_training_steps():
    """Later runs of the same process, and validation, must not inherit it."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    assert before != "tf32"

    def fail():
        with tf32_products(enabled=True):
            assert matmul.fp32_precision == "tf32"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert matmul.fp32_precision == before
    with tf32_products(enabled=False):
        assert matmul.fp32_precision == before
