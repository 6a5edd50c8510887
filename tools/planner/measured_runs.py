"""What a run's plan comes to by the estimates, and its traced times beside them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import write_text
from msrec.launch.config import load_config
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.launch.training.table_trace import TRACE_FILE
from msrec.tools.planner.hardware import Hardware, load_hardware
from msrec.tools.planner.page import plan_page
from msrec.tools.planner.plan import MODULE, PARTS, Plan, Request, plan_as_placed
from msrec.tools.planner.plan_command import comparison, of_config
from msrec.tools.planner.plan_text import tell

COMPUTE = ("fwd_compute", "bwd_compute")
COMMS = ("fwd_comms", "bwd_comms")


def tell_run(
    run_dir: Path,
    gpu: str | None,
    per_node: int,
    hardware_file: Path | None,
    measured: bool,
    recalibrate: Path | None,
    page: Path | None,
    console: Console | None = None,
) -> Plan:
    """Print a run's plan; with `measured` the times it traced, and write what they say.

    Args:
        run_dir: of the run.
        gpu: whose figures to take, see `request_of_run`.
        per_node: ranks of a node, where the run does not say it.
        hardware_file: where to look `gpu` up.
        measured: also what the run traced.
        recalibrate: file for an accelerator with the bandwidths that were measured.
        page: HTML file to write, with pictures.
        console: where to print.
    """
    console = console or wide_console()
    quiet_libraries()
    request, entries = request_of_run(run_dir, gpu, per_node, hardware_file)
    plan = plan_as_placed(request, entries)
    tell(plan, console)
    others = {}
    if measured:
        ratios = tell_measured(run_dir, plan, console)
        for what, ratio in ratios.items():
            console.print(f"Measured {what} is {ratio:.2f} times the estimate.", highlight=False)
        if recalibrate is not None:
            name, hardware = request.hardware
            found = recalibrated(hardware, ratios, f"measured by the run {run_dir}")
            write_text(recalibrate, yaml.safe_dump({name: found.model_dump(mode="json")}))
            console.print(
                f"wrote {recalibrate}: plan with --hardware {recalibrate} --gpu {name}",
                highlight=False,
                soft_wrap=True,
            )
            again = dataclasses.replace(request, hardware=(name, found))
            others["recalibrated"] = plan_as_placed(again, entries)
            console.print(comparison({"as estimated": plan} | others))
    if page is not None:
        write_text(page, plan_page(plan, others))
        console.print(f"wrote {page}", highlight=False, soft_wrap=True)
    return plan


def request_of_run(
    run_dir: Path, gpu: str | None, per_node: int | None, hardware_file: Path | None
) -> tuple[Request, Mapping[str, Any]]:
    """What a run's plan was made for, and table -> its entry in that plan.

    Args:
        run_dir: of the run; it has config.yaml and plan.json, and its dataset is still there.
        gpu: whose figures to take; None takes `cpu`, or `h100` for a run on GPUs.
        per_node: ranks of a node where plan.json does not say it.
        hardware_file: where to look `gpu` up.

    Raises:
        FileNotFoundError: the run has no config or plan.
        ValueError: the accelerator is of another kind than the run's.
    """
    config = load_config(run_dir / "config.yaml")
    file = run_dir / "plan.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} must exist: a run writes it when it begins to train.")
    saved = json.loads(file.read_text())
    entries = saved["modules"][MODULE]
    shards = [shard for entry in entries.values() for shard in entry["shards"]]
    kind = "cuda" if any("cuda" in shard["placement"] for shard in shards) else "cpu"
    gpu = gpu or {"cuda": "h100", "cpu": "cpu"}[kind]
    hardware = load_hardware(gpu, hardware_file)
    if hardware.device != kind:
        raise ValueError(f"{run_dir} trains on {kind}; {gpu} is for {hardware.device}.")
    world_size = saved["world_size"]
    per_node = saved.get("per_node") or min(per_node or world_size, world_size)
    request = Request(
        **of_config(config, max(config.trainer.global_batch // world_size, 1)),
        hardware=(gpu, hardware),
        nodes=world_size // per_node,
        per_node=per_node,
    )
    return request, entries


def tell_measured(run_dir: Path, plan: Plan, console: Console) -> dict[str, float]:
    """Print a run's traced times beside a plan's estimates.

    Args:
        run_dir: of the run, which trained with `trainer.trace`.
        plan: of the run.
        console: where to print.

    Returns:
        "compute" and "comms" -> measured over estimated, over all ranks.

    Raises:
        FileNotFoundError: the run traced nothing.
    """
    file = run_dir / TRACE_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} must exist: a run writes it when it ends, with trainer.trace=20. A finished "
            "run writes it too if it is started again so."
        )
    ranks: list[dict[str, Any]] = json.loads(file.read_text())["ranks"]
    console.print(_tables_table(plan, ranks))
    console.print(_ranks_table(plan, ranks))
    sums = {
        "compute": (
            sum(
                sum(rank["tables"][t][part] for t in rank["tables"] for part in COMPUTE)
                for rank in ranks
            ),
            sum(load.ms[part] for load in plan.ranks for part in COMPUTE),
        ),
        "comms": (
            sum(rank[part] for rank in ranks for part in COMMS),
            sum(load.ms[part] for load in plan.ranks for part in COMMS),
        ),
    }
    return {what: m / e for what, (m, e) in sums.items() if e and m}


def recalibrated(hardware: Hardware, ratios: Mapping[str, float], source: str) -> Hardware:
    """The same accelerator with the bandwidths that a run measured.

    An estimate is bytes over a bandwidth, so that a time r times as long is 1 / r of the bandwidth.

    Args:
        hardware: what the estimates were made with.
        ratios: of `tell_measured`.
        source: what to name as where the figures are from.
    """
    compute, comms = ratios.get("compute", 1.0), ratios.get("comms", 1.0)
    return hardware.model_copy(
        update={
            "memory_gb_s": hardware.memory_gb_s / compute,
            "host_gb_s": hardware.host_gb_s / compute,
            "intra_node_gb_s": hardware.intra_node_gb_s / comms,
            "inter_node_gb_s": hardware.inter_node_gb_s / comms,
            "sources": [*hardware.sources, source],
        }
    )


def _tables_table(plan: Plan, ranks: list[dict[str, Any]]) -> Table:
    """Each table on the rank where it took longest."""
    table = Table(title="a table's times, ms: estimated, measured where it took longest")
    for head in ("table", "sharding", "rank", "lookup", "", "update", "", "measured / estimated"):
        table.add_column(head, justify="left" if head in ("table", "sharding") else "right")
    untraced = []
    for each in plan.by_cost:
        found = {r: rank["tables"].get(each.name) for r, rank in enumerate(ranks)}
        timed = {r: times for r, times in found.items() if times is not None}
        if not timed:
            untraced.append(each.name)
            continue
        rank, times = max(timed.items(), key=lambda pair: sum(pair[1].values()))
        cells = [f"{v:.3f}" for part in COMPUTE for v in (each.ms[part], times[part])]
        estimate = sum(each.ms[part] for part in COMPUTE)
        ratio = f"{sum(times.values()) / estimate:.2f}" if estimate else ""
        table.add_row(each.name, each.way, str(rank), *cells, ratio)
    if untraced:
        table.caption = f"not traced (no fused kernel): {', '.join(untraced)}"
    return table


def _ranks_table(plan: Plan, ranks: list[dict[str, Any]]) -> Table:
    table = Table(title="a rank's times, ms: estimated, measured")
    table.add_column("rank", justify="right")
    for part in PARTS:
        table.add_column(part.replace("_", " ").replace("compute", "").strip(), justify="right")
        table.add_column("", justify="right")
    table.add_column("ids sent", justify="right")
    for number, (load, rank) in enumerate(zip(plan.ranks, ranks, strict=True)):
        of_tables = {part: sum(t[part] for t in rank["tables"].values()) for part in COMPUTE}
        measured = of_tables | {part: rank[part] for part in COMMS}
        cells = [f"{v:.2f}" for part in PARTS for v in (load.ms[part], measured[part])]
        table.add_row(str(number), *cells, f"{rank['ids']:.2f}")
    return table
