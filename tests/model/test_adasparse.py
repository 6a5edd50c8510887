"""AdaSparse's schedule and pruning: what the invariants of all backbones do not say."""

import pytest
import torch
from zoo import make, rows


def test_alpha_grows_once_a_training_step_and_is_saved():
    model, (x, scenario) = make("adasparse", alpha=1.0, alpha_step=0.25), rows()
    model.train()
    model(x, scenario)
    model(x, scenario)
    model.eval()
    model(x, scenario)
    assert float(model.state_dict()["alpha"]) == 1.5


def test_pruned_neurons_are_zero_and_with_eps_zero_none_is():
    x, scenario = rows()
    v = torch.linspace(-4, 4, 9)
    pruned = make("adasparse", eps=0.5)._factor(v)
    assert (pruned[:5] == 0).all()
    assert (pruned[5:] > 0).all()
    assert (make("adasparse", eps=0.0)._factor(v) > 0).all()


def test_a_wrong_form_or_eps_is_refused():
    with pytest.raises(ValueError, match="binary, scaling, fusion; got 'soft'"):
        make("adasparse", form="soft")
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\); got 1"):
        make("adasparse", eps=1)
