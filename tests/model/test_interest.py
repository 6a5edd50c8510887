"""Interest block against its slow reference: values, gradients, and what must not matter."""

import pytest
import torch
from slow.interest import slow_columns

from msrec.model.interest import Histories, Interest, InterestBlock, InterestOptions

B, U, K, D, S = 7, 4, 5, 6, 3


def batch(seed=0, bags=None):
    """Unit vectors, histories of length 0 to K with newest last, rows of several scenarios."""
    torch.manual_seed(seed)
    candidate = torch.nn.functional.normalize(torch.randn(B, D))
    candidate[2] = 0  # an item without a vector
    lengths = torch.tensor([0, K, 1, 3])
    mask = torch.arange(K) >= K - lengths.unsqueeze(1)
    history = torch.nn.functional.normalize(torch.randn(U, K, D), dim=2) * mask.unsqueeze(2)
    bag = torch.tensor([0, 1, 1, 2, 3, 3, 1]) if bags is None else bags
    scenario = torch.randint(S, (U, K))
    label = torch.randint(2, (U, K)).float()
    return candidate, history, Histories(mask, scenario, label, bag), torch.arange(B) % S


def scrambled(block):
    """Parameters that are all away from their initial values."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


OPTIONS = {
    "all": InterestOptions(rank=4),
    "no projection": InterestOptions(rank=4, projection=False),
    "nothing generated": InterestOptions(generated=False),
    "own scenario only": InterestOptions(rank=4, cross_scenario=False),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("max_len", [K, K + 2], ids=["full width", "narrower batch"])
def test_values_and_gradients_are_those_of_the_slow_reference(options, max_len):
    inputs = batch()
    block = scrambled(InterestBlock(D, max_len, S, options))
    fast, slow = block.columns(*inputs), slow_columns(block, *inputs)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(fast)
    parameters = {n: p for n, p in block.named_parameters() if not n.startswith("norm.")}
    got = torch.autograd.grad((fast * direction).sum(), parameters.values(), allow_unused=True)
    want = torch.autograd.grad((slow * direction).sum(), parameters.values(), allow_unused=True)
    for name, a, b in zip(parameters, got, want, strict=True):
        zeros = torch.zeros_like(parameters[name])
        a, b = (zeros if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_rows_that_each_have_their_history_need_no_lookup():
    candidate, history, histories, scenario = batch()
    block = scrambled(InterestBlock(D, K, S))
    own = Histories(*(v[histories.bag] for v in histories[:3]), torch.arange(B))
    apart = block.columns(candidate, history[histories.bag], own, scenario)
    torch.testing.assert_close(apart, block.columns(candidate, history, histories, scenario))


def test_values_in_empty_places_do_not_matter():
    candidate, history, histories, scenario = batch()
    block = scrambled(InterestBlock(D, K, S))
    noise = torch.randn_like(history) * ~histories.mask.unsqueeze(2)
    torch.testing.assert_close(
        block.columns(candidate, history + noise, histories, scenario),
        block.columns(candidate, history, histories, scenario),
    )


def test_attention_weights_and_null_slot_sum_to_one():
    block = scrambled(InterestBlock(D, K, S))
    inputs = batch()
    attention = block.attention(*inputs)
    assert (attention.weights.sum(1) < 1).all()
    assert attention.weights[0].sum() == 0  # an empty history: all on the null slot
    torch.testing.assert_close(block.columns(*inputs)[:, 16], attention.weights.sum(1))


def test_the_sources_columns_are_joined_and_add_to_the_logits_from_zero():
    candidate, history, histories, scenario = batch()
    torch.manual_seed(0)
    interest = Interest([D, D - 2], K, S, num_tasks=2)
    sources = [(candidate, history), (candidate[:, 2:], history[:, :, 2:])]
    columns, logits = interest(sources, histories, scenario)
    assert columns.shape == (B, interest.out_dim)
    assert (logits == 0).all()
    first = interest.blocks[0](candidate, history, histories, scenario)
    torch.testing.assert_close(columns[:, : first.shape[1]], first)
    torch.nn.init.ones_(interest.head.weight)
    columns, logits = interest(sources, histories, scenario)
    torch.testing.assert_close(logits[:, 0], columns.sum(1))


def test_padding_rows_do_not_change_the_normalisation():
    candidate, history, histories, scenario = batch()
    blocks = [InterestBlock(D, K, S) for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    weight = torch.ones(B)
    weight[-2:] = 0
    cut = histories._replace(bag=histories.bag[:-2])
    padded = blocks[0](candidate, history, histories, scenario, weight)[:-2]
    alone = blocks[1](candidate[:-2], history, cut, scenario[:-2])
    torch.testing.assert_close(padded, alone)
