"""The interaction of embeddings and dense features."""

import pytest
import torch

from msrec.model.layers.interaction import MODES, Interaction


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
