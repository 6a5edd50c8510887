"""Details of single backbones: STAR's norm and layers, AdaptDHM's centres, AdaSparse's pruning."""

import pytest
import torch
from ranks import run_ranks
from slow.star import moved
from zoo import IN, B, S, formula, make, rows, shape

from msrec.model.backbones.star import STAR
from msrec.model.layers.row_groups import group_rows


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
    model, (x, _) = STAR(shape(num_tasks=1)), rows()
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
    expected = [
        formula("star").slow(model, r, s, mean[s], var[s]) for r, s in zip(x, scenario, strict=True)
    ]
    logits = model(x, scenario, weight)
    torch.testing.assert_close(logits[:-7], torch.stack(expected)[:-7], atol=2e-5, rtol=1e-4)


def test_stars_moving_averages_follow_batch_norm_of_each_scenario_and_only_in_training():
    model = STAR(shape(num_tasks=1), **formula("star").options)
    x, scenario = rows(scenarios=(0, 1, 2, 3))
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
        torch.testing.assert_close(logits[row], formula("star").slow(model, x[row], 2))


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


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'partitioned' or 'none'; got 'batch'"):
        STAR(shape(), norm="batch")


def test_a_training_step_moves_adaptdhms_centres_as_in_the_formula_without_padding():
    model, (x, scenario) = make("adaptdhm").train(), rows()
    weight = torch.ones(len(x))
    weight[-6:], x[-6:] = 0, 50.0
    expected = moved(model.moving_centres.clone(), x[:-6], model.beta, model.num_passes)
    model(x, scenario, weight)
    torch.testing.assert_close(model.moving_centres, expected, atol=1e-5, rtol=1e-4)


def test_evaluation_does_not_move_adaptdhms_centres():
    model, (x, scenario) = make("adaptdhm").eval(), rows()
    before = model.moving_centres.clone()
    model(x, scenario)
    assert torch.equal(model.moving_centres, before)


def test_adaptdhm_ignores_the_scenario():
    model, (x, scenario) = make("adaptdhm").eval(), rows()
    torch.testing.assert_close(model(x, scenario), model(x, (scenario + 1) % 4))


def test_adasparses_alpha_grows_once_per_training_step_and_is_saved():
    model, (x, scenario) = make("adasparse", alpha=1.0, alpha_step=0.25), rows()
    model.train()
    model(x, scenario)
    model(x, scenario)
    model.eval()
    model(x, scenario)
    assert float(model.state_dict()["alpha"]) == 1.5


def test_adasparses_pruned_neurons_are_zero_and_none_with_eps_zero():
    x, scenario = rows()
    v = torch.linspace(-4, 4, 9)
    pruned = make("adasparse", eps=0.5)._factor(v)
    assert (pruned[:5] == 0).all()
    assert (pruned[5:] > 0).all()
    assert (make("adasparse", eps=0.0)._factor(v) > 0).all()


def test_an_invalid_form_or_eps_of_adasparse_is_refused():
    with pytest.raises(ValueError, match="binary, scaling, fusion; got 'soft'"):
        make("adasparse", form="soft")
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\); got 1"):
        make("adasparse", eps=1)
