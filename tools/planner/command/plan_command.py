"""`msrec plan`: makes a plan, prints it and writes it as JSON and as an HTML page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import PAGE, check_output
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.tools.planner.command.build_request import request_from_options, with_changes
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.plan_text import (
    comparison_table,
    print_plan,
    print_sentence,
    summary,
)
from msrec.tools.planner.make_plan import make_plan
from msrec.tools.planner.plan import PLAN, Plan
from msrec.tools.planner.request import MAX_NODES, PlanRequest


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
        from msrec.tools.planner.command.measured_runs import report_run

        report_run(options)
        return True
    for out, kind in ((options.out, PLAN), (options.page, PAGE)):
        if out is not None:
            check_output(out, kind, [options.source, options.hardware])
    request = request_from_options(options)
    changes = options.set_ or []
    if not options.compare:
        for change in changes:
            request = with_changes(request, change, options.hardware)
    if options.verify is not None:
        from msrec.tools.planner.command.verify import verify_request

        return verify_request(request, options.verify)
    return plan_tables(
        request,
        options.out,
        options.page,
        min_gpus=options.min_gpus,
        compare=changes if options.compare else (),
        hardware_file=options.hardware,
    ).fits


def plan_tables(
    request: PlanRequest,
    out: Path | None,
    page: Path | None = None,
    *,
    min_gpus: bool = False,
    compare: Sequence[str] = (),
    hardware_file: Path | None = None,
    console: Console | None = None,
) -> Plan:
    """Makes a plan, prints it and writes it.

    Args:
        request: to plan for.
        out: JSON file to write; None writes none. A plan that does not fit is not written.
        page: HTML file with charts to write; None writes none.
        min_gpus: whether to take the fewest nodes (of `request.per_node` ranks) that have room.
        compare: changes, such as dim=128 or gpu=h200, whose plans are compared with this one.
        hardware_file: YAML file to look up a changed `gpu` in.
        console: to print on; None makes one.

    Raises:
        ValueError: a change is invalid, or no number of nodes has room.
    """
    console = console or wide_console()
    quiet_libraries()
    plan = fewest_nodes(request) if min_gpus else make_plan(request)
    request = dataclasses.replace(request, nodes=plan.nodes)
    changed = {change: with_changes(request, change, hardware_file) for change in compare}
    print_plan(plan, console)
    if min_gpus:
        nodes = f"{plan.nodes} node{'s' if plan.nodes > 1 else ''} of {plan.per_node} ranks"
        print_sentence(f"The fewest nodes with room: {nodes}.", console)
    compared = {change: make_plan(other) for change, other in changed.items()}
    if compared:
        console.print(comparison_table({"as asked": plan} | compared))
    if out is not None and plan.fits:
        write_text(out, plan.model_dump_json(indent=1) + "\n")
        print_sentence(f"wrote {out}, plan {plan.hash[:12]}", console)
    if page is not None:
        from msrec.tools.planner.command.page import write_page  # takes half a second to import

        write_page(page, plan, compared, console)
    return plan


def fewest_nodes(request: PlanRequest) -> Plan:
    """Returns the plan on the fewest nodes that have room.

    The number of nodes is doubled until the plan fits, then the smallest is found by bisection.

    Raises:
        ValueError: even `MAX_NODES` have no room.
    """

    def plan_on(nodes: int) -> Plan:
        return make_plan(dataclasses.replace(request, nodes=nodes))

    plan = plan_on(1)
    while not plan.fits:
        if plan.nodes >= MAX_NODES:
            raise ValueError(
                f"some number of nodes up to {MAX_NODES} must have room for the tables; none has. "
                f"{next(summary(plan))}"
            )
        plan = plan_on(2 * plan.nodes)
    too_few = plan.nodes // 2
    while plan.nodes - too_few > 1:
        middle = plan_on((too_few + plan.nodes) // 2)
        if middle.fits:
            plan = middle
        else:
            too_few = middle.nodes
    return plan
