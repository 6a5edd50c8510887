"""`msrec bench checkpoint`: how long saving blocks training, takes to commit, and to load."""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.io.outputs import FolderKind, emptied_folder
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.loading import load_checkpoint
from msrec.launch.distributed import Process, process_group
from msrec.model.distributed.optimizers import optimizers
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.sharding import shard
from msrec.model.distributed.table_options import TableOptions
from msrec.model.distributed.tables import fuse_optimizer
from msrec.tools.bench.harness.measure import (
    Seconds,
    compare_rates,
    compare_times,
    interleaved,
    now,
)
from msrec.tools.bench.harness.options import Repeats
from msrec.tools.bench.harness.report import prepare, report

DIM = 64
BENCH_CHECKPOINTS = FolderKind(
    "a folder of msrec bench checkpoint", ".msrec-bench", (".msrec-bench", "step-*/**")
)


def bench_checkpoint(
    gib: Annotated[float, typer.Option(min=0.01, help="GiB of weights over all ranks")] = 1.0,
    out: Annotated[
        Path, typer.Option(help="folder for the checkpoints; emptied before and after")
    ] = Path("runs/checkpoint"),
    repeats: Repeats = 3,
) -> None:
    """Saving and loading a checkpoint, and the time training waits.

    Saving blocks training only until the state is copied; a thread then writes and commits it.
    """
    on = prepare(threads=None)
    with process_group() as process:
        model, optimizer = _sharded_table(int(gib * 2**30) // (4 * DIM), process)
        if process.is_main:
            emptied_folder(out, BENCH_CHECKPOINTS)
        dist.barrier()
        blocked, paths = list[Seconds](), list[Path]()
        with Checkpoints(out) as checkpoints:

            def save() -> None:
                step = len(paths) + 1
                state = {"step": step, "best_step": step}
                start = now()
                paths.append(checkpoints.save(model, optimizer, state))
                blocked.append(now() - start)
                checkpoints.wait()

            def load() -> None:
                load_checkpoint(paths[-1], model, optimizer)

            rounds = interleaved({"save": save, "load": load}, repeats, warm_up=0)
        if not process.is_main:
            return
        gigabytes = sum(file.stat().st_size for file in paths[-1].iterdir()) / 1e9
        shutil.rmtree(out)
    findings = [
        compare_times("training blocked, against the whole save", blocked, rounds["save"]),
        compare_rates(
            "saved and committed, against checked and loaded",
            rounds["save"],
            rounds["load"],
            gigabytes,
            "GB/s",
        ),
    ]
    title = f"checkpoints of {gigabytes:.2f} GB on {process.world_size} ranks"
    report("checkpoint", title, findings, on)


def _sharded_table(rows: int, process: Process) -> tuple[nn.Module, CombinedOptimizer]:
    model, device = _Tables(rows), process.device
    spec = TableOptions("rowwise_adagrad", 0.1, 1, {"table": "row_wise"})
    fuse_optimizer(model.ebc, spec, device)
    plan = plan_sharding(model, spec, device, process.local_world_size)
    sharded = shard(model, plan, device, 0.1, 0)
    optimizer = optimizers(sharded, spec, lr=0.1, weight_decay=0.0)
    optimizer.init_state(set())
    return sharded, optimizer


class _Tables(nn.Module):
    """Large table and dense layer that make up the bytes of a checkpoint."""

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
