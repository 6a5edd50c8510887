"""Layers: MLPs, grouped rows, interaction, dropout; and the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_loss import weighted_bce
from sklearn.metrics import log_loss
from torch.nn import functional as F

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.interaction import MODES, Interaction
from msrec.model.layers.mlp import MLP, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import ScenarioLinear, Towers
from msrec.model.layers.tiles import MAX_TILE, Tiles


def test_mlp_equals_linear_and_relu_by_hand():
    mlp, x = MLP(4, [3, 2]), torch.randn(5, 4)
    first, last = mlp[0], mlp[2]
    by_hand = F.relu(F.relu(x @ first.weight.T + first.bias) @ last.weight.T + last.bias)
    torch.testing.assert_close(mlp(x), by_hand)


def test_mlp_without_layers_is_the_identity():
    mlp, x = MLP(4, []), torch.randn(5, 4)
    assert mlp.out_dim == 4
    assert mlp(x) is x


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_row_of_an_mlp_does_not_depend_on_other_rows(norm):
    mlp, x = MLP(4, [8, 3], norm=norm).train(), torch.randn(6, 4)
    torch.testing.assert_close(mlp(x)[2:3], mlp(x[2:3]))


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [("norm", "batch", {"norm": "batch"}), ("activation", "step", {"hidden": Hidden("step")})],
)
def test_an_unknown_option_is_named_with_the_known_ones(name, value, options):
    with pytest.raises(ValueError, match=f"{name} must be .*; got '{value}'"):
        MLP(4, [3], **options)


def test_sorting_rows_and_back_changes_nothing():
    key, x = torch.randint(0, 200, (50,)), torch.randn(50, 3)
    groups = group_rows(key, 200)
    assert torch.equal(groups.unsort(groups.sort(x)), x)
    assert groups.counts == torch.bincount(key, minlength=200).tolist()
    assert bool((groups.sort(key).diff() >= 0).all())


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_scenario_out_of_range_is_an_error_that_names_its_row(bad):
    with pytest.raises(ValueError, match=rf"scenario must be in \[0, 3\); got {bad} in row 1 "):
        group_rows(torch.tensor([0, bad, 2]), 3)


@pytest.mark.parametrize("num_scenarios", [1, 3, 200])
def test_each_row_runs_its_own_scenarios_weights(num_scenarios):
    layer = ScenarioLinear(4, 3, num_scenarios)
    x, scenario = torch.randn(20, 4), torch.randint(0, num_scenarios, (20,))
    groups = group_rows(scenario, num_scenarios)
    by_row = torch.stack(
        [r @ layer.weight[s] + layer.bias[s] for r, s in zip(x, scenario, strict=True)]
    )
    torch.testing.assert_close(groups.unsort(layer(groups.sort(x), groups)), by_row)


@pytest.mark.parametrize("num_groups", [1, 7, 200])
@pytest.mark.parametrize("has_counts", [True, False])
@pytest.mark.parametrize("shape", [(300, 4), (300, 2, 4), (0, 4)])
def test_tiles_give_the_values_and_gradients_of_the_loop(num_groups, has_counts, shape):
    # Half of the rows are of one group, and others have none.
    key = torch.randint(0, num_groups, shape[:1]) * (torch.rand(shape[:1]) < 0.5)
    groups = group_rows(key, num_groups)
    counts = groups.counts if has_counts else None
    tiled = replace(groups, tiles=Tiles.cut(groups.key, num_groups, counts))
    found = []
    sizes = (shape, (num_groups, 4, 3), (num_groups, 3))
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in sizes)
    for way in (groups, tiled):
        inputs = [each.clone().requires_grad_() for each in (x, weight, bias)]
        y = way.linear(*inputs)
        found.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("num_groups", [1, 7, 200])
@pytest.mark.parametrize("rows", [1, 100, 5000])
@pytest.mark.parametrize("skew", [0.0, 0.9, 1.0])
def test_tiles_waste_no_more_than_they_say(num_groups, rows, skew):
    key = (torch.randint(0, num_groups, (rows,)) * (torch.rand(rows) >= skew)).sort().values
    counts = torch.bincount(key, minlength=num_groups).tolist()
    tiles, without = Tiles.cut(key, num_groups, counts), Tiles.cut(key, num_groups)
    assert tiles.num * tiles.size <= rows + min(rows, num_groups * MAX_TILE) + num_groups
    assert tiles.num <= without.num <= num_groups + max(num_groups, rows / MAX_TILE)
    group_of_slot = tiles.group.repeat_interleave(tiles.size)
    assert torch.equal(group_of_slot[tiles.slot], key)
    assert torch.equal(tiles.slot.unique(), tiles.slot)  # ascending, and no place twice


def test_counts_of_the_loader_take_the_place_of_those_of_the_key():
    key = torch.tensor([2, 0, 2])
    given = group_rows(key, 4, np.array([1, 0, 2, 0]))
    assert given.counts == group_rows(key, 4).counts == [1, 0, 2, 0]


def test_a_tower_without_rows_gets_zero_gradients_not_none():
    towers, groups = Towers(4, [3], num_scenarios=3), group_rows(torch.tensor([0, 2, 2]), 3)
    towers(torch.randn(3, 4), groups).sum().backward()
    for name, parameter in towers.named_parameters():
        assert not parameter.grad[1].any(), name
        assert parameter.grad[2].any(), name


def test_a_batch_without_rows_gives_no_logits_and_zero_gradients():
    towers, groups = Towers(4, [3], num_scenarios=2), group_rows(torch.empty(0).long(), 2)
    logits = towers(torch.empty(0, 4), groups)
    logits.sum().backward()
    assert logits.shape == (0, 1)
    assert all(not p.grad.any() for p in towers.parameters())


def test_the_loss_without_padding_is_scikit_learns_log_loss():
    logits, label = torch.randn(50, 1).double(), torch.randint(0, 2, (50, 1)).double()
    expected = log_loss(label.flatten(), logits.sigmoid().flatten())
    assert weighted_bce(logits, label, torch.ones(50)).item() == pytest.approx(expected, abs=1e-12)


def test_the_mean_over_two_ranks_losses_is_the_loss_of_one_rank_with_padding_on_one():
    logits, label = torch.randn(8, 2), torch.rand(8, 2)
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])
    halves = [weighted_bce(logits[i::2], label[i::2], weight[i::2]) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, weighted_bce(logits, label, weight))


def test_padding_rows_do_not_change_a_gradient():
    logits = torch.randn(4, 1, requires_grad=True)
    weighted_bce(logits, torch.ones(4, 1), torch.tensor([1.0, 1, 0, 1])).backward()
    assert (logits.grad.flatten() != 0).tolist() == [True, True, False, True]


@pytest.mark.parametrize("num_dense", [0, 2])
def test_dot_equals_dlrms_formula_pair_by_pair(num_dense):
    join = Interaction(3, 4, num_dense, [5, 4], mode="dot")
    emb, dense = torch.randn(6, 3, 4), torch.randn(6, num_dense)
    for row in range(6):
        bottom = [join.bottom(dense[row])] if num_dense else []
        vectors = [*bottom, *emb[row]]
        dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        expected = torch.cat([*bottom, torch.stack(dots)])
        torch.testing.assert_close(join(emb, dense)[row], expected)


@pytest.mark.parametrize("num_dense", [0, 2])
def test_concat_is_bottom_then_embeddings_in_order(num_dense):
    join = Interaction(3, 4, num_dense, [5])
    emb, dense = torch.randn(6, 3, 4), torch.randn(6, num_dense)
    parts = [join.bottom(dense)] if num_dense else []
    assert torch.equal(join(emb, dense), torch.cat([*parts, *emb.unbind(1)], dim=1))


def test_concat_dot_is_concat_followed_by_the_dots():
    join = Interaction(3, 4, 2, [4], mode="concat_dot")
    dot = Interaction(3, 4, 2, [4], mode="dot")
    dot.load_state_dict(join.state_dict())
    emb, dense = torch.randn(6, 3, 4), torch.randn(6, 2)
    both, dots = join(emb, dense), dot(emb, dense)
    assert torch.equal(both[:, :4], dots[:, :4])
    assert torch.equal(both[:, 4:16], emb.flatten(1))
    assert torch.equal(both[:, 16:], dots[:, 4:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_dense", [0, 3])
def test_out_dim_is_the_width_that_comes_out(mode, num_dense):
    join = Interaction(5, 4, num_dense, [8, 4], mode=mode)
    assert join(torch.randn(2, 5, 4), torch.randn(2, num_dense)).shape == (2, join.out_dim)


def test_dense_features_without_a_bottom_pass_as_they_are():
    dense = torch.randn(2, 3)
    assert torch.equal(Interaction(1, 4, 3)(torch.randn(2, 1, 4), dense)[:, :3], dense)


def test_a_dot_with_a_bottom_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"must end with the embedding size 4 .* got \[8\]"):
        Interaction(3, 4, 2, [8], mode="dot")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="concat, dot, concat_dot; got 'sum'"):
        Interaction(3, 4, mode="sum")


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
