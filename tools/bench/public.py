"""A public library's training of the same rows, where it is installed: torch-rechub's MMoE."""

import importlib.util
import io
import time
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from msrec.data.schema import load_schema
from msrec.launch.config import load_config

LIBRARY = "torch-rechub"


def has_rechub() -> bool:
    """Whether torch-rechub is installed."""
    return importlib.util.find_spec("torch_rechub") is not None


class ByScenario(nn.Module):
    """A model of many tasks as one of many scenarios: of each row its own scenario's task.

    Shape:
        x: features by name, (B,) each, and `scenario`, (B,), int64.
        returns: (B,), click probabilities.
    """

    def __init__(self, tasks: nn.Module) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, x: dict[str, Tensor]) -> Tensor:  # noqa: D102
        found: Tensor = self.tasks(x)
        return found.gather(1, x["scenario"].unsqueeze(1)).squeeze(1)


def rechub_rows_per_s(dataset: Path, options: list[str], batch: int, batches: int) -> float:
    """Rows a second that it trains on, by its own loader, layers, trainer and optimizer.

    Experts and towers are as wide as those of the run that `options` describe. Features of several
    values are left out, to its advantage. In a process of its own: it sets torch's threads to one.

    Args:
        dataset: the folder.
        options: overrides of the run that it is compared with.
        batch: rows of a step.
        batches: steps; the rows of one epoch are read beforehand, which does not count.

    Raises:
        ModuleNotFoundError: torch-rechub is not installed.
    """
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = load_schema(dataset)
    config = load_config(None, [f"dataset={dataset}", *options])
    sparse = [feature for feature in schema.sparse if not feature.multi]
    names = [feature.name for feature in sparse]
    columns = [*names, "scenario", schema.labels[0]]
    table = pq.read_table(dataset / "train", columns=columns)[: batch * batches]
    x = {name: table[name].to_numpy().astype(np.int64) for name in [*names, "scenario"]}
    features = [
        SparseFeature(f.name, schema.tables[f.table], embed_dim=config.embeddings.dim)
        for f in sparse
    ]
    mmoe = config.backbone
    experts = {"dims": mmoe.expert_dims, "activation": "relu"}
    towers = [{"dims": mmoe.tower_dims} for _ in schema.scenarios]
    kinds = ["classification"] * len(towers)
    model = ByScenario(MMOE(features, kinds, mmoe.num_experts, experts, towers))
    trainer = CTRTrainer(model, n_epoch=1)
    label = table[schema.labels[0]].to_numpy().astype(np.float32)
    loader = DataGenerator(x, label).generate_dataloader(
        x_val=x, y_val=label, x_test=x, y_test=label, batch_size=batch
    )[0]
    started = time.perf_counter()
    with redirect_stderr(io.StringIO()):  # its progress bar
        trainer.train_one_epoch(loader)
    return len(label) / (time.perf_counter() - started)
