"""AdaptDHM's centres: what the invariants of all backbones do not say."""

import torch
from slow.star import moved
from zoo import make, rows


def test_a_training_step_moves_the_centres_as_the_formula_says_and_counts_no_padding():
    model, (x, scenario) = make("adaptdhm").train(), rows()
    weight = torch.ones(len(x))
    weight[-6:], x[-6:] = 0, 50.0
    expected = moved(model.moving_centres.clone(), x[:-6], model.beta, model.num_passes)
    model(x, scenario, weight)
    torch.testing.assert_close(model.moving_centres, expected, atol=1e-5, rtol=1e-4)


def test_evaluation_leaves_the_centres_where_they_are():
    model, (x, scenario) = make("adaptdhm").eval(), rows()
    before = model.moving_centres.clone()
    model(x, scenario)
    assert torch.equal(model.moving_centres, before)


def test_the_scenario_does_not_matter():
    model, (x, scenario) = make("adaptdhm").eval(), rows()
    torch.testing.assert_close(model(x, scenario), model(x, (scenario + 1) % 4))
