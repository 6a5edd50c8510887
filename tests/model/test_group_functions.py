"""Functions with gradients written by hand: against numerical gradients and autograd's own."""

import pytest
import torch

from msrec.model.embeddings import _Means
from msrec.model.layers import partitioned_norm
from msrec.model.layers.group_functions import (
    ExpertLinear,
    GroupedAffine,
    GroupedBatchNorm,
    GroupedLinear,
    GroupedMoments,
    Permuted,
    ReLUChain,
)
from msrec.model.layers.mlp import MLP, ReLU
from msrec.model.layers.partitioned_norm import PartitionedNorm
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
    "batch norm": lambda: (
        lambda x, scale, shift: GroupedBatchNorm.apply(
            *(x, scale, shift, torch.zeros(4, 4, dtype=DOUBLE), torch.ones(4, 4, dtype=DOUBLE)),
            *([3, 0, 2, 1], 0.1, 1e-5),
        ),
        [doubles(6, 4), doubles(4, 4), doubles(4, 4)],
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


@pytest.mark.parametrize("counts", [[100, 3, 0, 37], [0, 0, 9], [5], [1, 1, 1], [17, 700, 33]])
def test_bfloat16_products_of_rounded_sizes_hold_the_rows_of_their_group_only(counts):
    """Against products group by group; no value of another group may enter, however large."""
    torch.manual_seed(0)
    num_groups, rows = len(counts), sum(counts)
    scale = torch.repeat_interleave(10.0 ** (3 * torch.arange(num_groups)), torch.tensor(counts))
    x = (torch.randn(rows, 8) * scale.unsqueeze(1)).bfloat16()
    weight, bias = torch.randn(num_groups, 8, 4).bfloat16(), torch.zeros(num_groups, 4).bfloat16()
    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    ours = GroupedLinear.apply(*inputs, counts, torch.bfloat16)
    grads = torch.autograd.grad(ours.float().square().sum(), inputs)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    parts = zip(exact[2].unbind(), torch.split(exact[0], counts), exact[1].unbind(), strict=True)
    plain = torch.cat([torch.addmm(b, of_group, w) for b, of_group, w in parts])
    expected = torch.autograd.grad(plain.square().sum(), exact)
    for one, other in zip([ours, *grads[:2]], [plain, *expected[:2]], strict=True):
        # In units of each group's own size.
        by_group = torch.split if len(one) == rows else lambda t, _: t.unbind()
        for mine, true in zip(by_group(one, counts), by_group(other, counts), strict=True):
            size = true.abs().max().clamp(min=1e-9) if true.numel() else 1.0
            assert torch.allclose(mine.double() / size, true / size, atol=0.03)


@pytest.mark.parametrize("counts", [[5, 0, 1, 7], [1, 2, 0, 0], [40, 3, 2, 11]])
def test_the_norm_by_torchs_kernel_is_the_formula_with_moments_by_group(counts, monkeypatch):
    """Against the path of a GPU, which takes moments of all groups at once."""
    torch.manual_seed(0)
    groups = group_rows(torch.repeat_interleave(torch.arange(4), torch.tensor(counts)), 4)
    kernel, formula = PartitionedNorm(6, 4).double(), PartitionedNorm(6, 4).double()
    for parameter in kernel.parameters():
        torch.nn.init.normal_(parameter)
    formula.load_state_dict(kernel.state_dict())
    for step in range(3):
        x = (3 + 2 * torch.randn(sum(counts), 6, dtype=DOUBLE)).requires_grad_()
        weight = None if step == 0 else torch.full((len(x),), 0.5)
        results = []
        for norm, is_sliced in ((kernel, True), (formula, False)):
            with monkeypatch.context() as patch:
                patch.setattr(partitioned_norm, "is_sliced", lambda *_, value=is_sliced: value)
                out = norm(x, groups, weight)
            grads = torch.autograd.grad(out.sin().sum(), [x, *norm.parameters()])
            results.append([out, *grads, *norm.buffers()])
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


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
