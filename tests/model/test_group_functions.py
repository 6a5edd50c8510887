"""Functions with gradients written by hand: against numerical gradients and autograd's own."""

import pytest
import torch

from msrec.model.embeddings import _Means
from msrec.model.layers.group_functions import (
    ExpertLinear,
    GroupedAffine,
    GroupedLinear,
    GroupedMoments,
    Permuted,
    ReLUChain,
)
from msrec.model.layers.mlp import MLP, ReLU
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers

COUNTS = [3, 0, 2]
DOUBLE = torch.float64


def doubles(*shape):
    return torch.randn(shape, dtype=DOUBLE, requires_grad=True)


CASES = {
    "permuted": lambda: (
        lambda x: Permuted.apply(x, torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])),
        [doubles(3, 4)],
    ),
    "linear": lambda: (
        lambda x, w, b: GroupedLinear.apply(x, w, b, COUNTS, DOUBLE),
        [doubles(5, 4), doubles(3, 4, 2), doubles(3, 2)],
    ),
    "chain of groups": lambda: (
        lambda x, *parameters: ReLUChain.apply(x, COUNTS, False, *parameters),
        [doubles(5, 4), doubles(3, 4, 3), doubles(3, 3), doubles(3, 3, 2), doubles(3, 2)],
    ),
    "chain with a ReLU at its end": lambda: (
        lambda x, *parameters: ReLUChain.apply(x, None, True, *parameters),
        [doubles(5, 4), doubles(4, 3), doubles(3), doubles(3, 2), doubles(2)],
    ),
    "experts side by side": lambda: (
        lambda wide, w, b: ExpertLinear.apply(
            wide.unflatten(1, (2, 4)).transpose(0, 1), w, b, DOUBLE
        ),
        [doubles(5, 8), doubles(2, 4, 3), doubles(2, 1, 3)],
    ),
    "moments": lambda: (
        lambda x: GroupedMoments.apply(
            x, torch.tensor([1.0, 0, 1, 1, 1], dtype=DOUBLE), torch.ones(3, 4, dtype=DOUBLE), COUNTS
        ),
        [doubles(5, 4)],
    ),
    "affine": lambda: (
        lambda *parts: GroupedAffine.apply(*parts, COUNTS),
        [doubles(5, 4), doubles(3, 4), doubles(3, 4), doubles(3, 4)],
    ),
    "means": lambda: (
        lambda x: _Means.apply(x, [(1, torch.tensor([0, 1, 3]))]),
        [doubles(3, 2, 4)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_numerical_ones(case):
    torch.manual_seed(0)
    function, inputs = CASES[case]()
    assert torch.autograd.gradcheck(function, inputs)


def test_groups_are_multiplied_as_one_by_one_bit_for_bit():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 8), torch.randn(3, 8, 4), torch.randn(3, 4)
    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    ours = GroupedLinear.apply(*inputs, COUNTS, torch.float32)
    parts = zip(bias.unbind(), torch.split(x, COUNTS), weight.unbind(), strict=True)
    plain = torch.cat([torch.addmm(b, rows, w) for b, rows, w in parts])
    assert torch.equal(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours.sin().sum(), inputs),
        torch.autograd.grad(plain.sin().sum(), inputs),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_the_gradient_of_experts_has_the_layout_of_their_input():
    wide = torch.randn(5, 8)
    x = wide.unflatten(1, (2, 4)).transpose(0, 1).requires_grad_()
    out = ExpertLinear.apply(x, torch.randn(2, 4, 3), torch.zeros(2, 1, 3), torch.float32)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.stride() == x.stride()


def test_relu_overwrites_what_a_layer_made_and_nothing_else():
    relu, x = ReLU(), torch.tensor([-1.0, 2.0], requires_grad=True)
    made = x * 1
    assert relu(made) is made
    assert made.tolist() == [0.0, 2.0]
    wide = (x * 1).unflatten(0, (2, 1))
    for kept in (x, wide, torch.tensor([-1.0])):
        before = kept.tolist()
        assert (relu(kept) >= 0).all()
        assert kept.tolist() == before


def of_chain_and_of_layers(monkeypatch, module, run, x):
    """Outputs and gradients of a module, with its layers as one function and one by one."""
    found = []
    for is_chain in (True, False):
        if not is_chain:
            for place in ("mlp", "scenario_layers"):
                monkeypatch.setattr(f"msrec.model.layers.{place}.can_chain", lambda x: False)
        inputs = x.clone().requires_grad_()
        out = run(inputs)
        assert (type(out.grad_fn).__name__ == "ReLUChainBackward") is is_chain
        grads = torch.autograd.grad(out.square().sum(), [inputs, *module.parameters()])
        found.append([out.detach(), *grads])
    return zip(*found, strict=True)


@pytest.mark.parametrize("has_head", [False, True])
def test_an_mlp_as_one_function_has_the_same_bits(monkeypatch, has_head):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([MLP(40, [32, 16])])
    head = torch.nn.Linear(16, 1) if has_head else None
    layers.extend([head] if has_head else [])
    x = torch.randn(500, 40)
    pairs = of_chain_and_of_layers(monkeypatch, layers, lambda x: layers[0](x, head), x)
    assert all(torch.equal(*pair) for pair in pairs)


def test_towers_as_one_function_have_the_same_bits(monkeypatch):
    torch.manual_seed(0)
    towers, groups = Towers(40, [32, 16], 4), group_rows(torch.arange(500) % 3, 4)
    x = torch.randn(500, 40)
    pairs = of_chain_and_of_layers(monkeypatch, towers, lambda x: towers(x, groups), x)
    assert all(torch.equal(*pair) for pair in pairs)
