"""Interest block against its slow reference: values, gradients, and what must not matter."""

import pytest
import torch
from slow.interest import slow_columns

from msrec.model.interest import (
    Histories,
    Interest,
    InterestBlock,
    InterestOptions,
    gather_dot,
    row_events,
    weighted_sum,
)

B, U, K, D, S, M = 7, 4, 5, 6, 3, 9


def batch(seed=0):
    """Unit vectors, histories of length 0 to K with newest last, rows of several scenarios."""
    torch.manual_seed(seed)
    items = torch.nn.functional.normalize(torch.randn(M + 1, D))
    items[2] = 0  # an item without a vector
    items[M] = 0  # an empty place
    mask = torch.arange(K) >= K - torch.tensor([0, K, 1, 3]).unsqueeze(1)
    events = torch.where(mask, torch.randint(M, (U, K)), M)
    scenario = torch.where(mask, torch.randint(S, (U, K)), -1)
    label = torch.randint(2, (U, K)).float() * mask
    candidate, bag = torch.tensor([0, 1, 2, 3, 4, 0, 8]), torch.tensor([0, 1, 1, 2, 3, 3, 1])
    return items, Histories(candidate, events, scenario, label, bag), torch.arange(B) % S


def scrambled(block):
    """Parameters that are all away from their initial values."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def columns_of(block, items, histories, scenario):
    row = row_events(histories, scenario, block.options.cross_scenario)
    return block.columns(items, histories, row)


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
    fast, slow = columns_of(block, *inputs), slow_columns(block, *inputs)
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
    items, histories, scenario = batch()
    block = scrambled(InterestBlock(D, K, S))
    bag = histories.bag
    own = Histories(
        histories.candidate,
        histories.events[bag],
        histories.scenario[bag],
        histories.label[bag],
        torch.arange(B),
    )
    apart = columns_of(block, items, own, scenario)
    torch.testing.assert_close(apart, columns_of(block, items, histories, scenario))


def test_attention_weights_and_null_slot_sum_to_one():
    block = scrambled(InterestBlock(D, K, S))
    items, histories, scenario = batch()
    attention = block.attention(items, histories, row_events(histories, scenario, True))
    assert (attention.weights.sum(1) <= 1 + 1e-6).all()
    assert attention.weights[0].sum() == 0  # an empty history: all on the null slot
    torch.testing.assert_close(
        columns_of(block, items, histories, scenario)[:, 16], attention.weights.sum(1)
    )


def test_the_sources_columns_are_joined_and_add_to_the_logits_from_zero():
    items, histories, scenario = batch()
    torch.manual_seed(0)
    interest = Interest([D, D - 2], K, S, num_tasks=2)
    sources = [items, items[:, 2:].contiguous()]
    columns, logits = interest(sources, histories, scenario)
    assert columns.shape == (B, interest.out_dim)
    assert (logits == 0).all()
    first = interest.blocks[0](items, histories, row_events(histories, scenario, True))
    torch.testing.assert_close(columns[:, : first.shape[1]], first)
    torch.nn.init.ones_(interest.head.weight)
    columns, logits = interest(sources, histories, scenario)
    torch.testing.assert_close(logits[:, 0], columns.sum(1))


def test_padding_rows_do_not_change_the_normalisation():
    items, histories, scenario = batch()
    blocks = [InterestBlock(D, K, S) for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    weight = torch.ones(B)
    weight[-2:] = 0
    cut = histories._replace(bag=histories.bag[:-2], candidate=histories.candidate[:-2])
    padded = blocks[0](items, histories, row_events(histories, scenario, True), weight)[:-2]
    alone = blocks[1](items, cut, row_events(cut, scenario[:-2], True))
    torch.testing.assert_close(padded, alone)


def test_gathered_products_and_sums_are_those_of_the_gathered_rows():
    torch.manual_seed(1)
    table, index = torch.randn(M, D), torch.randint(M, (B, K))
    rows, weight = torch.randn(B, D, requires_grad=True), torch.randn(B, K, requires_grad=True)
    products = gather_dot(rows, table, index)
    want = (table[index] * rows.unsqueeze(1)).sum(2)
    torch.testing.assert_close(products, want)
    direction = torch.randn(B, K)
    torch.testing.assert_close(
        torch.autograd.grad((products * direction).sum(), rows),
        torch.autograd.grad((want * direction).sum(), rows),
    )
    total = weighted_sum(table, index, weight)
    torch.testing.assert_close(total, (table[index] * weight.unsqueeze(2)).sum(1))
