"""`msrec plan`: makes a plan, prints it and writes it as JSON and as an HTML page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import PAGE, FileKind, check_output, contains
from msrec.launch.console import wide_console
from msrec.tools.planner.command.build_request import (
    AUTO,
    catalogue_of,
    request_from_options,
    with_changes,
)
from msrec.tools.planner.command.cluster_size import fewest_gpus, plans_of_groups
from msrec.tools.planner.command.plan_file import PLAN
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.plan_text import (
    comparison_table,
    estimators_table,
    print_plan,
    print_sentence,
)
from msrec.tools.planner.export.constraints import constraints_source
from msrec.tools.planner.hardware import STOCK, Catalogue
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan, plan_as_placed

CONSTRAINTS = FileKind("constraints of msrec plan", contains("Constraints for TorchRec's planner"))


def plan_command(options: PlanOptions) -> bool:
    """Runs `msrec plan`.

    Returns:
        Whether the plan fits, or with --verify, whether the estimates hold.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or an option is invalid.
    """
    # Imports of the trainer and of plots, which a plain plan does not need, are in the branches.
    if options.measured or options.from_:
        if is_of_run(options.measured or options.from_):
            from msrec.tools.planner.command.measured_runs import report_run

            report_run(options)
        else:
            from msrec.tools.planner.command.measured_traces import report_plan

            report_plan(options)
        return True
    plan_out = options.out or Path("plan.json")
    outputs = ((plan_out, PLAN), (options.page, PAGE), (options.constraints, CONSTRAINTS))
    for out, kind in outputs:
        if out is not None:
            check_output(out, kind, [options.source, options.hardware, options.tables])
    request, catalogue = request_from_options(options), catalogue_of(options)
    changes = options.set_ or []
    if not options.compare:
        for change in changes:
            request = with_changes(request, change, catalogue)
    if options.verify is not None:
        from msrec.tools.planner.command.verify import verify_request

        return verify_request(request, options.verify)
    return plan_tables(
        request,
        plan_out,
        options.page,
        min_gpus=options.min_gpus,
        best_groups=options.group_ranks == AUTO,
        compare=changes if options.compare else (),
        catalogue=catalogue,
        constraints=options.constraints,
    ).fits


def is_of_run(path: Path | None) -> bool:
    """Returns whether the times, or the plan, are those of a run folder of msrec.

    A folder without traces is taken for one, so that the error is about runs.
    """
    if path is None or path.suffix in (".json", ".gz", ".csv"):
        return False
    return (path / "config.yaml").exists() or not any(path.glob("*.json*"))


def plan_tables(
    request: PlanRequest,
    out: Path | None,
    page: Path | None = None,
    *,
    min_gpus: bool = False,
    best_groups: bool = False,
    compare: Sequence[str] = (),
    catalogue: Catalogue = STOCK,
    constraints: Path | None = None,
    console: Console | None = None,
) -> Plan:
    """Makes a plan, prints it and writes it.

    Args:
        request: to plan for.
        out: JSON file to write; None writes none. A plan that does not fit is not written.
        page: HTML file with charts to write; None writes none.
        min_gpus: whether to take the fewest GPUs that have room, see `fewest_gpus`.
        best_groups: whether to take the number of ranks per copy of the tables with the shortest
            step, and to compare all numbers that have room.
        compare: changes, such as dim=128 or gpu=h200, whose plans are compared with this one.
        catalogue: accelerators to look up a changed `gpu` in.
        constraints: Python file to write for TorchRec's planner; None writes none.
        console: to print on; None makes one.

    Raises:
        ValueError: a change is invalid, or no number of GPUs has room.
    """
    console = console or wide_console()
    if min_gpus and best_groups:
        raise ValueError("--min-gpus is for one copy of the tables; leave out --group-ranks auto.")
    groups = plans_of_groups(request) if best_groups else {}
    if groups:
        number = min(groups, key=lambda number: groups[number].step_ms)
        request, plan = dataclasses.replace(request, group_ranks=number), groups[number]
    else:
        plan = fewest_gpus(request) if min_gpus else make_plan(request)
    if min_gpus:
        request = dataclasses.replace(request, nodes=plan.nodes, per_node=plan.per_node)
    changed = {change: with_changes(request, change, catalogue) for change in compare}
    planned = {each.hardware_name for each in (request, *changed.values())}
    catalogue.refuse_unused_prices({*planned, *(pool.name for pool in request.pools)})
    for note in request.notes:
        print_sentence(note, console)
    print_plan(plan, console)
    if request.estimator == "torchrec":
        entries = {name: entry for of in plan.modules.values() for name, entry in of.items()}
        other = plan_as_placed(dataclasses.replace(request, estimator="msrec"), entries)
        console.print(estimators_table(plan, other))
        print_sentence(
            f"TorchRec's planner estimates a step of {plan.step_ms:.3f} ms for this plan, and "
            f"msrec {other.step_ms:.3f} ms, {max(r.ms['latency'] for r in other.ranks):.3f} ms of "
            "it latency.",
            console,
        )
    if min_gpus:
        gpus = f"{plan.nodes} node{'s' if plan.nodes > 1 else ''} of {plan.per_node}"
        print_sentence(f"The fewest GPUs with room: {gpus}.", console)
    compared = {f"groups of {number}": of for number, of in groups.items() if of is not plan}
    compared |= {change: make_plan(other) for change, other in changed.items()}
    if compared:
        name = f"groups of {request.group_ranks}" if groups else "as asked"
        console.print(comparison_table({name: plan} | compared))
    if out is not None and plan.fits:
        write_text(out, plan.model_dump_json(indent=1) + "\n")
        print_sentence(f"wrote {out}, plan {plan.hash[:12]}", console)
    if constraints is not None and plan.fits:
        write_text(constraints, constraints_source(plan, request.tables))
        print_sentence(f"wrote {constraints}", console)
    if page is not None:
        from msrec.tools.planner.command.page import write_page  # takes half a second to import

        write_page(page, plan, compared, console)
    return plan
