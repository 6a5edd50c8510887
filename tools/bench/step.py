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
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

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
from msrec.tools.bench.reference.layers import Bag, Net, Tables
from msrec.tools.bench.reference.models import MODELS
from msrec.tools.bench.reference.rechub import RECHUB, RechubModel, rechub_inputs

SHAPES = ("movielens", "large")
BOTTOM_DIM, MLP_DIMS = 64, (128, 64)
MIN_SPARSE_ROWS = 100_000
"""Rows of a table from which a sparse gradient is faster than a dense one as large as the table."""
PLAIN = "plain PyTorch, Adam"
PLAIN_SPARSE = "plain PyTorch, sparse SGD"
AIMS: dict[str, Aim] = {PLAIN: ("at least", 1.0), PLAIN_SPARSE: ("at least", 2.0)}
NARROW_MLP = partial(MODELS["mlp"], dims=MLP_DIMS)
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
    plain: Annotated[
        str, typer.Option(help=f"measure these models instead of an MLP: {', '.join(MODELS)}")
    ] = "",
    rechub: Annotated[
        str,
        typer.Option(help=f"compare these models with torch-rechub's: {', '.join(RECHUB)}"),
    ] = "",
) -> None:
    """A training step, against hand-written loops of plain PyTorch and TorchRec.

    All train the same MLP on batches in memory, or each of --plain with its default widths, against
    plain PyTorch. Large tables get a tenth of the steps. Several shapes or models are separated by
    commas. A dataset is measured in addition to the shapes.

    Raises:
        ValueError: a shape or a model is unknown.
    """
    names, models = comma_list("shapes", shapes, str), comma_list("plain", plain, str)
    of_others = comma_list("rechub", rechub, str)
    for option, given, known in (
        ("shapes", names, SHAPES),
        ("plain", models, MODELS),
        ("rechub", of_others, RECHUB),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"--{option} must name some of {', '.join(known)}; got {name!r}.")
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
            root, schema = Path(scratch) / "runs" / name, load_schema(folder)
            comparisons = _precisions(
                comma_list("backbones", backbones, str), make, root, options, count
            )
            for model in dict.fromkeys([*models, *of_others]):
                training = make(root / "plain" / model, [f"backbone.name={model}", *options])
                cases = comparisons[f"{name}, {model}"] = {"msrec": training.in_memory(count)}
                if model in models:
                    loop = plain_loop(schema, dim, training.batches(), MODELS[model])
                    cases[PLAIN] = loop.case(count)
                if model in of_others:
                    loop = rechub_loop(schema, dim, training.batches(), model)
                    cases["torch-rechub"] = loop.case(count)
            if not comparisons:
                training = make(root, [*OPTIONS, *options])
                comparisons = {name: _cases(schema, dim, training, count)}
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
    plain = plain_loop(schema, dim, batches)
    torchrec = torchrec_loop(schema, dim, batches)
    return cases | {PLAIN: plain.case(steps), "TorchRec DMP": torchrec.case(steps)}


@dataclass
class Loop:
    """Hand-written training loop over the model's inputs and the label, in memory."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    inputs: Sequence[tuple[Any, ...]]

    def case(self, steps: int) -> Case:
        """Returns a case that times `steps` steps after the warm-up."""

        def run() -> Seconds:
            self.train(WARM_UP_STEPS)
            return timed(lambda: self.train(steps))

        return run

    def train(self, steps: int) -> None:
        """Trains on the first inputs, again and again."""
        for *inputs, label in itertools.islice(itertools.cycle(self.inputs), steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            logits = self.model(*inputs)
            loss = functional.binary_cross_entropy_with_logits(logits, label)
            torch.autograd.backward(loss)
            for optimizer in self.optimizers:
                optimizer.step()


def plain_loop(
    schema: Schema,
    dim: int,
    batches: Sequence[LoadedBatch],
    model: Callable[..., nn.Module] = NARROW_MLP,
    sparse: bool = False,
) -> Loop:
    """Returns a loop of plain PyTorch: Adam, or SGD with sparse gradients for the tables.

    It runs on the device of the batches.
    """
    sizes = [schema.tables[feature.table] for feature in schema.sparse]
    tables = Tables(sizes, [feature.multi for feature in schema.sparse], dim, sparse)
    net = _net(tables, schema, dim, model).to(batches[0].label.device)
    inputs = []
    for batch in batches:
        ids: list[torch.Tensor | Bag] = []
        for feature in schema.sparse:
            bags = batch.sparse[feature.name]
            values = bags.values().long()
            ids.append((values, bags.offsets()[:-1].long()) if feature.multi else values)
        inputs.append((ids, batch.dense, batch.scenario, batch.label[:, 0]))
    if not sparse:
        return Loop(net, [torch.optim.Adam(net.parameters())], inputs)
    dense = [p for name, p in net.named_parameters() if not name.startswith("tables.")]
    sgd = torch.optim.SGD(tables.parameters(), lr=0.01)
    return Loop(net, [sgd, torch.optim.Adam(dense)], inputs)


def rechub_loop(schema: Schema, dim: int, batches: Sequence[LoadedBatch], model: str) -> Loop:
    """Returns a loop of a model of torch-rechub with Adam."""
    net = RechubModel(model, schema, dim)
    return Loop(net, [torch.optim.Adam(net.parameters())], rechub_inputs(schema, batches))


def _net(tables: nn.Module, schema: Schema, dim: int, model: Callable[..., nn.Module]) -> Net:
    return Net(tables, len(schema.sparse), dim, len(schema.dense), schema.num_scenarios, model)


class PooledVectors(nn.Module):
    """TorchRec's collection, whose vectors are returned as one tensor."""

    def __init__(self, ebc: EmbeddingBagCollection) -> None:
        super().__init__()
        self.ebc = ebc

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        """Returns the sums of each feature, (B, F * dim)."""
        values: torch.Tensor = self.ebc(sparse).values()
        return values


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
    model = _net(PooledVectors(ebc), schema, dim, NARROW_MLP).to(device)
    spec = TableOptions("rowwise_adagrad", 0.02, MIN_SPARSE_ROWS, {})
    fuse_optimizer(ebc, spec, device)
    plan = plan_sharding(model, spec, device, local_world_size=1)
    dmp = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders())
    dense = in_backward_optimizer_filter(dmp.named_parameters())
    adam = torch.optim.Adam([parameter for _, parameter in dense])
    inputs = [(b.sparse, b.dense, b.scenario, b.label[:, 0]) for b in batches]
    return Loop(dmp, [dmp.fused_optimizer, adam], inputs)
