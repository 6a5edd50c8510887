"""Several labels: own parts of each, one label as in earlier versions, ESMM, AITM's calibrator."""

import json
from pathlib import Path

import pytest
import torch
from test_interest import D, K, batch, scrambled
from zoo import IN, LAYOUT, S, T, make, rows, shape, stir

from msrec.model.backbone import BackboneShape
from msrec.model.backbones import BACKBONES, make_backbone
from msrec.model.interest.interest import Interest
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers
from msrec.model.meta import MetaOptions, ScenarioMeta, fuse

GOLDEN = json.loads((Path(__file__).parent / "golden" / "one_label.json").read_text())
"""Options, shapes of the state and logits, written by the version before several labels."""


@pytest.mark.parametrize("name", GOLDEN)
def test_with_one_label_state_and_logits_are_those_of_earlier_versions(name):
    """So that their checkpoints load and their results stay."""
    golden, (x, scenario) = GOLDEN[name], rows()
    torch.manual_seed(0)
    model = make_backbone(name, shape(num_tasks=1), **golden["options"]).eval()
    assert {key: [*value.shape] for key, value in model.state_dict().items()} == golden["shapes"]
    logits = model(x[:6], scenario[:6]).flatten()
    torch.testing.assert_close(logits, torch.tensor(golden["logits"]), atol=1e-6, rtol=1e-5)


def test_every_model_that_can_have_one_label_is_compared():
    assert {*GOLDEN, "esmm"} == {*BACKBONES}


def gradients(outputs, parameters):
    """Of the sum over rows of each task's output: (T, number of parameters)."""
    return torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(o.sin().sum(), parameters, **more)])
            for o in outputs.unbind(1)
            for more in [{"retain_graph": True, "materialize_grads": True}]
        ]
    )


def check_own_parts(outputs, parameters):
    """Each task has parameters that change its output and no other."""
    used = gradients(outputs, list(parameters)) != 0
    for t in range(T):
        others = torch.cat([used[:t], used[t + 1 :]]).any(0)
        assert (used[t] & ~others).any(), t


@pytest.mark.parametrize("name", BACKBONES)
def test_each_label_has_parameters_that_no_other_reads(name):
    model, (x, scenario) = make(name).eval(), rows()
    check_own_parts(model(x, scenario), model.parameters())


@pytest.mark.parametrize("fusion", ["add", "gate"])
def test_the_scenario_network_changes_each_label_by_its_own_head(fusion):
    x, scenario = rows()
    meta = stir(ScenarioMeta(IN, torch.randn(S, 7), T, MetaOptions(rank=4, width=5)))
    logits = torch.randn(len(x), T)
    changed = fuse(logits, meta(x, scenario), fusion)
    check_own_parts(changed, meta.parameters())
    with torch.no_grad():  # a label without change keeps its logit
        for part in (meta.head.weight, meta.head.bias):
            part[..., 1] = 0
    kept = fuse(logits, meta(x, scenario), fusion)
    torch.testing.assert_close(kept[:, 1], logits[:, 1])
    torch.testing.assert_close(kept[:, [0, 2]], changed[:, [0, 2]])
    assert (kept[:, [0, 2]] != logits[:, [0, 2]]).all()


def test_the_interest_blocks_add_to_each_label_by_its_own_head():
    items, histories, scenario = batch()
    interest = scrambled(Interest([D], K, S, num_tasks=T))
    columns, logits = interest([items], histories, scenario)
    torch.testing.assert_close(logits, columns @ interest.head.weight.T)
    check_own_parts(logits, interest.parameters())


def test_towers_of_an_input_per_task_equal_towers_of_one_task_each():
    torch.manual_seed(0)
    towers, (x, scenario) = Towers(IN, [5, 4], S, num_tasks=T), rows()
    groups, inputs = group_rows(scenario, S), [x, 2 * x, x - 1]
    logits = towers(inputs, groups)
    for t, h in enumerate(inputs):
        alone = Towers(IN, [5, 4], S)
        for ours, theirs in zip(alone.parameters(), towers.parameters(), strict=True):
            ours.data = theirs.data.chunk(T, dim=-1)[t]
        torch.testing.assert_close(alone(h, groups), logits[:, t : t + 1])
    same = towers([x] * T, groups)
    torch.testing.assert_close(towers(x, groups), same)


@pytest.mark.parametrize("parents", [(None,), (None, 1, None), (None, -1, 0), (0, None, None)])
def test_parents_must_be_earlier_tasks(parents):
    with pytest.raises(ValueError, match=r"number of an earlier task, or None, for each of 3 task"):
        BackboneShape(IN, S, 3, LAYOUT, parents)


@pytest.mark.parametrize("parents", [(), (None, None)])
def test_esmm_needs_a_label_after_another(parents):
    with pytest.raises(ValueError, match=r"exists only where another is 1.*none of the 2 trained"):
        make_backbone("esmm", BackboneShape(IN, S, 2, LAYOUT, parents))


def test_only_esmm_is_trained_on_the_entire_space():
    assert [name for name, cls in BACKBONES.items() if cls.entire_space] == ["esmm"]


def calibrated(parents, calibrator=0.6):
    return make_backbone(
        "aitm", BackboneShape(IN, S, T, LAYOUT, parents), bottom_dims=[4], calibrator=calibrator
    )


@pytest.mark.parametrize(
    ("parents", "term"),
    [
        # P = 0.5, 0.75, 0.7 in the first row and 0.5, 0.25, 0.6 in the second, of weight 2.
        ((), (0.25 + 2 * 0.35) / 3),
        # P = 0.5, 0.5 * 0.75, 0.7 and 0.5, 0.5 * 0.25, 0.6; the second label cannot rise.
        ((None, 0, None), (0.7 - 0.375 + 2 * (0.6 - 0.125)) / 3),
        # P = 0.5, 0.75, 0.5 * 0.7 and 0.5, 0.25, 0.5 * 0.6.
        ((None, None, 0), (0.25 + 2 * 0.05) / 3),
    ],
)
def test_aitms_calibrator_is_the_mean_rise_of_the_probability_along_the_chain(parents, term):
    p = torch.tensor([[0.5, 0.75, 0.7], [0.5, 0.25, 0.6], [0.1, 0.9, 0.9]])
    weight = torch.tensor([1.0, 2.0, 0.0])  # the third row is padding
    penalty = calibrated(parents).penalty(p.logit(), weight)
    torch.testing.assert_close(penalty, torch.tensor(0.6 * term))


def test_aitms_calibrator_is_absent_where_it_is_off_or_zero_by_construction():
    logits, weight = torch.randn(4, T), torch.ones(4)
    assert calibrated((), calibrator=0.0).penalty(logits, weight) is None
    assert calibrated((None, 0, 1)).penalty(logits, weight) is None
    assert make("aitm", num_tasks=1, calibrator=0.6).penalty(logits[:, :1], weight) is None
    assert make("mmoe").penalty(logits, weight) is None
    with pytest.raises(ValueError, match=r"calibrator must be at least 0; got -1"):
        calibrated((), calibrator=-1)


def test_unknown_gates_of_mmoe_are_refused():
    with pytest.raises(ValueError, match="gates must be 'per_pair' or 'factored'; got 'own'"):
        make("mmoe", gates="own")


def test_factored_gates_of_mmoe_need_no_gate_per_pair():
    sizes = [
        sum(p.numel() for n, p in make("mmoe", gates=gates).named_parameters() if "gates" in n)
        for gates in ("per_pair", "factored")
    ]
    gate = 3 * (IN + 1)  # 3 experts
    assert sizes == [S * T * gate, (S + T) * gate]
