"""Layers in a program of torch.export, which compute the same values by other products."""

import pytest
import torch
from torch import nn

from msrec.model.layers.interaction import MAX_TRACED_VECTORS, PairDots
from msrec.model.layers.row_groups import group_rows


class Grouped(nn.Module):
    """Rows times the weights of their group."""

    def __init__(self, num_groups, fan_in, fan_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_groups, fan_in, fan_out))
        self.bias = nn.Parameter(torch.randn(num_groups, fan_out))

    def forward(self, x, key):
        groups = group_rows(key, len(self.weight))
        return groups.unsort(groups.linear(groups.sort(x), self.weight, self.bias))


def traced(model, *inputs):
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=tuple([{0: rows}] * len(inputs)))


@pytest.mark.parametrize("inner", [(), (2,)])
@pytest.mark.parametrize(
    ("num_groups", "fan_out", "is_sorted"), [(3, 5, False), (1, 1, False), (50, 31, True)]
)
def test_a_traced_product_of_groups_gives_each_row_that_of_its_own(
    num_groups, fan_out, is_sorted, inner
):
    torch.manual_seed(0)
    model = Grouped(num_groups, 23, fan_out)
    x, key = torch.randn(40, *inner, 23), torch.randint(num_groups, (40,)) // 2 * 2
    program = traced(model, x[:4], key[:4])
    assert ("_grouped_mm" in str(program.graph)) == is_sorted
    for part in (slice(0, 40), slice(38, 40)):
        rows, of_rows = x[part], key[part]
        expected = torch.einsum("b...i,bio->b...o", rows, model.weight[of_rows])
        expected = expected + model.bias[of_rows].view(len(rows), *[1] * len(inner), -1)
        torch.testing.assert_close(program.module()(rows, of_rows), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_vectors", [2, 7, MAX_TRACED_VECTORS + 1])
def test_traced_dot_products_of_pairs_have_the_order_of_training(num_vectors):
    dots, vectors = PairDots(num_vectors), torch.randn(6, num_vectors, 8)
    program = traced(dots, vectors[:4]).module()
    torch.testing.assert_close(program(vectors), dots(vectors), atol=1e-5, rtol=1e-5)
