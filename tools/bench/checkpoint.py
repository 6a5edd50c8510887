"""How long a checkpoint holds training up, how long it is written, and how long it is read."""

import shutil
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.launch.checkpointing.checkpoint import Checkpoints, load_checkpoint
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.model.distributed.optimizers import optimizers
from msrec.model.distributed.sharding import TableOptions, fuse_optimizer, plan_sharding, shard

DIM = 64


class _Tables(nn.Module):
    """One large table and a dense layer: what a checkpoint is made of, by size."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        table = EmbeddingBagConfig(
            name="table",
            embedding_dim=DIM,
            num_embeddings=rows,
            feature_names=["feature"],
            pooling=PoolingType.SUM,
        )
        self.ebc = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
        self.dense = nn.Linear(DIM, DIM)


def bench_checkpoint(gib: float, out: Path, repeats: int) -> None:
    """Save and load a table split by rows over the ranks of this job.

    Args:
        gib: GiB of weights over all ranks; the optimizer's state is a row's number more.
        out: folder for the checkpoints; emptied first and after.
        repeats: saves, of which the median is told.

    Raises:
        ValueError: the table does not fit.
        OSError: the disk is full.
    """
    quiet_libraries()
    rows = int(gib * 2**30) // (4 * DIM)
    with process_group("cpu") as process:
        model, device = _Tables(rows), process.device
        spec = TableOptions("rowwise_adagrad", 0.1, 1, {"table": "row_wise"})
        fuse_optimizer(model.ebc, spec, device)
        plan = plan_sharding(model, spec, device, process.local_world_size)
        dmp = shard(model, plan, device, 0.1, 0)
        optimizer = optimizers(dmp, spec, lr=0.1, weight_decay=0.0)
        optimizer.init_state(set())
        if process.is_main:
            shutil.rmtree(out, ignore_errors=True)
        dist.barrier()
        blocked, written = [], []
        with Checkpoints(out) as checkpoints:
            for step in range(1, repeats + 1):
                started = time.perf_counter()
                path = checkpoints.save(dmp, optimizer, {"step": step, "best_step": step})
                blocked.append(time.perf_counter() - started)
                checkpoints.wait()
                written.append(time.perf_counter() - started)
        started = time.perf_counter()
        load_checkpoint(path, dmp, optimizer)
        loaded = time.perf_counter() - started
        if process.is_main:
            size = sum(file.stat().st_size for file in path.iterdir()) / 1e9
            table = Table("", "seconds", "s a GB", "GB/s")
            for name, seconds in (
                ("training held up", median(blocked)),
                ("written and committed", median(written)),
                ("checked and loaded", loaded),
            ):
                table.add_row(
                    name, f"{seconds:.2f}", f"{seconds / size:.3f}", f"{size / seconds:.1f}"
                )
            Console().print(f"{size:.2f} GB on {process.world_size} ranks", highlight=False)
            Console().print(table)
            shutil.rmtree(out)
