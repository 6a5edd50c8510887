"""`msrec bench step`: a training step, against hand-written loops of plain PyTorch and TorchRec."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter

from msrec.data.loading.batch import Batch as LoadedBatch
from msrec.data.schema import Schema, load_schema
from msrec.launch.distributed import process_group
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.sharding import sharders
from msrec.model.distributed.table_options import TableOptions
from msrec.model.distributed.tables import fuse_optimizer
from msrec.tools.bench.harness.measure import (
    Aim,
    Case,
    Finding,
    Seconds,
    compare_all,
    interleaved,
    timed,
)
from msrec.tools.bench.harness.options import Batch, Dataset, Repeats, Steps, comma_list
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import (
    LARGE_DIM,
    MOVIELENS_DIM,
    large_tables,
    movielens_tables,
    write_random,
)
from msrec.tools.bench.harness.training import IN_MEMORY, WARM_UP_STEPS, Training

SHAPES = ("movielens", "large")
BOTTOM_DIM, MLP_DIMS = 64, (128, 64)
MIN_SPARSE_ROWS = 100_000
"""Rows of a table from which a sparse gradient is faster than a dense one as large as the table."""
PLAIN = "nn.EmbeddingBag, Adam"
PLAIN_SPARSE = "nn.EmbeddingBag, sparse SGD"
AIMS: dict[str, Aim] = {PLAIN: ("at least", 1.0), PLAIN_SPARSE: ("at least", 2.0)}
OPTIONS = [
    *("backbone.name=mlp", f"backbone.dims={list(MLP_DIMS)}", "backbone.dropout=0.0"),
    f"interaction.bottom_dims=[{BOTTOM_DIM}]",
]


def bench_step(
    shapes: Annotated[
        str, typer.Option(help="movielens, or large: 8 tables of 1e6 x 64, 20 ids a bag (5 GB)")
    ] = "movielens",
    dataset: Dataset = None,
    batch: Batch = 4096,
    steps: Steps = 20,
    repeats: Repeats = 15,
    backbones: Annotated[
        str, typer.Option(help="measure these models in bf16 against fp32 instead of an MLP")
    ] = "",
) -> None:
    """A training step, against hand-written loops of plain PyTorch and TorchRec.

    All train the same MLP on batches in memory. Large tables get a tenth of the steps. Several
    shapes or models are separated by commas. A dataset is measured in addition to the shapes.

    Raises:
        ValueError: a shape or a model is unknown.
    """
    names = comma_list("shapes", shapes, str)
    for name in names:
        if name not in SHAPES:
            raise ValueError(f"--shapes must name some of {', '.join(SHAPES)}; got {name!r}.")
    on, findings = prepare(), list[Finding]()
    with tempfile.TemporaryDirectory() as scratch, process_group() as process:
        folders = {}
        for shape in names:
            tables = large_tables() if shape == "large" else movielens_tables()
            folders[shape] = write_random(Path(scratch) / shape, tables, IN_MEMORY, batch)
        if dataset is not None:
            folders["dataset"] = dataset
        for name, folder in folders.items():
            is_large = name == "large"
            dim, count = (LARGE_DIM, max(steps // 10, 2)) if is_large else (MOVIELENS_DIM, steps)
            options = [f"embeddings.dim={dim}", f"trainer.global_batch={batch}"]
            make = partial(Training, folder, process=process)
            root = Path(scratch) / "runs" / name
            comparisons = _precisions(
                comma_list("backbones", backbones, str), make, root, options, count
            )
            if not backbones:
                training = make(root, [*OPTIONS, *options])
                comparisons = {name: _cases(load_schema(folder), dim, training, count)}
            for what, cases in comparisons.items():
                rounds = interleaved(cases, repeats)
                findings += compare_all(what, rounds, count * batch, aims=AIMS)
    report("step", f"training steps of {batch:,} rows", findings, on)


def _precisions(
    models: Sequence[str],
    make: Callable[[Path, Sequence[str]], Training],
    root: Path,
    options: Sequence[str],
    steps: int,
) -> dict[str, dict[str, Case]]:
    """Returns the trainings of each model in bf16 and in fp32."""
    comparisons: dict[str, dict[str, Case]] = {}
    for model in models:
        cases = comparisons[f"{model} in bf16"] = {}
        for precision in ("bf16", "fp32"):
            own = [f"backbone.name={model}", f"trainer.precision={precision}"]
            training = make(root / model / precision, [*options, *own])
            cases[precision] = training.in_memory(steps)
    return comparisons


def _cases(schema: Schema, dim: int, training: Training, steps: int) -> dict[str, Case]:
    device = training.device
    batches = [batch.to(device) for batch in training.batches()]
    cases = {"msrec": training.in_memory(steps)}
    if max(schema.tables.values()) >= MIN_SPARSE_ROWS:
        return cases | {PLAIN_SPARSE: plain_loop(schema, dim, batches, sparse=True).case(steps)}
    plain = plain_loop(schema, dim, batches, sparse=False)
    torchrec = torchrec_loop(schema, dim, batches)
    return cases | {PLAIN: plain.case(steps), "TorchRec DMP": torchrec.case(steps)}


class PlainTables(nn.ModuleList):
    """List of one nn.EmbeddingBag per feature."""

    def forward(self, bags: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """Returns the mean vectors (B, dim) of each feature, given its (values, offsets)."""
        return [table(*bag) for table, bag in zip(self, bags, strict=True)]


class Model(nn.Module):
    """Hand-written reference: tables, a linear layer for dense features, and an MLP over both.

    Shape:
        sparse: input of `tables`, which returns a list of (B, dim) or a KeyedTensor.
        dense: (B, num_dense), float.
        returns: (B,), logits.
    """

    def __init__(self, tables: nn.Module, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tables = tables
        self.bottom, in_dim = None, len(schema.sparse) * dim
        if schema.dense:
            self.bottom = nn.Sequential(nn.Linear(len(schema.dense), BOTTOM_DIM), nn.ReLU())
            in_dim += BOTTOM_DIM
        sizes = [in_dim, *MLP_DIMS]
        layers: list[nn.Module] = []
        for in_dim, out_dim in itertools.pairwise(sizes):
            layers += [nn.Linear(in_dim, out_dim), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, sparse: Any, dense: torch.Tensor) -> torch.Tensor:
        """Looks up, concatenates and scores."""
        vectors = self.tables(sparse)
        parts = vectors if isinstance(vectors, list) else [vectors.values()]
        if self.bottom is not None:
            parts = [self.bottom(dense), *parts]
        logits: torch.Tensor = self.mlp(torch.cat(parts, dim=1)).squeeze(1)
        return logits


@dataclass
class Loop:
    """Hand-written training loop over (sparse, dense, label) in memory."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    inputs: Sequence[tuple[Any, torch.Tensor, torch.Tensor]]

    def case(self, steps: int) -> Case:
        """Returns a case that times `steps` steps after the warm-up."""

        def run() -> Seconds:
            self.train(WARM_UP_STEPS)
            return timed(lambda: self.train(steps))

        return run

    def train(self, steps: int) -> None:
        """Trains on the first inputs, again and again."""
        for sparse, dense, label in itertools.islice(itertools.cycle(self.inputs), steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            logits = self.model(sparse, dense)
            loss = functional.binary_cross_entropy_with_logits(logits, label)
            torch.autograd.backward(loss)
            for optimizer in self.optimizers:
                optimizer.step()


def plain_loop(schema: Schema, dim: int, batches: Sequence[LoadedBatch], sparse: bool) -> Loop:
    """Returns a loop of plain PyTorch: Adam, or SGD with sparse gradients for the tables.

    It runs on the device of the batches.
    """
    sizes = [schema.tables[feature.table] for feature in schema.sparse]
    tables = PlainTables(nn.EmbeddingBag(n, dim, mode="mean", sparse=sparse) for n in sizes)
    model = Model(tables, schema, dim).to(batches[0].label.device)
    inputs = []
    for batch in batches:
        features = [batch.sparse[feature.name] for feature in schema.sparse]
        bags = [(ids.values().long(), ids.offsets()[:-1].long()) for ids in features]
        inputs.append((bags, batch.dense, batch.label[:, 0]))
    if not sparse:
        return Loop(model, [torch.optim.Adam(model.parameters())], inputs)
    dense = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
    sgd = torch.optim.SGD(tables.parameters(), lr=0.01)
    return Loop(model, [sgd, torch.optim.Adam(dense)], inputs)


def torchrec_loop(schema: Schema, dim: int, batches: Sequence[LoadedBatch]) -> Loop:
    """Returns a loop of TorchRec's DistributedModelParallel with fused rowwise Adagrad."""
    configs = [
        EmbeddingBagConfig(
            name=feature.table,
            embedding_dim=dim,
            num_embeddings=schema.tables[feature.table],
            feature_names=[feature.name],
        )
        for feature in schema.sparse
    ]
    device = batches[0].label.device
    ebc = EmbeddingBagCollection(tables=configs, device=device)
    model = Model(ebc, schema, dim)
    spec = TableOptions("rowwise_adagrad", 0.02, MIN_SPARSE_ROWS, {})
    fuse_optimizer(ebc, spec, device)
    plan = plan_sharding(model, spec, device, local_world_size=1)
    dmp = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders())
    dense = in_backward_optimizer_filter(dmp.named_parameters())
    adam = torch.optim.Adam([parameter for _, parameter in dense])
    inputs = [(batch.sparse, batch.dense, batch.label[:, 0]) for batch in batches]
    return Loop(dmp, [dmp.fused_optimizer, adam], inputs)
