"""Run a few real steps on CPU ranks of this machine; lay the memory they took beside the plan's."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn

from msrec.data.io.atomic_files import write_json, write_text
from msrec.launch.config import RunConfig
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.launch.reporting.plan_table import size
from msrec.launch.training.trainer import Trainer
from msrec.tools.planner.plan import Plan

STEPS = 6
"""After which no allocation is a first one: optimizers have their state, the pipeline is full."""
WITHIN = 0.15
"""Of the measured peak that an estimate may be off."""
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Freed blocks of 1 MiB and more go back at once, so that what is resident is what is in use."""


def verify(plan: Plan, config: RunConfig, console: Console) -> bool:
    """Train `STEPS` steps by a plan and print estimated and measured peaks of each rank.

    What is measured is anonymous resident memory: at its peak during the steps, less what the
    process had before the run was built (interpreter and libraries). Nothing of the run is kept.

    Args:
        plan: for CPU ranks of one node.
        config: of the run that it is for.
        console: where to print.

    Returns:
        Whether every rank's estimate is within `WITHIN` of what was measured.

    Raises:
        ValueError: this machine has not the memory that the plan asks.
    """
    needed = sum(rank.total_memory for rank in plan.ranks)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"--verify runs all {plan.world_size} ranks on this machine, which must have "
            f"{size(needed)} for them; {size(free)} are free. Verify with scale=1e-3 or a smaller "
            "trainer.global_batch."
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        write_text(file, plan.model_dump_json())
        run = config.model_copy(update={"plan": file, "run_root": Path(folder)})
        with _environment(GIVE_BACK), console.status(f"{STEPS} steps on {plan.world_size} ranks"):
            args = (plan.world_size, _free_port(), run.model_dump(mode="json"), folder)
            spawn(_rank, args=args, nprocs=plan.world_size)  # type: ignore[no-untyped-call]
        written = [(Path(folder) / f"{r}.json").read_text() for r in range(plan.world_size)]
        peaks = [json.loads(text)["peak"] for text in written]
    console.print(_table(plan, peaks))
    worst = max(abs(_off(plan, rank, peak)) for rank, peak in enumerate(peaks))
    kept = "within" if worst <= WITHIN else "not within"
    console.print(
        f"The estimates are {kept} {WITHIN:.0%} of the peaks of {STEPS} real steps: off by "
        f"{worst:.1%} at most.",
        highlight=False,
    )
    return worst <= WITHIN


def _off(plan: Plan, rank: int, peak: int) -> float:
    return plan.ranks[rank].total_memory / peak - 1


def _table(plan: Plan, peaks: list[int]) -> Table:
    table = Table(title=f"memory of {plan.world_size} CPU ranks, {plan.batch:,} rows a rank")
    for head in ("rank", "estimate", "measured peak", "estimate is off by"):
        table.add_column(head, justify="right")
    for rank, peak in enumerate(peaks):
        estimate = plan.ranks[rank].total_memory
        table.add_row(str(rank), size(estimate), size(peak), f"{_off(plan, rank, peak):+.1%}")
    return table


def _rank(rank: int, world_size: int, port: int, values: Mapping[str, object], out: str) -> None:
    """One rank's steps; writes its peak."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    quiet_libraries()
    config = RunConfig.model_validate(values)
    with process_group("cpu") as process:
        before = resident()["RssAnon"]
        trainer = Trainer(config, process)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: that of the steps
        trainer.model.train()
        batches = (batch for epoch in range(STEPS) for batch in trainer.train.batches(epoch))
        for _ in range(STEPS):
            trainer.pipeline.progress(batches)
        now = resident()
        # Pages of files (code, the store) are only ever added, so that they are all in the peak.
        peak = now["VmHWM"] - now["RssFile"] - now["RssShmem"]
    write_json(Path(out) / f"{rank}.json", {"peak": peak - before})


def resident() -> dict[str, int]:
    """Bytes of this process by the kernel's names, the peak included."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * 1024
        for words in lines
        if words and words[0].startswith(("Rss", "VmHWM"))
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started meanwhile have."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
