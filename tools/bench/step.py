"""A bare training step, against hand-written loops of plain PyTorch and of TorchRec."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import Batch
from msrec.data.schema import Schema, load_schema
from msrec.launch.distributed import Process, process_group, quiet_libraries
from msrec.model.distributed.sharding import TableOptions, fuse_optimizer, plan_sharding, sharders
from msrec.tools.bench.harness.measure import Aim, Case, Finding, Took, interleaved, rates, timed
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.harness.shapes import large_tables, movielens_tables, shaped
from msrec.tools.bench.harness.training import Training

BOTTOM, DIMS = 64, (128, 64)
IN_MEMORY = 12
"""Distinct batches, one after another."""
SKIP = 5
"""Steps of a round that do not count."""
SPARSE_FROM = 100_000
"""Rows of a table from which on a gradient as large as the table is slower than a sparse one."""
SMALL_AIM: Aim = ("at least", 1.0)
LARGE_AIM: Aim = ("at least", 2.0)
OPTIONS = [
    *("backbone.name=mlp", f"backbone.dims={list(DIMS)}", "backbone.dropout=0.0"),
    f"interaction.bottom_dims=[{BOTTOM}]",
]


class Over(nn.Module):
    """What stands over the looked-up vectors: a layer for dense features, an MLP."""

    def __init__(self, num_sparse: int, dim: int, num_dense: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(num_dense, BOTTOM), nn.ReLU()) if num_dense else None
        sizes = [num_sparse * dim + BOTTOM * bool(num_dense), *DIMS]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, vectors: list[torch.Tensor], dense: torch.Tensor) -> torch.Tensor:
        """Logits (B,)."""
        beside = [self.bottom(dense)] if self.bottom is not None else []
        logits: torch.Tensor = self.mlp(torch.cat([*beside, *vectors], dim=1)).squeeze(1)
        return logits


class Plain(nn.Module):
    """What one would write by hand: an nn.EmbeddingBag per feature.

    Shape:
        ids: for each feature (values, offsets), int64.
        returns: (B,), logits.
    """

    def __init__(self, schema: Schema, dim: int, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(schema.tables[f.table], dim, mode="mean", sparse=sparse)
            for f in schema.sparse
        )
        self.over = Over(len(schema.sparse), dim, len(schema.dense))

    def forward(
        self, ids: Sequence[tuple[torch.Tensor, torch.Tensor]], dense: torch.Tensor
    ) -> torch.Tensor:
        """Look up, concatenate, score."""
        vectors = [table(*i) for table, i in zip(self.tables, ids, strict=True)]
        logits: torch.Tensor = self.over(vectors, dense)
        return logits


class Rec(nn.Module):
    """The same on TorchRec's EmbeddingBagCollection."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=f.table,
                embedding_dim=dim,
                num_embeddings=schema.tables[f.table],
                feature_names=[f.name],
            )
            for f in schema.sparse
        ]
        self.ebc = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
        self.over = Over(len(schema.sparse), dim, len(schema.dense))
        self.names = [f.name for f in schema.sparse]

    def forward(self, sparse: KeyedJaggedTensor, dense: torch.Tensor) -> torch.Tensor:
        """Look up, concatenate, score."""
        logits: torch.Tensor = self.over([self.ebc(sparse).values()], dense)
        return logits


def bench_step(
    shapes: Sequence[str], batch: int, steps: int, repeats: int, dataset: Path | None
) -> None:
    """Measure on each shape.

    Args:
        shapes: of "movielens" and "large".
        batch: rows of a step.
        steps: of a round on small tables; a tenth on large ones.
        repeats: rounds.
        dataset: a folder, measured besides with tables of 16.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on, findings = machine(), list[Finding]()
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        for shape in shapes:
            is_large = shape == "large"
            tables = large_tables() if is_large else movielens_tables()
            data = shaped(Path(scratch) / shape, tables, IN_MEMORY, batch)
            places = (data, Path(scratch) / "runs")
            count = max(steps // 10, 2) if is_large else steps
            findings += _compared(shape, places, tables[0].dim, batch, count, repeats, process)
        if dataset is not None:
            places = (dataset, Path(scratch) / "runs")
            findings += _compared("dataset", places, 16, batch, steps, repeats, process)
    report("step", f"bare training steps of {batch:,} rows", findings, on)


def _compared(
    shape: str,
    places: tuple[Path, Path],
    dim: int,
    batch: int,
    steps: int,
    repeats: int,
    process: Process,
) -> list[Finding]:
    schema = load_schema(places[0])
    options = [*OPTIONS, f"embeddings.dim={dim}", f"trainer.global_batch={batch}"]
    training = Training(*places, options, process)
    batches = training.batches(IN_MEMORY)
    is_large = max(schema.tables.values()) >= SPARSE_FROM
    plain = "nn.EmbeddingBag, sparse SGD" if is_large else "nn.EmbeddingBag, Adam"
    cases: dict[str, Case] = {
        "msrec": lambda: training.run(lambda: itertools.cycle(batches), steps + SKIP, SKIP),
        plain: _loop(*_plain(schema, dim, batches, is_large), steps),
    }
    if not is_large:
        cases["TorchRec DMP"] = _loop(*_torchrec(schema, dim, batches), steps)
    took = interleaved(cases, repeats)
    ours, rows = took.pop("msrec"), steps * batch
    aims = {plain: LARGE_AIM if is_large else SMALL_AIM}
    return [
        rates(f"{shape}: against {name}", ours, other, rows, aim=aims.get(name))
        for name, other in took.items()
    ]


Step = Callable[[Any], torch.Tensor]
"""One batch as a loop has it in memory -> its loss."""


def _loop(
    inputs: Sequence[Any], loss: Step, optimizers: Sequence[torch.optim.Optimizer], steps: int
) -> Case:
    """Steps over batches in memory."""

    def run() -> Took:
        def work(count: int) -> None:
            for batch in itertools.islice(itertools.cycle(inputs), count):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                torch.autograd.backward(loss(batch))
                for optimizer in optimizers:
                    optimizer.step()

        work(SKIP)
        return timed(lambda: work(steps))

    return run


def _plain(
    schema: Schema, dim: int, batches: Sequence[Batch], sparse: bool
) -> tuple[list[Any], Step, list[torch.optim.Optimizer]]:
    model = Plain(schema, dim, sparse)
    inputs = []
    for batch in batches:
        bags = [batch.sparse[feature.name] for feature in schema.sparse]
        ids = [(bag.values().long(), bag.offsets()[:-1].long()) for bag in bags]
        inputs.append((ids, batch.dense, batch.label[:, 0]))

    def loss(batch: Any) -> torch.Tensor:
        ids, dense, label = batch
        return functional.binary_cross_entropy_with_logits(model(ids, dense), label)

    if not sparse:
        return inputs, loss, [torch.optim.Adam(model.parameters())]
    tables = torch.optim.SGD(model.tables.parameters(), lr=0.01)
    return inputs, loss, [tables, torch.optim.Adam(model.over.parameters())]


def _torchrec(
    schema: Schema, dim: int, batches: Sequence[Batch]
) -> tuple[list[Any], Step, list[torch.optim.Optimizer]]:
    model, device = Rec(schema, dim), torch.device("cpu")
    spec = TableOptions("rowwise_adagrad", 0.02, SPARSE_FROM, {})
    fuse_optimizer(model.ebc, spec, device)
    plan = plan_sharding(model, spec, device, local_world_size=1)
    dmp = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders())
    dense = in_backward_optimizer_filter(dmp.named_parameters())
    adam = torch.optim.Adam([parameter for _, parameter in dense])

    def loss(batch: Batch) -> torch.Tensor:
        logits = dmp(batch.sparse, batch.dense)
        return functional.binary_cross_entropy_with_logits(logits, batch.label[:, 0])

    return list(batches), loss, [dmp.fused_optimizer, adam]
