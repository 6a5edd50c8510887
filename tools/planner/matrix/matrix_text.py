"""A matrix of plans as text: a line for each plan, with its step, throughput and money."""

from collections import Counter
from collections.abc import Iterator

from rich.table import Table

from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.tools.planner.command.running_costs import accelerators_of, amount
from msrec.tools.planner.matrix.plan_matrix import PlanMatrix, Values

MAX_LINES = 60
"""Most plans that are all printed; of more, only those of the front are."""
COST_HEADS = ["step, ms", "1e6 rows/s", "$/hour", "$ per 1e9 rows", "kWh per 1e9 rows"]


def matrix_heads(matrix: PlanMatrix) -> list[str]:
    """Returns the heads of `matrix_rows`."""
    return [*matrix.axes, "ranks", "rows each", "fullest rank", *COST_HEADS, "front"]


def matrix_rows(matrix: PlanMatrix) -> Iterator[tuple[Values, list[str]]]:
    """Yields the values of each combination and its cells, in the order of `matrix_heads`."""
    for key in matrix.combinations:
        plan, costs = matrix.plans.get(key), matrix.costs.get(key)
        if plan is None:
            yield key, [*key, "no plan", *[""] * (len(COST_HEADS) + 3)]
            continue
        gpus = plan.ranks_name
        if costs is None:
            cells = ["no room", *[""] * (len(COST_HEADS) - 1)]
        else:
            money = (costs.usd_per_hour, costs.usd_per_billion, costs.kwh_per_billion)
            cells = [f"{costs.step_ms:.3f}", f"{costs.rows_per_s / 1e6:,.2f}", *map(amount, money)]
        front = "*" if key in matrix.front else ""
        memory = format_bytes(plan.peak_memory)
        yield key, [*key, gpus, f"{plan.batch:,}", memory, *cells, front]


def matrix_table(matrix: PlanMatrix) -> Table:
    """Returns the lines of all plans, or, of more than `MAX_LINES`, of those on the front."""
    rows = list(matrix_rows(matrix))
    title = f"{len(rows)} combinations (estimates)"
    if len(rows) > MAX_LINES:
        rows = [(key, cells) for key, cells in rows if key in matrix.front]
        title += f", the {len(rows)} of the front"
    table = Table(title=title)
    for head in matrix_heads(matrix):
        table.add_column(head, justify="left" if head in matrix.axes else "right")
    for _, cells in rows:
        table.add_row(*cells)
    return table


def matrix_notes(matrix: PlanMatrix) -> Iterator[str]:
    """Yields sentences on what the figures are, their prices, and what is missing."""
    has_dense = any(costs.dense_ms for costs in matrix.costs.values())
    yield (
        "A step is the tables' part, as if nothing overlapped"
        + (", and the products of the dense part at peak speed." if has_dense else ".")
        + " A real step is longer, so take the money as a lower bound and compare plans."
    )
    same = " with the same " + " and ".join(matrix.model_axes) if matrix.model_axes else ""
    yield (
        f"* is the front: among the plans{same}, no other one has at least the rows/s for at most "
        "the $ per row. Energy is that of the accelerators at their maximum power, without hosts, "
        "network and cooling."
    )
    yield "Prices differ more between providers than GPUs do; give your own with --price."
    for hardware, price in _prices(matrix).items():
        yield f"{hardware}: {price or 'no price; give one with --price ' + hardware + '=2.5'}."
    misfits = sum(not plan.fits for plan in matrix.plans.values())
    if misfits:
        yield f"{misfits} of the plans do not fit and have no throughput."
    for reason, number in Counter(matrix.refused.values()).items():
        yield f"No plan for {number} of the combinations: {reason}"


def _prices(matrix: PlanMatrix) -> dict[str, str]:
    """Returns accelerator -> its price and where it is from; empty without one."""
    used = (each for plan in matrix.plans.values() for each in accelerators_of(plan))
    return {each.name: str(each.hardware.price or "") for each in used}
