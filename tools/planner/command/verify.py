"""`msrec plan --verify`: trains a few steps here and compares estimated and measured memory."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing.spawn import spawn

from msrec.data.io.atomic_files import write_json, write_text
from msrec.launch.config.run_config import RunConfig
from msrec.launch.console import wide_console
from msrec.launch.distributed import process_group
from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.launch.training.trainer import Trainer
from msrec.tools.planner.command.plan_text import print_sentence
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan

STEPS = 6
"""Enough steps for all allocations: optimizers have their state, and the pipeline is full."""
TOLERANCE = 0.15
"""Largest error of an estimate, as a share of the measured peak."""
RETURN_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Environment that returns freed blocks of 1 MiB and more to the system at once, so that resident
memory is memory in use."""


def verify_request(request: PlanRequest, ranks: int, console: Console | None = None) -> bool:
    """Plans a request for CPU ranks of this machine and verifies that plan, see `verify`.

    Raises:
        ValueError: the request has no config, or this machine has too little memory.
    """
    if request.config is None:
        raise ValueError("--verify needs a run's config, because it trains; got a list of tables.")
    on_cpu = dataclasses.replace(
        request,
        hardware_name="cpu",
        hardware=load_hardware("cpu"),
        nodes=1,
        per_node=ranks,
        load_factors=(),
        shardings=None,
    )
    global_batch = on_cpu.rows_per_rank * ranks
    trainer = request.config.trainer.model_copy(update={"global_batch": global_batch})
    config = request.config.model_copy(update={"trainer": trainer})
    plan = make_plan(dataclasses.replace(on_cpu, config=config))
    return verify(plan, config, console or wide_console())


def verify(plan: Plan, config: RunConfig, console: Console) -> bool:
    """Trains `STEPS` steps on CPU ranks and prints estimated and measured peaks.

    The measurement is the peak of anonymous resident memory during the steps, minus the memory of
    the process before the run was built (interpreter and libraries). The run leaves no files.

    Returns:
        Whether the estimate of every rank is within `TOLERANCE` of the measured peak.

    Raises:
        ValueError: this machine has less free memory than the plan needs.
    """
    needed = sum(rank.total_memory for rank in plan.ranks)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"--verify runs all {plan.world_size} ranks on this machine, which must have "
            f"{format_bytes(needed)} for them; {format_bytes(free)} are free. Verify with "
            "scale=1e-3 or a smaller trainer.global_batch."
        )
    with console.status(f"{STEPS} steps on {plan.world_size} ranks"):
        peaks = _measured_peaks(plan, config)
    table = Table(title=f"memory of {plan.world_size} CPU ranks, {plan.batch:,} rows per rank")
    for head in ("rank", "estimate", "measured peak", "error of the estimate"):
        table.add_column(head, justify="right")
    errors = []
    for rank, peak in enumerate(peaks):
        estimate = plan.ranks[rank].total_memory
        errors.append(estimate / peak - 1)
        table.add_row(str(rank), format_bytes(estimate), format_bytes(peak), f"{errors[-1]:+.1%}")
    console.print(table)
    worst = max(map(abs, errors))
    within = "within" if worst <= TOLERANCE else "not within"
    print_sentence(
        f"The estimates are {within} {TOLERANCE:.0%} of the peaks of {STEPS} real steps: off by "
        f"{worst:.1%} at most.",
        console,
    )
    return worst <= TOLERANCE


def _measured_peaks(plan: Plan, config: RunConfig) -> list[int]:
    """Returns the peak memory of each rank in bytes, from a run in temporary files."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, RETURN_FREED_MEMORY):
        file = Path(folder) / "plan.json"
        write_text(file, plan.model_dump_json())
        run = config.model_copy(update={"plan": file, "run_root": Path(folder)})
        port = get_free_port()  # type: ignore[no-untyped-call]
        args = (plan.world_size, port, run.model_dump(mode="json"), folder)
        spawn(_rank, args=args, nprocs=plan.world_size)  # type: ignore[no-untyped-call]
        results = [(Path(folder) / f"{r}.json").read_text() for r in range(plan.world_size)]
    return [json.loads(text)["peak"] for text in results]


def _rank(rank: int, world_size: int, port: int, values: Mapping[str, object], out: str) -> None:
    """Trains the steps of one rank and writes its peak."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    config = RunConfig.model_validate(values)
    with process_group("cpu") as process:
        before = resident_memory()["RssAnon"]
        trainer = Trainer(config, process)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, to that of the steps
        trainer.model.train()
        batches = (batch for epoch in range(STEPS) for batch in trainer.train.batches(epoch))
        for _ in range(STEPS):
            trainer.pipeline.progress(batches)
        after = resident_memory()
        # Pages of files (code, the store) are added and never dropped, so the peak has all of them.
        peak = after["VmHWM"] - after["RssFile"] - after["RssShmem"]
    write_json(Path(out) / f"{rank}.json", {"peak": peak - before})


def resident_memory() -> dict[str, int]:
    """Returns the resident bytes of this process and their peak, by the kernel's names."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) * 1024
        for words in lines
        if words and words[0].startswith(("Rss", "VmHWM"))
    }
