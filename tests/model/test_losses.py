"""The loss of several labels against its formulas."""

import math

import numpy as np
import pytest
import torch
from reference_loss import weighted_bce
from torch.nn import functional

from msrec.data.labels import LabelOptions, LabelScale, make_scale
from msrec.data.schema import Schema
from msrec.model.losses import GRADNORM_STEP, LossOptions, RankLoss
from msrec.model.tasks import Task, TaskScales, make_tasks

NAN = math.nan
BINARY = [Task("click"), Task("like"), Task("share")]
NO_WEIGHTS = torch.zeros(7, 0)


def rows(num_tasks: int = 3) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    outputs, label = torch.randn(7, num_tasks), (torch.rand(7, num_tasks) > 0.5).float()
    return outputs, label, torch.rand(7), torch.randn(7, 2, 4)


def test_the_total_is_the_weighted_sum_of_the_losses_and_the_norms():
    outputs, label, weight, vectors = rows()
    loss = RankLoss(TaskScales(BINARY), LossOptions(weights=[1, 0.25, 0.5], l2=0.1))
    total, losses = loss(outputs, label, weight, NO_WEIGHTS, vectors)
    entropy = [weighted_bce(outputs[:, [k]], label[:, [k]], weight) for k in range(3)]
    norms = sum(w * v.square().sum() for w, v in zip(weight, vectors, strict=True)) / 7
    expected = entropy[0] + 0.25 * entropy[1] + 0.5 * entropy[2] + 0.1 * norms
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(losses, torch.stack(entropy))


def test_rows_without_labels_have_no_loss():
    outputs, _, weight, vectors = rows()
    total, losses = RankLoss(TaskScales(BINARY))(
        outputs, torch.zeros(7, 0), weight, NO_WEIGHTS, vectors
    )
    assert total == 0
    assert losses.tolist() == [0, 0, 0]


def test_a_missing_label_counts_neither_in_the_loss_nor_in_the_gradient():
    outputs, label, weight, vectors = rows()
    label[2, 1] = NAN
    outputs.requires_grad_()
    total, losses = RankLoss(TaskScales(BINARY))(outputs, label, weight, NO_WEIGHTS, vectors)
    total.backward()
    others = [0, 1, 3, 4, 5, 6]
    alone = weighted_bce(outputs[others][:, [1]], label[others][:, [1]], weight[others]) * 6 / 7
    torch.testing.assert_close(losses[1], alone.detach())
    assert outputs.grad is not None
    assert outputs.grad[2, 1] == 0
    assert torch.isfinite(outputs.grad).all()


def test_weights_of_labels_multiply_those_of_rows():
    outputs, label, weight, vectors = rows()
    label_weight = torch.rand(7, 3)
    _, losses = RankLoss(TaskScales(BINARY))(outputs, label, weight, label_weight, vectors)
    for task in range(3):
        expected = sum(
            weight[i]
            * label_weight[i, task]
            * functional.binary_cross_entropy_with_logits(outputs[i, task], label[i, task])
            for i in range(7)
        )
        assert losses[task].item() == pytest.approx(expected.item() / 7, rel=1e-6)


@pytest.mark.parametrize("transform", ["none", "log", "quantile"])
def test_regression_is_half_the_squared_error_of_the_standardised_value(transform):
    rng = np.random.default_rng(0)
    train = rng.exponential(20, 5000).astype(np.float32)
    options = LabelOptions(kind="regression", transform=transform, clip=(0, 60))
    scale = make_scale(train, options)
    scales = TaskScales([Task("watch", scale, options.clip, transform)])
    targets = scales.targets(torch.from_numpy(train)[:, None])
    assert abs(float(targets.mean())) < 1e-3
    assert abs(float(targets.std(correction=0)) - 1) < 1e-3
    # A score is the inverse of a target, within the values of training.
    inside = torch.tensor([[1.0], [20.0], [60.0]])
    torch.testing.assert_close(scales.scores(scales.targets(inside)), inside, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(scales.targets(inside + 60)[2], scales.targets(inside)[2])
    assert scales.scores(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [
        pytest.approx(60),
        pytest.approx(float(train.min()), abs=1e-5),
    ]
    label = torch.tensor([[5.0], [NAN], [90.0]])
    outputs = torch.tensor([[0.3], [9.0], [-1.0]])
    _, losses = RankLoss(scales)(
        outputs, label, torch.ones(3), torch.zeros(3, 0), torch.zeros(3, 1, 1)
    )
    expected = ((0.3 - scales.targets(label)[0, 0]) ** 2 + (-1 - targets.max()) ** 2) / 2 / 3
    assert losses.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_log_scale_is_that_of_log1p():
    values = np.array([0, 1, 3, 7], np.float32)
    scale = make_scale(values, LabelOptions(kind="regression", transform="log"))
    logs = np.log1p(values.astype(np.float64))
    assert (scale.mean, scale.std) == (pytest.approx(logs.mean()), pytest.approx(logs.std()))
    assert (scale.low, scale.high) == (0, 7)


@pytest.mark.parametrize("transform", ["none", "log", "quantile"])
def test_a_scale_of_counted_values_is_that_of_all_rows(transform):
    rng = np.random.default_rng(0)
    values = rng.exponential(20, 5001).round(1).astype(np.float32)
    options = LabelOptions(kind="regression", transform=transform, clip=(1, 60))
    distinct, rows = np.unique(values, return_counts=True)
    order = rng.permutation(len(distinct))
    scale = make_scale(distinct[order], options, rows[order])
    assert scale == make_scale(rng.permutation(values), options)
    clipped = values.clip(1, 60).astype(np.float64)
    knots = np.unique(np.quantile(clipped, np.linspace(0, 1, 101)).astype(np.float32))
    targets = np.log1p(clipped) if transform == "log" else clipped
    if transform == "quantile":
        targets = np.interp(clipped, scale.knots, scale.ranks)
    assert scale.mean == pytest.approx(targets.mean(), rel=1e-12)
    assert scale.std == pytest.approx(targets.std(), rel=1e-12)
    assert scale.knots == (knots.tolist() if transform == "quantile" else [])


def test_tied_quantiles_share_a_rank():
    values = np.array([0] * 50 + list(range(1, 51)), np.float32)
    scale = make_scale(values, LabelOptions(kind="regression", transform="quantile"))
    assert scale.knots == sorted(set(scale.knots))
    assert scale.knots[0] == 0
    assert scale.ranks[0] == pytest.approx(0.245)


def test_the_entire_space_is_the_product_of_probabilities():
    tasks = [Task("click"), Task("buy", parent=0), Task("return", parent=1)]
    # Rows: no click; click without purchase; purchase and return; purchase, unknown return.
    label = torch.tensor([[0, NAN, NAN], [1, 0, NAN], [1, 1, 1], [1, 1, NAN]])
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
    weight, vectors = torch.tensor([1.0, 2, 3, 4]), torch.zeros(4, 1, 1)
    loss = RankLoss(TaskScales(tasks), LossOptions(entire_space=True))
    total, losses = loss(outputs, label, weight, torch.zeros(4, 0), vectors)
    p = torch.sigmoid(outputs.double())
    click, buy, back = p[:, 0], p[:, 0] * p[:, 1], p[:, 0] * p[:, 1] * p[:, 2]
    of_click = -(torch.log(1 - click[0]) + 2 * click[1].log() + 3 * click[2].log())
    of_click = of_click - 4 * click[3].log()
    of_buy = -(torch.log(1 - buy[0]) + 2 * torch.log(1 - buy[1]) + 3 * buy[2].log())
    of_buy = of_buy - 4 * buy[3].log()
    of_back = -(torch.log(1 - back[0]) + 2 * torch.log(1 - back[1]) + 3 * back[2].log())
    expected = torch.stack([of_click, of_buy, of_back]) / 4
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(expected.sum(), outputs)
    total.backward()
    torch.testing.assert_close(outputs.grad, gradient.float(), rtol=1e-4, atol=1e-5)
    assert outputs.grad is not None
    assert outputs.grad[3, 2] == 0


def test_the_entire_space_is_finite_for_certain_outputs():
    tasks = [Task("click"), Task("buy", parent=0)]
    outputs = torch.tensor([[80.0, 80.0], [-80.0, -80.0]], requires_grad=True)
    label = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = RankLoss(TaskScales(tasks), LossOptions(entire_space=True))
    total, _ = loss(outputs, label, torch.ones(2), torch.zeros(2, 0), torch.zeros(2, 1, 1))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(outputs.grad).all()


def test_uncertainty_is_the_formula_and_is_learned():
    outputs, label, weight, vectors = rows()
    label[:3, 1] = NAN
    loss = RankLoss(TaskScales(BINARY), LossOptions(weights=[1, 2, 3], weighting="uncertainty"))
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([0.1, -0.3, 0.5]))
    total, losses = loss(outputs, label, weight, NO_WEIGHTS, vectors)
    share = torch.stack([weight.sum(), weight[3:].sum(), weight.sum()]) / 7
    s = torch.tensor([0.1, -0.3, 0.5])
    expected = (torch.tensor([1.0, 2, 3]) * (torch.exp(-s) * losses + s / 2 * share)).sum()
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    gradient = torch.tensor([1.0, 2, 3]) * (share / 2 - torch.exp(-s) * losses)
    torch.testing.assert_close(loss.log_variance.grad, gradient)


def test_gradnorm_steps_towards_equal_norms():
    _, label, weight, vectors = rows()
    vectors.requires_grad_()
    maps = torch.randn(8, 3) * torch.tensor([1.0, 10.0, 0.1])
    loss = RankLoss(TaskScales(BINARY), LossOptions(weighting="gradnorm", gradnorm_alpha=0.5))
    expected = torch.ones(3)
    first = None
    for _ in range(3):
        outputs = vectors.flatten(1) @ maps
        parts = [
            (functional.binary_cross_entropy_with_logits(o, y, reduction="none") * weight).mean()
            for o, y in zip(outputs.T, label.T, strict=True)
        ]
        norms = torch.stack(
            [torch.autograd.grad(part, vectors, retain_graph=True)[0].norm() for part in parts]
        )
        values = torch.stack(parts).detach()
        first = values if first is None else first
        rate = values / first / (values / first).mean()
        target = (expected * norms).mean() * rate**0.5
        expected = expected * (1 - GRADNORM_STEP * torch.sign(expected * norms - target))
        expected = expected * 3 / expected.sum()
        total, _ = loss(outputs, label, weight, NO_WEIGHTS, vectors)
        torch.testing.assert_close(loss.gradnorm_weights, expected)
        torch.testing.assert_close(total.detach(), (expected * values).sum())
        (gradient,) = torch.autograd.grad(total, vectors)
        vectors = (vectors - 0.5 * gradient).detach().requires_grad_()
    assert loss.gradnorm_weights[1] < 1 < loss.gradnorm_weights[2]


def test_tasks_have_the_options_of_their_labels():
    scale = LabelScale(low=0, high=9, mean=1, std=2)
    watch = LabelOptions(kind="regression", transform="none", clip=(0, 9), scale=scale)
    schema = Schema.model_construct(
        labels=["click", "buy", "watch"],
        label_options={"buy": LabelOptions(exists_where="click"), "watch": watch},
    )
    assert make_tasks(schema, ["click", "watch", "buy"]) == [
        Task("click"),
        Task("watch", scale, (0, 9), "none"),
        Task("buy", parent=0),
    ]
    assert make_tasks(schema, ["buy"]) == [Task("buy")]
    with pytest.raises(ValueError, match="'buy' must come after 'click'"):
        make_tasks(schema, ["buy", "click"])
