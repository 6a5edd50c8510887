"""`msrec plan --from` and `--measured`: the plan of a run, and its times against the estimates."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from msrec.data.io.outputs import PAGE, FileKind, check_output, contains
from msrec.data.io.yaml_files import write_yaml
from msrec.launch.config.run_config import load_config
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.launch.training.table_trace import TRACE_FILE
from msrec.tools.planner.command.build_request import catalogue_of, config_fields
from msrec.tools.planner.command.page import write_page
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.plan_text import comparison_table, print_plan, print_sentence
from msrec.tools.planner.hardware import Catalogue, Hardware
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import plan_as_placed
from msrec.tools.planner.sharding_options import COST_PARTS

COMPUTE = ("fwd_compute", "bwd_compute")
COMMS = ("fwd_comms", "bwd_comms")
MEASURED = "measured by"
MEASURED_HARDWARE = FileKind("a file of msrec plan --recalibrate", contains(MEASURED))
RankTimes = dict[str, Any]
"""Traced times of a rank, see `trace_tables`."""


def report_run(options: PlanOptions, console: Console | None = None) -> Plan:
    """Prints the plan of a run (--from), and its traced times against the estimates (--measured).

    Raises:
        FileNotFoundError: the folder has no config, plan or traced times.
        ValueError: `options.gpu` is another kind of device than the run's.
    """
    run_dir = options.measured or options.from_
    assert run_dir is not None, "the command has one of both"
    console = console or wide_console()
    quiet_libraries()
    request, entries = request_of_run(run_dir, options.gpu, catalogue_of(options))
    request = dataclasses.replace(request, estimator=options.estimator)
    plan = plan_as_placed(request, entries)
    print_plan(plan, console)
    compared = {}
    if options.measured:
        ratios = print_measured(run_dir, plan, console)
        if options.recalibrate is not None:
            hardware = write_recalibrated(
                options, plan, ratios, f"{MEASURED} the run {run_dir}", console
            )
            again = dataclasses.replace(request, hardware=hardware)
            compared["recalibrated"] = plan_as_placed(again, entries)
            console.print(comparison_table({"as estimated": plan} | compared))
    if options.page is not None:
        check_output(options.page, PAGE, [options.hardware])
        write_page(options.page, plan, compared, console)
    return plan


def request_of_run(
    run_dir: Path, gpu: str | None, catalogue: Catalogue
) -> tuple[PlanRequest, Mapping[str, Any]]:
    """Returns the request for a run's plan, and table -> its entry in that plan.

    Args:
        run_dir: run folder with config.yaml and plan.json; the run's dataset must exist.
        gpu: name of the accelerator; None takes `cpu`, or `h100` for a run on GPUs.
        catalogue: accelerators to look up `gpu` in; its nodes count if plan.json has none.

    Raises:
        FileNotFoundError: the run has no config or plan.
        ValueError: the accelerator is another kind of device than the run's.
    """
    config = load_config(run_dir / "config.yaml")
    file = run_dir / "plan.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} must exist: a run writes it when it begins to train.")
    saved = json.loads(file.read_text())
    entries = {
        name: entry for tables in saved["modules"].values() for name, entry in tables.items()
    }
    shards = [shard for entry in entries.values() for shard in entry["shards"]]
    device = "cuda" if any("cuda" in shard["placement"] for shard in shards) else "cpu"
    gpu = gpu or {"cuda": "h100", "cpu": "cpu"}[device]
    hardware = catalogue.load(gpu)
    if hardware.device != device:
        raise ValueError(f"{run_dir} trains on {device}; {gpu} is for {hardware.device}.")
    world_size = saved["world_size"]
    per_node = saved.get("per_node") or min(hardware.gpus_per_node, world_size)
    all_ranks = world_size * saved.get("copies", 1)
    request = PlanRequest(
        **config_fields(config, max(config.trainer.global_batch // all_ranks, 1)),
        hardware_name=gpu,
        hardware=hardware,
        nodes=all_ranks // per_node,
        per_node=per_node,
    )
    return request, entries


def print_measured(run_dir: Path, plan: Plan, console: Console) -> dict[str, float]:
    """Prints a run's traced times against the estimates of its plan.

    Returns:
        "compute" and "comms" -> measured over estimated milliseconds, of all ranks together.

    Raises:
        FileNotFoundError: the run traced nothing.
    """
    file = run_dir / TRACE_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} must exist: a run writes it at its end, with trainer.trace=20. A finished run "
            "writes it if it is started again with that option."
        )
    traced: list[RankTimes] = json.loads(file.read_text())["ranks"]
    console.print(_tables_table(plan, traced))
    console.print(_ranks_table(plan, traced))
    measured = {
        "compute": sum(
            sum(times[part] for times in rank["tables"].values() for part in COMPUTE)
            for rank in traced
        ),
        "comms": sum(rank[part] for rank in traced for part in COMMS),
    }
    ratios = {}
    for name, parts in (("compute", COMPUTE), ("comms", COMMS)):
        estimated = sum(load.ms[part] for load in plan.ranks for part in parts)
        if measured[name] and estimated:
            ratios[name] = measured[name] / estimated
            print_sentence(f"Measured {name} is {ratios[name]:.2f} times the estimate.", console)
    return ratios


def write_recalibrated(
    options: PlanOptions, plan: Plan, ratios: Mapping[str, float], source: str, console: Console
) -> Hardware:
    """Writes the accelerator with the measured bandwidths to `options.recalibrate`; returns it."""
    file, name = options.recalibrate, plan.hardware
    assert file is not None, "the command has it"
    check_output(file, MEASURED_HARDWARE, [options.hardware])
    hardware = recalibrated(plan.specification, ratios, source)
    write_yaml(file, {name: hardware.model_dump(mode="json")})
    print_sentence(f"wrote {file}: plan with --hardware {file} --gpu {name}", console)
    return hardware


def recalibrated(hardware: Hardware, ratios: Mapping[str, float], source: str) -> Hardware:
    """Returns the accelerator with the bandwidths that a run measured.

    An estimate is bytes over a bandwidth, so r times the estimated time is 1 / r of the bandwidth.
    `ratios` are those of `print_measured`; `source` says where the new figures come from.
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


def _tables_table(plan: Plan, traced: list[RankTimes]) -> Table:
    """Returns a table of lookup and update times, of each table on the rank where it is slowest."""
    table = Table(title="ms of each table: estimated, and measured on its slowest rank")
    for head in ("table", "sharding"):
        table.add_column(head)
    for head in ("rank", "lookup", "measured", "update", "measured", "measured / estimated"):
        table.add_column(head, justify="right")
    untraced = []
    for each in plan.by_cost:
        by_rank = [(r, rank["tables"].get(each.name)) for r, rank in enumerate(traced)]
        on_ranks = [(r, times) for r, times in by_rank if times is not None]
        if not on_ranks:
            untraced.append(each.name)
            continue
        slowest, times = max(on_ranks, key=lambda pair: sum(pair[1].values()))
        cells = [f"{ms:.3f}" for part in COMPUTE for ms in (each.ms[part], times[part])]
        estimate = sum(each.ms[part] for part in COMPUTE)
        ratio = f"{sum(times.values()) / estimate:.2f}" if estimate else ""
        table.add_row(each.name, each.option, str(slowest), *cells, ratio)
    if untraced:
        table.caption = f"not traced (no fused kernel): {', '.join(untraced)}"
    return table


def _ranks_table(plan: Plan, traced: list[RankTimes]) -> Table:
    table = Table(title="ms of each rank: estimated and measured")
    table.add_column("rank", justify="right")
    for head in ("lookup", "fwd comms", "update", "bwd comms"):
        table.add_column(head, justify="right")
        table.add_column("measured", justify="right")
    table.add_column("ids sent", justify="right")
    for number, (load, rank) in enumerate(zip(plan.ranks, traced, strict=True)):
        of_tables = {p: sum(times[p] for times in rank["tables"].values()) for p in COMPUTE}
        measured = rank | of_tables
        cells = [f"{ms:.2f}" for part in COST_PARTS for ms in (load.ms[part], measured[part])]
        table.add_row(str(number), *cells, f"{rank['ids']:.2f}")
    return table
