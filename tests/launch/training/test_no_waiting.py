"""No step waits for its device: it runs on the device "meta", where no value can be read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_schema
from waits import no_waits

from msrec.data.labels import LabelOptions, LabelScale
from msrec.data.loading.batch import Batch, EntityVectors, HistoryBags, HistoryEvents, keyed_bags
from msrec.data.loading.row_counts import count_rows
from msrec.launch.build_model import build_model
from msrec.launch.config.run_config import load_config
from msrec.launch.training.chosen_metric import ValidationRows, choose_metric
from msrec.launch.training.metric_accumulator import MetricAccumulator
from msrec.model.backbones import BACKBONES
from msrec.model.layers.row_groups import group_rows
from msrec.model.ranker import Outcome
from msrec.model.score_head import ScoreHead

B, U, S, T, H, K, M = 24, 7, 3, 4, 12, 5, 9
META = torch.device("meta")
RANKS = LabelScale(low=0, high=9, mean=0.5, std=0.3, knots=[0, 2, 9], ranks=[0, 0.4, 1])
SCALE = LabelScale(low=0, high=9, mean=0.5, std=0.3)
SCHEMA = tiny_schema(
    labels=["click", "buy", "watch", "rank"],
    label_options={
        "buy": LabelOptions(exists_where="click"),
        "watch": LabelOptions(kind="regression", scale=SCALE),
        "rank": LabelOptions(kind="regression", transform="quantile", scale=RANKS),
    },
)
ALL_PARTS = (
    *("meta.user=true", "meta.item=true", "meta.scenario=true", "history.of=[user,item]"),
    *("interest.enabled=true", "interest.scenario=true", "llm.sources=[made]"),
    *("sequence.protocol=stream", f"sequence.max_len={K}"),
    *(
        "llm_feature.kind=match",
        "llm_feature.dim=3",
        "embeddings.l2=0.1",
        "interaction.bottom_dims=[4]",
    ),
)


def on_meta(*options, labels=("click", "buy", "watch", "rank")):
    """The model of a run, with all parameters on the device "meta"."""
    folders = ("dataset=data", "run_root=runs", "llm.store=store")
    chosen = f"objective.labels=[{','.join(labels)}]"
    config = load_config(None, [*folders, chosen, "embeddings.dim=4", *options])
    side = SimpleNamespace(dim=H, moments=(torch.randn(H), torch.rand(H) + 1))
    knowledge = SimpleNamespace(user=side, item=side, scenario=torch.randn(S, H))
    knowledge.item_sources = [SimpleNamespace(name="made", dim=H)]
    knowledge.feature_of = ()
    return build_model(config, SCHEMA, knowledge).to(META)


def entities():
    key = np.arange(B) % U
    counts = np.bincount(key)
    inverse = torch.from_numpy(key)
    return EntityVectors(torch.arange(U), torch.randn(U, H), torch.ones(U), inverse, counts)


def batch(num_labels=T, weighted=True):
    """Rows as a collator makes them, sent to the device "meta"."""
    keys = ["user_id", "item_id", "genres"]
    keys += [f"{side}_{kind}" for side in ("user", "item") for kind in ("history", "own")]
    lengths = torch.arange(len(keys) * B, dtype=torch.int32) % 3
    of_key = lengths.view(len(keys), B).sum(1).tolist()
    values = torch.zeros(sum(of_key), dtype=torch.int32)
    scenario = np.arange(B) % S
    events = HistoryEvents(
        items=keyed_bags(["item"], torch.zeros(M, dtype=torch.int32), [M], stride=M),
        candidate=torch.zeros(B).long(),
        bag=torch.zeros(B).long(),
        events=torch.zeros(U, K).long(),
        scenario=torch.zeros(U, K).long(),
        label=torch.zeros(U, K),
        time=torch.zeros(U, K).long(),
        time_of_row=torch.zeros(B).long(),
    )
    made = Batch(
        sparse=keyed_bags(keys, values, of_key, B, lengths),
        dense=torch.randn(B, 1),
        scenario=torch.from_numpy(scenario),
        scenario_counts=count_rows(scenario, S),
        label=torch.ones(B, num_labels),
        weight=torch.ones(B),
        label_weight=torch.ones(B, num_labels if weighted else 0),
        row_id=torch.arange(B),
        user=torch.zeros(B).long(),
        item=torch.zeros(B).long(),
        user_vectors=entities(),
        item_vectors=entities(),
        past=HistoryBags(torch.zeros(2, B).long(), torch.ones(2, B)),
        sequence=events,
    )
    return made.to(META)


def step(model, rows):
    """Forward, backward, and everything that is accumulated in training and validation."""
    scales = model.loss.scales
    names = [scenario.name for scenario in SCHEMA.scenarios]
    accumulator = MetricAccumulator(S, scales, META)
    chosen = choose_metric("gauc/all", scales.tasks, names)
    validation = ValidationRows(chosen, ScoreHead(scales))
    with no_waits():
        loss, outcome = model(rows)
        loss.backward()
        accumulator.add(Outcome(*outcome))
        validation.add(Outcome(*outcome))
    assert all(parameter.grad is not None for parameter in model.ranker.over.backbone.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_no_backbone_waits(name):
    forms = ("auto", "contracted", "distinct", "factored")
    form, encoder = forms[len(name) % 4], ("din", "sim", "bst", "hstu")[len(name) % 4]
    options = (f"backbone.name={name}", f"meta.form={form}", f"sequence.encoder={encoder}")
    step(on_meta(*options, *ALL_PARTS), batch())


@pytest.mark.parametrize("weighting", ["uncertainty", "gradnorm"])
def test_no_weighting_of_losses_waits(weighting):
    step(on_meta("backbone.name=esmm", f"objective.weighting={weighting}"), batch())


def test_a_chain_over_scenarios_does_not_wait():
    step(on_meta("backbone.name=aitm", labels=["click"]), batch(1, weighted=False))


def test_what_waits_is_found():
    x, many = torch.ones(3, device=META), torch.ones(3)
    waits = (
        lambda: x[x > 0],
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.nonzero(),
        lambda: many.to(META),
        lambda: torch.tensor([1.0], device=META),
        lambda: x.repeat_interleave(x.long()),
    )
    for wait in waits:
        with pytest.raises((AssertionError, RuntimeError)), no_waits():
            wait()


def test_counts_stay_on_the_host_and_ids_keep_their_sizes():
    rows = batch()
    assert isinstance(rows.scenario_counts, np.ndarray)
    assert rows.scenario_counts.tolist() == [8, 8, 8]
    assert rows.user_vectors.counts.sum() == B
    assert rows.sparse.device() == META
    order = list(reversed(range(7)))
    order_on_device = torch.tensor(order, dtype=torch.int32).to(META)
    with no_waits():
        assert rows.sparse.length_per_key_or_none() == rows.sparse.length_per_key()
        assert rows.sparse.offset_per_key()[-1] == sum(rows.sparse.length_per_key())
        assert rows.sparse.stride() == B
        first, rest = rows.sparse.permute(order, order_on_device).split([2, 5])
        assert first.keys() + rest.keys() == rows.sparse.keys()[::-1]


def test_groups_without_counts_do_not_wait_either():
    key = torch.zeros(B, dtype=torch.int64, device=META)
    with no_waits():
        groups = group_rows(key, 5)
        y = groups.linear(
            *(torch.ones(*shape, device=META) for shape in ((B, 2, 4), (5, 4, 3), (5, 3)))
        )
    assert y.shape == (B, 2, 3)
