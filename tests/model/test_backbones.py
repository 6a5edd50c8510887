"""Backbones against the slow versions of their formulas, and invariants that hold for all."""

import pytest
import torch
from ranks import run_ranks
from reference_loss import weighted_bce
from zoo import B, T, Whole, formula, make, rows, shape, whole_rows

from msrec.model.backbones import BACKBONES, make_backbone
from msrec.model.layers import row_groups

pytestmark = pytest.mark.slow

METAS = ["bare", "user", "scenario", "both"]


def row_by_row(name, model, x, scenario):
    slow = formula(name).slow
    return torch.stack([slow(model, r, int(s)) for r, s in zip(x, scenario, strict=True)])


CASES = [(n, v) for n in BACKBONES for v in [{}, *formula(n).variants]]
ONE_LABEL = [name for name in BACKBONES if name != "esmm"]


@pytest.mark.parametrize(
    ("name", "num_tasks", "options"),
    [(n, t, v) for n, v in CASES for t in (1, T) if t > 1 or n in ONE_LABEL],
)
def test_a_backbone_equals_its_formula_row_by_row(name, num_tasks, options):
    model, (x, scenario) = make(name, num_tasks=num_tasks, **options).eval().double(), rows()
    expected = row_by_row(name, model, x.double(), scenario)
    torch.testing.assert_close(model(x.double(), scenario), expected, atol=1e-9, rtol=1e-9)
    assert expected.std(0).min() > 1e-3  # the rows differ, so that equality says something


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_equal_those_of_the_formula(name, options):
    model, (x, scenario) = make(name, **options).eval().double(), rows(scenarios=(0, 1, 2, 3))
    x = x.double().requires_grad_()
    parameters = [x, *model.parameters()]
    expected = row_by_row(name, model, x, scenario).sin().sum()
    for a, b in zip(
        torch.autograd.grad(model(x, scenario).sin().sum(), parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_row_scores_the_same_alone_and_in_any_batch(name):
    model, (x, scenario) = make(name).eval(), rows()
    whole = model(x, scenario)
    torch.testing.assert_close(model(x[:8], scenario[:8]), whole[:8], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(x[5:6], scenario[5:6]), whole[5:6], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_in_training_a_row_does_not_depend_on_others_if_the_formula_allows(name):
    alone, (x, scenario) = formula(name).alone, rows()
    whole = make(name, **alone).train()(x, scenario)
    part = make(name, **alone).train()(x[:8], scenario[:8])
    torch.testing.assert_close(part, whole[:8], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_one_scenario_never_touch_anothers_private_parameters(name):
    model, (x, _) = make(name), rows()
    model(x, torch.full((B,), 2)).sum().backward()
    private = formula(name).private
    names = [key for key, _ in model.named_parameters()]
    assert all(any(part in key for key in names) for part in private)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        if any(part in key for part in private):
            assert not parameter.grad[[0, 1, 3]].any(), key
            assert parameter.grad[2].any(), key


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_has_a_gradient_with_200_mostly_empty_scenarios(name):
    torch.manual_seed(0)
    model = make_backbone(name, shape(200), **formula(name).options)
    x, scenario = rows(scenarios=(7, 150))
    model(x, scenario).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("name", BACKBONES)
def test_an_exported_program_gives_the_same_logits_for_any_number_of_rows(name, meta):
    whole, given = Whole(name, meta).eval(), whole_rows()
    rows_dim = torch.export.Dim("rows", min=2, max=1 << 20)
    users_dim = torch.export.Dim("users", min=2, max=1 << 20)
    shapes = [{0: rows_dim}] * 3 + [{0: users_dim}, {0: rows_dim}, {0: users_dim}]
    program = torch.export.export(whole, given, dynamic_shapes=tuple(shapes)).module()
    torch.testing.assert_close(program(*given), whole(*given), atol=1e-5, rtol=1e-5)
    fewer = [part[:5] for part in given[:3]] + [given[3], given[4][:5], given[5]]
    torch.testing.assert_close(program(*fewer), whole(*fewer), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_an_exported_program_that_sorts_rows_gives_the_same_logits(name, monkeypatch):
    monkeypatch.setattr(row_groups, "MAX_SPARE_PRODUCTS", 0)
    model, (x, scenario) = make(name).eval(), rows()
    dims = {0: torch.export.Dim("rows", min=2, max=1 << 20)}
    program = torch.export.export(model, (x, scenario), dynamic_shapes=(dims, dims)).module()
    torch.testing.assert_close(program(x, scenario), model(x, scenario), atol=1e-5, rtol=1e-5)


def steps(rank, world_size, name):
    """Logits of this rank's rows, and gradients and buffers after one step of each variant."""
    results = []
    for meta in METAS:
        whole = Whole(name, meta).train()
        x, scenario, weight, knowledge, index, has = whole_rows()
        half = len(x) // world_size
        # Rank 0 has scenarios 0 and 1 only.
        mine = scenario.argsort(stable=True)[rank * half : (rank + 1) * half]
        logits = whole(x[mine], scenario[mine], weight[mine], knowledge, index[mine], has)
        label = (index[mine] % 2).float().unsqueeze(1).expand(-1, T)
        weighted_bce(logits, label, weight[mine]).backward()
        grads = [p.grad for p in whole.parameters()]
        if world_size > 1:
            for grad in grads:
                torch.distributed.all_reduce(grad)
                grad /= world_size
        results.append([t.detach().numpy() for t in (logits, *whole.buffers(), *grads)])
    return results


@pytest.mark.parametrize("name", BACKBONES)
def test_two_ranks_give_the_logits_gradients_and_buffers_of_one(name):
    two = run_ranks(steps, 2, name)
    for number, expected in enumerate(steps(0, 1, name)):
        halves = [two[rank][number] for rank in range(2)]
        logits = torch.cat([torch.from_numpy(half[0]) for half in halves])
        torch.testing.assert_close(logits, torch.from_numpy(expected[0]), atol=1e-5, rtol=1e-5)
        for half in halves:
            for a, b in zip(half[1:], expected[1:], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_with_one_expert_mmoe_ignores_the_gate():
    model, (x, scenario) = make("mmoe", num_experts=1), rows()
    before = model(x, scenario)
    with torch.no_grad():
        model.gates.weight.normal_()
    torch.testing.assert_close(model(x, scenario), before)


def test_a_bad_size_is_refused_with_the_name_of_the_backbone():
    with pytest.raises(ValueError, match="backbone mmoe: num_experts must be at least 1; got 0"):
        make("mmoe", num_experts=0)
    with pytest.raises(ValueError, match="num_scenarios must be at least 1; got 0"):
        make_backbone("shared_bottom", shape(0))
