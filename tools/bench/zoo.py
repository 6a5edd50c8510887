"""`msrec bench zoo`: a training step of each model, against every row through every tower."""

import sys
from dataclasses import replace
from typing import Annotated
from unittest import mock

import torch
import typer
from torch.nn import functional

from msrec.launch.devices import rank_device
from msrec.model.backbones import BACKBONES, make_backbone
from msrec.model.layers import row_groups
from msrec.tools.bench.harness.measure import Case, Seconds, compare_all, interleaved, timed
from msrec.tools.bench.harness.options import Batch, Repeats, comma_list
from msrec.tools.bench.harness.report import console, prepare, report
from msrec.tools.zoo import LAYOUT, SHAPE, TWO_LABELS

LONG_STEP_S = 2.0
"""Longer steps are timed once."""


def bench_zoo(
    model: Annotated[
        list[str] | None,
        typer.Option(help="only this model; may be repeated", show_default="all"),
    ] = None,
    scenarios: Annotated[
        str, typer.Option(help="numbers of scenarios, separated by commas")
    ] = "2,20,200",
    batch: Batch = 4096,
    repeats: Repeats = 5,
) -> None:
    """A training step of each model, against every row through every tower.

    The reference is the form that small layers have in exported programs: each layer is computed
    with the weights of all scenarios for all rows in one product, and each row's own result is
    picked.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [name for name in model or [] if name not in BACKBONES]
    if unknown:
        raise ValueError(f"a model must be one of {', '.join(BACKBONES)}; got {unknown[0]!r}.")
    on, findings = prepare(), []
    for name in [name for name in BACKBONES if not model or name in model]:
        console.print(f"{name} ...")
        for count in comma_list("scenarios", scenarios, int):
            rounds = step_times(name, count, batch, repeats)
            findings += compare_all(f"{name} with {count} scenarios", rounds, batch)
    title = f"training steps of {batch:,} rows, {LAYOUT.end} wide, one thread"
    report("zoo", title, findings, on)


def step_times(name: str, num_scenarios: int, batch: int, repeats: int) -> dict[str, list[Seconds]]:
    """Returns the times of forward, loss and backward: "ours" and "plain"."""
    torch.manual_seed(0)
    device = rank_device()
    shape = TWO_LABELS if BACKBONES[name].entire_space else SHAPE
    model = make_backbone(name, replace(shape, num_scenarios=num_scenarios)).to(device)
    x = torch.randn(batch, LAYOUT.end, device=device)
    scenario = torch.randint(num_scenarios, (batch,), device=device)
    label = torch.randint(2, (batch, model.num_tasks), device=device).float()

    def step(inputs: torch.Tensor) -> None:
        logits = model(inputs, scenario)
        torch.autograd.backward(functional.binary_cross_entropy_with_logits(logits, label))

    def case(is_plain: bool) -> Case:
        def run() -> Seconds:
            model.zero_grad(set_to_none=True)
            inputs = x.clone().requires_grad_()
            # A program of torch.export groups no rows where few products are spare.
            with (
                mock.patch("torch.compiler.is_exporting", return_value=is_plain),
                mock.patch.object(row_groups, "MAX_SPARE_PRODUCTS", sys.maxsize),
            ):
                return timed(lambda: step(inputs))

        return run

    cases = {"ours": case(is_plain=False), "plain": case(is_plain=True)}
    warm_up = [timed(run).clock for run in cases.values()]
    return interleaved(cases, 1 if max(warm_up) > LONG_STEP_S else repeats, warm_up=0)
