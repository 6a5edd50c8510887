"""Time of a training step of each model, against the plain way: every row through every tower."""

import time
from collections.abc import Sequence
from unittest import mock

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.nn import functional

from msrec.model.backbone import BackboneShape
from msrec.model.backbones import BACKBONES, make_backbone
from msrec.tools.zoo import LAYOUT

LONG_S = 2.0
"""A step that takes longer is timed once."""


def bench_zoo(
    models: Sequence[str],
    scenarios: Sequence[int],
    batch: int,
    repeats: int,
    console: Console | None = None,
) -> None:
    """Print ms of forward, loss and backward, and how many times as long the plain way takes.

    The plain way is the form that exported programs have: each layer is computed with the weights
    of all scenarios for all rows, in one product, and each row's own result is picked. The two are
    timed in turn, and the least of the repeats counts.

    Args:
        models: names; empty means all.
        scenarios: numbers of scenarios; rows fall on them evenly at random.
        batch: rows of a step.
        repeats: steps of each way.
        console: where to print.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = [name for name in models if name not in BACKBONES]
    if unknown:
        raise ValueError(f"a model must be one of {', '.join(BACKBONES)}; got {unknown[0]!r}.")
    names = [name for name in BACKBONES if not models or name in models]
    console = console or Console()
    torch.set_num_threads(1)
    table = Table(title=f"ms a step of {batch:,} rows, {LAYOUT.end} wide, one thread (x plain)")
    for column in ("model", *(f"{count} scenarios" for count in scenarios)):
        table.add_column(column, justify="left" if column == "model" else "right")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("timing", total=len(names) * len(scenarios))
        for name in names:
            cells = []
            for count in scenarios:
                ours, plain = step_times(name, count, batch, repeats)
                cells.append(f"{1e3 * ours:,.1f} ({plain / ours:.1f} x)")
                progress.advance(task)
            table.add_row(name, *cells)
    console.print(table)


def step_times(name: str, num_scenarios: int, batch: int, repeats: int) -> tuple[float, float]:
    """Seconds of the fastest step, ours and plain."""
    torch.manual_seed(0)
    model = make_backbone(name, BackboneShape(LAYOUT.end, num_scenarios, layout=LAYOUT))
    x = torch.randn(batch, LAYOUT.end)
    scenario = torch.randint(num_scenarios, (batch,))
    label = torch.randint(2, (batch, 1)).float()
    best = [float("inf"), float("inf")]
    for number in range(repeats + 1):
        for way, is_plain in enumerate((False, True)):
            if number <= 1 or best[way] < LONG_S:
                seconds = _step(model, x, scenario, label, is_plain)
                best[way] = min(best[way], seconds)
    return best[0], best[1]


def _step(
    model: nn.Module, x: torch.Tensor, scenario: torch.Tensor, label: torch.Tensor, is_plain: bool
) -> float:
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    # group_rows groups nothing while a program is exported: see model/layers/row_groups.py.
    with mock.patch("torch.compiler.is_exporting", return_value=is_plain):
        started = time.perf_counter()
        loss = functional.binary_cross_entropy_with_logits(model(x, scenario), label)
        torch.autograd.backward(loss)
        return time.perf_counter() - started
