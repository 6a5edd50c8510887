"""Each backbone against a slow row-by-row version of its formula, and its invariants."""

import pytest
import torch
from ranks import run_ranks
from torch.nn import functional as F

from msrec.model.backbones import BACKBONES
from msrec.model.backbones.mmoe import MMoE
from msrec.model.backbones.shared_bottom import SharedBottom
from msrec.model.backbones.star import STAR
from msrec.model.groups import group_rows

IN, S, B = 6, 4, 40
SMALL = {
    "shared_bottom": {"bottom_dims": [8, 5], "tower_dims": [3]},
    "mmoe": {"num_experts": 3, "expert_dims": [8, 5], "tower_dims": [3]},
    "star": {"dims": [8, 5], "aux_dims": [4], "scenario_dim": 3},
}


def make(name, num_tasks=2, seed=0, **options):
    torch.manual_seed(seed)
    model = BACKBONES[name](IN, S, num_tasks, **{**SMALL[name], **options})
    with torch.no_grad():  # away from the ones and zeros of a fresh STAR
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for moving in model.buffers():
            moving += 0.3 * torch.rand_like(moving)
    return model


def rows(seed=1, scenarios=(0, 1, 3)):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, IN, generator=generator)
    return x, torch.tensor(scenarios)[torch.randint(0, len(scenarios), (B,), generator=generator)]


def tower(towers, x, s):
    *hidden, last = towers.layers
    for layer in hidden:
        x = F.relu(x @ layer.weight[s] + layer.bias[s])
    return x @ last.weight[s] + last.bias[s]


def slow_shared_bottom(m, x, s):
    for linear in (m.bottom[0], m.bottom[2]):
        x = F.relu(linear.weight @ x + linear.bias)
    return tower(m.towers, x, s)


def slow_mmoe(m, x, s):
    gate = F.softmax(x @ m.gates.weight[s] + m.gates.bias[s], dim=0)
    first = m.experts.first
    width = first.out_features // m.experts.num_experts
    mixed = 0
    for e in range(m.experts.num_experts):
        own = slice(e * width, (e + 1) * width)
        h = F.relu(first.weight[own] @ x + first.bias[own])
        for weight, bias in zip(m.experts.weights, m.experts.biases, strict=True):
            h = F.relu(h @ weight[e] + bias[e, 0])
        mixed = mixed + gate[e] * h
    return tower(m.towers, mixed, s)


def slow_star(m, x, s, mean=None, var=None):
    n, h = m.norm, x
    if n is not None:
        mean = n.moving_mean[s] if mean is None else mean
        var = n.moving_var[s] if var is None else var
        h = (n.shared_scale * n.own_scale[s]) * (x - mean) / (var + n.eps).sqrt()
        h = h + n.shared_shift + n.own_shift[s]
    for i, layer in enumerate(m.layers):
        h = h @ (layer.shared_weight * layer.own_weight[s]) + layer.shared_bias + layer.own_bias[s]
        h = F.relu(h) if i + 1 < len(m.layers) else h
    first, last = m.aux[0][0], m.aux[1]
    a = torch.cat([m.scenario_embedding.weight[s], x])
    return h + last.weight @ F.relu(first.weight @ a + first.bias) + last.bias


SLOW = {"shared_bottom": slow_shared_bottom, "mmoe": slow_mmoe, "star": slow_star}
PRIVATE = ("towers.", "gates.", ".own_", "scenario_embedding")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_equals_its_formula_row_by_row(name):
    model, (x, scenario) = make(name).eval(), rows()
    expected = torch.stack([SLOW[name](model, r, s) for r, s in zip(x, scenario, strict=True)])
    torch.testing.assert_close(model(x, scenario), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_equal_those_of_the_formula(name):
    model, (x, scenario) = make(name).eval(), rows()
    parameters = [x.requires_grad_(), *model.parameters()]
    expected = sum(SLOW[name](model, r, s).sin().sum() for r, s in zip(x, scenario, strict=True))
    for a, b in zip(
        torch.autograd.grad(model(x, scenario).sin().sum(), parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_scores_the_same_alone_and_in_any_batch(name):
    model, (x, scenario) = make(name).eval(), rows()
    whole = model(x, scenario)
    torch.testing.assert_close(model(x[:8], scenario[:8]), whole[:8], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(x[5:6], scenario[5:6]), whole[5:6], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("shared_bottom", {}), ("mmoe", {}), ("star", {"norm": "none"})]
)
def test_in_training_too_a_row_does_not_depend_on_others_where_the_formula_allows(name, options):
    model, (x, scenario) = make(name, **options).train(), rows()
    whole = model(x, scenario)
    torch.testing.assert_close(model(x[:8], scenario[:8]), whole[:8], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_one_scenario_never_touch_anothers_private_parameters(name):
    model, (x, _) = make(name), rows()
    model(x, torch.full((B,), 2)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if any(part in key for part in PRIVATE):
            assert not parameter.grad[[0, 1, 3]].any(), key
            assert parameter.grad[2].any(), key


def test_with_one_expert_mmoe_ignores_the_gate():
    model, (x, scenario) = make("mmoe", num_experts=1), rows()
    before = model(x, scenario)
    with torch.no_grad():
        model.gates.weight.normal_()
    torch.testing.assert_close(model(x, scenario), before)


def test_stars_main_logit_takes_both_signs_because_its_last_layer_is_linear():
    model, (x, scenario) = make("star").eval(), rows()
    groups = group_rows(scenario, S)
    before = model.main_logit(groups.sort(x), groups)
    last = model.layers[-1]
    for parameter in (last.shared_weight, last.shared_bias, last.own_bias):
        parameter.data.neg_()
    after = model.main_logit(groups.sort(x), groups)
    torch.testing.assert_close(after, -before)
    assert bool((torch.minimum(before, after) < 0).all())


def test_a_fresh_star_treats_all_scenarios_alike_but_for_the_scenario_embedding():
    model, (x, _) = STAR(IN, S), rows()
    model.eval().scenario_embedding.weight.data.zero_()
    logits = [model(x, torch.full((B,), s)) for s in range(S)]
    torch.testing.assert_close(logits[0], logits[3])


def moments(x, scenario, keep):
    own = [x[(scenario == s) & keep] for s in range(S)]
    return [o.mean(0) for o in own], [o.var(0, correction=0) for o in own]


def test_in_training_star_uses_the_moments_of_each_scenarios_real_rows():
    model, (x, scenario) = make("star").train(), rows(scenarios=(0, 1, 2, 3))
    weight = torch.ones(B)
    weight[-7:], x[-7:] = 0, 1e3
    mean, var = moments(x, scenario, weight > 0)
    expected = [slow_star(model, r, s, mean[s], var[s]) for r, s in zip(x, scenario, strict=True)]
    logits = model(x, scenario, weight)
    torch.testing.assert_close(logits[:-7], torch.stack(expected)[:-7], atol=2e-5, rtol=1e-4)


def test_stars_moving_averages_follow_batch_norm_of_each_scenario_and_only_in_training():
    model, (x, scenario) = STAR(IN, S, **SMALL["star"]), rows(scenarios=(0, 1, 2, 3))
    for _ in range(3):
        model(x, scenario)
    model.eval()(x + 5, scenario)
    for s in range(S):
        norm = torch.nn.BatchNorm1d(IN)
        for _ in range(3):
            norm(x[scenario == s])
        torch.testing.assert_close(model.norm.moving_mean[s], norm.running_mean)
        torch.testing.assert_close(model.norm.moving_var[s], norm.running_var)


@pytest.mark.parametrize("count", [0, 1])
def test_a_scenario_with_too_few_rows_keeps_its_moving_averages(count):
    model, (x, scenario) = make("star").train(), rows(scenarios=(0, 1, 3))
    scenario[:count] = 2
    before = model.norm.moving_mean[2].clone(), model.norm.moving_var[2].clone()
    logits = model(x, scenario)
    logits.sum().backward()
    assert torch.equal(model.norm.moving_mean[2], before[0])
    assert torch.equal(model.norm.moving_var[2], before[1])
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for row in range(count):
        torch.testing.assert_close(logits[row], slow_star(model, x[row], 2))


def test_star_keeps_its_digits_when_the_mean_is_large():
    model, (x, scenario) = make("star").train(), rows(scenarios=(0, 1, 2, 3))
    model.norm.moving_mean += 1000
    shifted = (x + 1000).double()
    mean, var = moments(shifted, scenario, torch.ones(B, dtype=torch.bool))
    groups = group_rows(scenario, S)
    out = groups.unsort(model.norm(groups.sort(x + 1000), groups))
    scale = model.norm.shared_scale * model.norm.own_scale
    shift = model.norm.shared_shift + model.norm.own_shift
    for row, s in enumerate(scenario):
        unit = (shifted[row] - mean[s]) / (var[s] + 1e-5).sqrt()
        expected = (scale[s] * unit + shift[s]).float()
        torch.testing.assert_close(out[row], expected, atol=1e-3, rtol=1e-3)


def star_step(rank, world_size):
    model, (x, scenario) = make("star").train(), rows()
    mine = slice(rank, None, world_size)
    weight = (torch.arange(B) < B - 5).float()
    logits = model(x[mine], scenario[mine], weight[mine])
    ((logits.sin().mean(1) * weight[mine]).sum() / len(logits)).backward()
    grads = [p.grad for p in model.parameters()]
    if world_size > 1:
        for grad in grads:
            torch.distributed.all_reduce(grad)
            grad /= world_size
    return [t.detach().numpy() for t in (logits, *model.buffers(), *grads)]


def test_star_on_two_ranks_gives_the_logits_gradients_and_averages_of_one():
    one = star_step(0, 1)
    two = run_ranks(star_step, 2)
    for rank in range(2):
        torch.testing.assert_close(two[rank][0], one[0][rank::2], atol=1e-5, rtol=1e-5)
        for a, b in zip(two[rank][1:], one[1:], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bad_sizes_and_norms_are_refused():
    with pytest.raises(ValueError, match="num_experts must be at least 1; got 0"):
        MMoE(IN, S, num_experts=0)
    with pytest.raises(ValueError, match="num_scenarios must be at least 1; got 0"):
        SharedBottom(IN, 0)
    with pytest.raises(ValueError, match="'partitioned' or 'none'; got 'batch'"):
        STAR(IN, S, norm="batch")
