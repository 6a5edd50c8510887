"""Sequence encoders against their slow references: values, gradients, and what must not matter."""

import pytest
import torch
from slow.sequence_encoders import slow_columns

from msrec.model.interest.histories import Histories
from msrec.model.sequence_encoder import EncoderOptions
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS
from msrec.model.sequence_encoders.hstu import HSTUBlock

B, K, D, M = 7, 5, 6, 9
LENGTHS = torch.tensor([0, K, 1, 3])
"""Events of each history."""
OPTIONS = EncoderOptions(num_heads=2, num_layers=2, attention_dims=(7, 5))
every_encoder = pytest.mark.parametrize("name", SEQUENCE_ENCODERS)


def batch(num_scenarios=3):
    """Learned item vectors, histories of length 0 to K with newest last, rows of all scenarios."""
    torch.manual_seed(0)
    items = torch.randn(M + 1, D)
    items[M] = 0  # an empty place
    mask = torch.arange(K) >= K - LENGTHS.unsqueeze(1)
    shape = mask.shape
    events = torch.where(mask, torch.randint(M, shape), M)
    scenario = torch.where(mask, torch.randint(num_scenarios, shape), -1)
    label = torch.randint(2, shape).float() * mask
    candidate, bag = torch.tensor([0, 1, 2, 3, 4, 0, 8]), torch.tensor([0, 1, 1, 2, 3, 3, 1])
    histories = Histories(candidate, events, scenario, label, bag)
    return items.requires_grad_(), histories, torch.arange(B) % num_scenarios


def make(name, num_scenarios=3, max_len=K, options=OPTIONS):
    """An encoder whose parameters are all away from their initial values."""
    torch.manual_seed(1)
    encoder = SEQUENCE_ENCODERS[name](D, max_len, num_scenarios, options)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


@every_encoder
@pytest.mark.parametrize("num_scenarios", [1, 3])
@pytest.mark.parametrize("max_len", [K, K + 2], ids=["full width", "narrower batch"])
def test_values_and_gradients_are_those_of_the_slow_reference(name, num_scenarios, max_len):
    items, histories, scenario = batch(num_scenarios)
    encoder = make(name, num_scenarios, max_len)
    fast = encoder(items, histories, scenario)
    slow = slow_columns(encoder, items, histories, scenario)
    assert fast.shape == (B, encoder.out_dim)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(fast)
    inputs = {"items": items, **dict(encoder.named_parameters())}
    got, want = (
        torch.autograd.grad((columns * direction).sum(), list(inputs.values()))
        for columns in (fast, slow)
    )
    for key, a, b in zip(inputs, got, want, strict=True):
        assert key == "places" or a.abs().sum() > 0 or ".key.bias" in key
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=key: f"{n}: {m}")


@every_encoder
def test_empty_places_do_not_matter(name):
    items, histories, scenario = batch()
    encoder = make(name)
    is_empty = histories.scenario < 0
    # Vectors, labels and positions that no event has.
    items = torch.cat([items[:M], torch.full((1, D), 1e3)])
    changed = histories._replace(label=torch.where(is_empty, 1.0, histories.label))
    torch.testing.assert_close(
        encoder(items, changed, scenario), encoder(items.clone(), histories, scenario)
    )
    more = histories._replace(events=torch.where(is_empty, 0, histories.events))
    torch.testing.assert_close(encoder(items, more, scenario), encoder(items, histories, scenario))


@every_encoder
def test_more_empty_places_do_not_matter(name):
    items, histories, scenario = batch()
    encoder = make(name, max_len=K + 2)
    padded = histories._replace(
        events=torch.nn.functional.pad(histories.events, (2, 0), value=M),
        scenario=torch.nn.functional.pad(histories.scenario, (2, 0), value=-1),
        label=torch.nn.functional.pad(histories.label, (2, 0)),
    )
    torch.testing.assert_close(
        encoder(items, padded, scenario), encoder(items, histories, scenario)
    )


@every_encoder
def test_an_empty_history_has_finite_columns_and_gradients(name):
    items, histories, scenario = batch()
    empty = histories._replace(
        events=torch.full_like(histories.events, M),
        scenario=torch.full_like(histories.scenario, -1),
        label=torch.zeros_like(histories.label),
    )
    encoder = make(name)
    columns = encoder(items, empty, scenario)
    columns.square().sum().backward()
    assert columns.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (items, *encoder.parameters()))
    if name in ("din", "sim"):
        assert (columns[:, :D] == 0).all()


@every_encoder
def test_a_row_depends_on_its_history_alone_and_on_labels_and_scenarios_of_events(name):
    items, histories, scenario = batch()
    encoder = make(name)
    before = encoder(items, histories, scenario)
    label = histories.label.clone()
    label[3] = 1 - label[3]  # of rows 4 and 5
    changed = (encoder(items, histories._replace(label=label), scenario) != before).any(1)
    of_history = histories.bag == 3
    assert not changed[~of_history].any()
    assert changed[of_history].any()


def test_sim_reads_events_of_the_rows_scenario_alone():
    items, histories, scenario = batch()
    encoder = make("sim")
    before = encoder(items, histories, scenario)
    is_zero = histories.scenario == 0
    events = torch.where(is_zero, (histories.events + 1) % M, histories.events)
    changed = (encoder(items, histories._replace(events=events), scenario) != before).any(1)
    assert not changed[scenario != 0].any()
    assert changed[scenario == 0].any()


def test_hstu_reads_no_later_place():
    torch.manual_seed(0)
    block = HSTUBlock(D, K, num_heads=2, dropout=0.0)
    x, mask = torch.randn(2, K, D), torch.ones(2, K, dtype=torch.bool)
    later = x.clone()
    later[:, 3:] += 1
    before, after = block(x, mask), block(later, mask)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] != before[:, 3:]).all()
    torch.testing.assert_close(block(x, mask, last_only=True), before[:, -1:])


@pytest.mark.parametrize("name", ["sim", "bst", "hstu"])
def test_heads_must_divide_the_vectors(name):
    with pytest.raises(ValueError, match="num_heads must divide .*; got 4 heads and vectors of 6"):
        make(name, options=EncoderOptions(num_heads=4))


@every_encoder
def test_dropout_acts_in_training_only(name):
    inputs = batch()
    encoder = make(name, options=EncoderOptions(dropout=0.5))
    assert (encoder(*inputs) != encoder(*inputs)).any()
    encoder.eval()
    torch.testing.assert_close(encoder(*inputs), encoder(*inputs))
