"""Dropout's rate, scale, gradient and seed."""

import pytest
import torch

from msrec.model.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_a_share_p_is_zeroed_and_the_rest_scaled_so_that_the_mean_stays(p):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1000, 1000))
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-2)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    # Neighbours are dropped independently of each other.
    both = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean().item()
    assert both == pytest.approx(p * p, abs=0.002)


def test_the_same_seed_draws_the_same_mask_and_the_next_draw_another():
    x, dropout = torch.ones(100, 100), Dropout(0.3)
    torch.manual_seed(7)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_the_gradient_is_the_mask():
    x = torch.randn(50, 20, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_evaluation_changes_nothing_and_a_wrong_rate_is_refused():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\); got 1"):
        Dropout(1)
