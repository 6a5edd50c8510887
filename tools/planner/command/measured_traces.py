"""`msrec plan --from PLAN --measured TRACE`: a plan against the times of any trainer."""

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from msrec.launch.console import wide_console
from msrec.tools.planner.command.measured_runs import MEASURED, write_recalibrated
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.plan_text import ONE_WAY, print_plan, print_sentence
from msrec.tools.planner.command.trace_files import Measured, read_measured
from msrec.tools.planner.plan import Plan


def report_plan(options: PlanOptions, console: Console | None = None) -> Plan:
    """Prints a plan file (--from), and measured times against its estimates (--measured).

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is invalid, or a time is of another rank or table than the plan's.
    """
    console = console or wide_console()
    plan = read_plan(options.from_)
    print_plan(plan, console)
    if options.measured is not None:
        measured = read_measured(options.measured)
        _check(measured, plan, options.measured)
        ratios = print_ratios(measured, plan, console)
        if options.recalibrate is not None:
            write_recalibrated(options, plan, ratios, f"{MEASURED} {options.measured}", console)
    return plan


def read_plan(path: Path | None) -> Plan:
    """Reads a plan that `msrec plan` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not such a plan.
    """
    if path is None:
        raise ValueError(
            "--measured with a trace or a table of times must have --from PLAN, the plan.json that "
            "the trainer ran; got none."
        )
    if not path.is_file():
        raise FileNotFoundError(f"--from {path} must be a run folder or a plan.json; it is none.")
    try:
        return Plan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = str(error).splitlines()[2].strip()
        raise ValueError(f"{path} must be a plan written by msrec plan; {first:.80}.") from None


def print_ratios(measured: Measured, plan: Plan, console: Console) -> dict[str, float]:
    """Prints measured against estimated times, by rank and, if they were measured, by table.

    Returns:
        "compute" and "comms" -> measured over estimated milliseconds, of all measured ranks.
    """
    by_rank = Table(title="ms of each rank: estimated and measured")
    for head in ("rank", "compute", "measured", "comms", "measured"):
        by_rank.add_column(head, justify="right")
    sums = {part: [0.0, 0.0] for part in ONE_WAY}
    for rank, parts in sorted(measured.ranks.items()):
        found = {
            "compute": parts.get("compute", 0.0) + sum(parts.get(p, 0.0) for p in COMPUTE_PARTS),
            "comms": parts.get("comms", 0.0),
        }
        cells = []
        for part in ONE_WAY:
            estimate = plan.ranks[rank].ms[f"fwd_{part}"] + plan.ranks[rank].ms[f"bwd_{part}"]
            cells += [f"{estimate:.3f}", f"{found[part]:.3f}" if found[part] else "not measured"]
            if found[part]:
                sums[part][0] += estimate
                sums[part][1] += found[part]
        by_rank.add_row(str(rank), *cells)
    if measured.tables:
        console.print(_by_table(measured, plan))
    console.print(by_rank)
    ratios = {part: took / estimate for part, (estimate, took) in sums.items() if took and estimate}
    for part, ratio in ratios.items():
        print_sentence(f"Measured {part} is {ratio:.2f} times the estimate.", console)
    left_out = {
        p: sum(r.get(p, 0.0) for r in measured.ranks.values()) for p in ("ids", "all_reduce")
    }
    for part, ms in left_out.items():
        if ms:
            what = {"ids": "the sending of ids", "all_reduce": "all-reduces of the dense part"}
            mean = ms / len(measured.ranks)
            print_sentence(f"No estimate covers {what[part]}: {mean:.3f} ms a rank.", console)
    missing = plan.world_size - len(measured.ranks)
    if missing:
        print_sentence(f"{missing} of {plan.world_size} ranks were not measured.", console)
    return ratios


COMPUTE_PARTS = ("fwd_compute", "bwd_compute")


def _by_table(measured: Measured, plan: Plan) -> Table:
    table = Table(title="ms of each table, both directions: estimated, and measured where slowest")
    for head in ("table", "sharding"):
        table.add_column(head, overflow="fold")
    for head in ("rank", "compute", "measured", "measured / estimated"):
        table.add_column(head, justify="right")
    for each in plan.by_cost:
        if each.name not in measured.tables:
            continue
        rank, ms = max(measured.tables[each.name].items(), key=lambda pair: pair[1])
        estimate = sum(each.ms[part] for part in COMPUTE_PARTS) * each.ranks.count(rank)
        ratio = f"{ms / estimate:.2f}" if estimate else ""
        table.add_row(each.name, each.option, str(rank), f"{estimate:.3f}", f"{ms:.3f}", ratio)
    missing = [each.name for each in plan.by_cost if each.name not in measured.tables]
    if missing:
        table.caption = f"not measured: {', '.join(missing)}"
    return table


def _check(measured: Measured, plan: Plan, path: Path) -> None:
    """Refuses times of ranks or tables that the plan does not have."""
    unknown = [rank for rank in measured.ranks if not 0 <= rank < plan.world_size]
    if unknown:
        raise ValueError(
            f"{path} must have times of the plan's {plan.world_size} ranks; it has rank "
            f"{unknown[0]}."
        )
    ranks = {table.name: set(table.ranks) for table in plan.tables}
    for name, of_table in measured.tables.items():
        if name not in ranks:
            raise ValueError(f"{path} must have times of the plan's tables; it has {name!r}.")
        other = sorted(set(of_table) - ranks[name])
        if other:
            planned = ", ".join(map(str, sorted(ranks[name])))
            raise ValueError(
                f"{path} must have times where a table is; the plan has {name} on rank {planned}, "
                f"the file on rank {other[0]}."
            )
