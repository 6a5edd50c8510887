"""Rows a second: the loader alone, a plain PyTorch loop, and training a bare backbone."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from msrec.data.batch import Batch
from msrec.data.loader import Loader
from msrec.data.schema import Schema, load_schema
from msrec.launch.config import load_config
from msrec.launch.process import process_group
from msrec.launch.trainer import Trainer

PLAIN_DIMS = (128, 64)


class Plain(nn.Module):
    """What one would write by hand: nn.Embedding per feature, a bag for multi-valued ones, an MLP.

    Shape:
        ids: for each feature (values, offsets), int64; offsets are None where single-valued.
        returns: (B,), logits.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(schema.tables[f.table], dim, mode="mean")
            if f.multi
            else nn.Embedding(schema.tables[f.table], dim)
            for f in schema.sparse
        )
        sizes = [dim * len(schema.sparse), *PLAIN_DIMS]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, ids: list[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        """Look up, concatenate, score."""
        vectors = [
            table(values) if offsets is None else table(values, offsets)
            for table, (values, offsets) in zip(self.tables, ids, strict=True)
        ]
        logits: torch.Tensor = self.mlp(torch.cat(vectors, dim=1)).squeeze(1)
        return logits


def bench_speed(
    dataset: Path, global_batch: int = 4096, steps: int = 150, repeats: int = 3
) -> None:
    """Measure in turn, `repeats` times: machines drift, ratios within a round hold."""
    schema = load_schema(dataset)
    loader = Loader(dataset, "train", global_batch)
    table = Table(title=f"{schema.name}: thousand rows a second, batch {global_batch}")
    for column in ("", *(f"round {number + 1}" for number in range(repeats))):
        table.add_column(column, justify="right" if column else "left")
    cases: dict[str, Callable[[], float]] = {
        "loader alone (round 1 decodes Parquet)": lambda: _loader(loader, global_batch),
        "plain loop, batches in memory": lambda: _plain(schema, loader, global_batch, steps),
        "msrec train from Parquet, SharedBottom, no dropout, no L2": lambda: _train(
            dataset, global_batch, steps
        ),
    }
    rounds = [[case() for case in cases.values()] for _ in range(repeats)]
    for number, name in enumerate(cases):
        table.add_row(name, *(f"{figures[number] / 1e3:,.0f}" for figures in rounds))
    Console(width=120).print(table)


def _loader(loader: Loader, global_batch: int) -> float:
    started = time.perf_counter()
    count = sum(1 for _ in loader.batches())
    return count * global_batch / (time.perf_counter() - started)


def _plain(schema: Schema, loader: Loader, global_batch: int, steps: int) -> float:
    batches = loader.batches()
    taken = [_ids(schema, batch) for batch, _ in zip(batches, range(steps), strict=False)]
    model = Plain(schema, dim=16)
    adam = torch.optim.Adam(model.parameters())
    started = time.perf_counter()
    for ids, label in taken:
        adam.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(ids), label)
        torch.autograd.backward(loss)
        adam.step()
    return len(taken) * global_batch / (time.perf_counter() - started)


def _ids(
    schema: Schema, batch: Batch
) -> tuple[list[tuple[torch.Tensor, torch.Tensor | None]], torch.Tensor]:
    def of_features() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for feature in schema.sparse:
            bags = batch.sparse[feature.name]
            yield bags.values().long(), bags.offsets()[:-1].long() if feature.multi else None

    return list(of_features()), batch.label[:, 0]


def _train(dataset: Path, global_batch: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as process:
        options = [f"dataset={dataset}", f"run_root={folder}", f"trainer.max_steps={steps}"]
        options += [f"trainer.global_batch={global_batch}", "backbone.bottom_dims=[128]"]
        return Trainer(load_config(None, options), process).fit().rows_per_s
