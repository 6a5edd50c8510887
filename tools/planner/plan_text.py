"""A plan for the terminal: does it fit, what takes the time, why is each table where it is."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from msrec.launch.reporting.plan_table import ranges, size
from msrec.tools.planner.plan import PARTS, Plan, TablePlan

MOST_TABLES = 40
"""Rows of the table of tables; the rest is summed up."""
MOST_RANKS = 16
REASONS = 4
"""Tables whose placement is put into words."""


def tell(plan: Plan, console: Console) -> None:
    """Print all of it."""
    console.print(tables_table(plan))
    console.print(memory_table(plan))
    console.print(ranks_table(plan))
    for sentence in verdict(plan):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print("Why there:", highlight=False)
    for sentence in reasons(plan):
        console.print(f"  {sentence}", highlight=False, soft_wrap=True)


def tables_table(plan: Plan) -> Table:
    """Tables, the costliest first; those that are alike and placed alike are one line."""
    where = f"{plan.nodes} x {plan.per_node} {plan.hardware}"
    table = Table(title=f"{len(plan.tables)} tables on {where} (ms are estimates)")
    for head in ("table", "sharding", "ranks"):
        table.add_column(head, overflow="fold")
    for head in ("rows", "dim", "size", "ms a shard", "next best way", "step then"):
        table.add_column(head, justify="left" if head == "next best way" else "right")
    groups = plan.alike
    for group in groups[:MOST_TABLES]:
        first = group[0]
        table.add_row(
            class_name(group),
            first.way,
            ranges(sorted({rank for each in group for rank in each.ranks})),
            f"{first.rows:,}",
            str(first.dim),
            size(sum(each.weights + each.host for each in group)),
            f"{first.total_ms:.3f}",
            first.next_way or "none",
            first.step_then,
        )
    rest = [each for group in groups[MOST_TABLES:] for each in group]
    if rest:
        table.add_section()
        whole = sum(t.weights + t.host for t in rest)
        rows = sum(t.rows for t in rest)
        table.add_row(f"{len(rest)} more", "", "", f"{rows:,}", "", size(whole), "", "", "")
    return table


def class_name(group: Sequence[TablePlan]) -> str:
    """Tables of one class as people read them."""
    return group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} like it"


def memory_table(plan: Plan) -> Table:
    """Bytes by what they are for, on the fullest rank and on the mean one."""
    table = Table(title="memory of a rank (estimates but for weights and state)")
    table.add_column("")
    table.add_column(f"fullest, rank {plan.fullest}", justify="right")
    table.add_column("mean", justify="right")
    for line in plan.ranks[0].memory:
        of_ranks = [rank.memory[line] for rank in plan.ranks]
        table.add_row(line, size(of_ranks[plan.fullest]), size(float(np.mean(of_ranks))))
    table.add_section()
    totals = [rank.total_memory for rank in plan.ranks]
    table.add_row("in all", size(max(totals)), size(float(np.mean(totals))))
    table.add_row("may be used", size(plan.capacity), size(plan.capacity))
    if any(rank.host for rank in plan.ranks):
        hosts = [rank.host for rank in plan.ranks]
        table.add_row("host memory", size(max(hosts)), size(float(np.mean(hosts))))
        table.add_row("it has", size(plan.specification.host_memory), "")
    return table


def ranks_table(plan: Plan) -> Table:
    """Estimated milliseconds of each rank; of many ranks the busiest and the idlest."""
    order = sorted(range(plan.world_size), key=lambda r: -plan.ranks[r].total_ms)
    title = "ms of a step, by rank"
    if len(order) <= MOST_RANKS:
        shown = sorted(order)
    else:
        shown = [*order[: MOST_RANKS // 2], *order[-3:]]
        title += " (busiest and idlest)"
    table = Table(title=title)
    in_host = any(load.host for load in plan.ranks)
    heads = ["rank", *(part.replace("_", " ") for part in PARTS), "in all", "memory"]
    for head in [*heads, "host memory"] if in_host else heads:
        table.add_column(head, justify="right")
    for rank in shown:
        load = plan.ranks[rank]
        parts = [f"{load.ms[part]:.2f}" for part in PARTS]
        held = [load.total_memory, load.host] if in_host else [load.total_memory]
        table.add_row(str(rank), *parts, f"{load.total_ms:.2f}", *map(size, held))
    return table


def verdict(plan: Plan) -> Iterator[str]:
    """Sentences: fits or not, and by what; the bottleneck; the imbalance."""
    if plan.fits:
        room = plan.capacity - plan.ranks[plan.fullest].total_memory
        yield f"It fits: rank {plan.fullest} is the fullest and has {size(room)} left."
    else:
        yield from _misfit(plan)
    busiest = plan.ranks[plan.busiest]
    part = max(PARTS, key=lambda p: busiest.ms[p])
    share = busiest.ms[part] / max(busiest.total_ms, 1e-12)
    on_it = [t for t in plan.tables if plan.busiest in t.ranks]
    costliest = max(on_it, key=lambda t: t.ms[part])
    yield (
        f"The step's tables take {plan.step_ms:.2f} ms (estimate, as if nothing overlapped); rank "
        f"{plan.busiest} is the busiest, {plan.imbalance:.2f} times the mean. The bottleneck is "
        f"its {part.replace('_', ' ')} ({share:.0%}), to which table {costliest.name} adds most."
    )


def reasons(plan: Plan) -> Iterator[str]:
    """Why the largest and the costliest tables are where they are, and what else would cost."""
    first = [group[0] for group in plan.alike]
    largest = sorted(first, key=lambda t: -(t.weights + t.host))
    told = {each.name: each for pair in zip(largest, first, strict=True) for each in pair}
    for each in list(told.values())[:REASONS]:
        held = f"{each.name}: {each.way}, {size(each.held)} and {each.total_ms:.2f} ms a shard"
        if each.next_way is None:
            yield f"{held}; no other way is allowed."
        elif each.next_step_ms is None:
            yield f"{held}; {each.next_way} would not fit."
        else:
            more = each.next_step_ms - plan.step_ms
            longer = f"{more:.2f} ms longer" if more >= 0.005 else "as long"
            yield f"{held}; {each.next_way} is the next best, with it the step would be {longer}."


def _misfit(plan: Plan) -> Iterator[str]:
    full = plan.ranks[plan.fullest]
    over = full.total_memory - plan.capacity
    host_over = max(r.host for r in plan.ranks) - plan.specification.host_memory
    largest = _largest(plan, plan.fullest)
    names = ", ".join(f"{t.name} ({size(b)})" for t, b in largest)
    if over > 0:
        yield (
            f"It does not fit: rank {plan.fullest} needs {size(full.total_memory)} and has "
            f"{size(plan.capacity)}, {size(over)} too little. Largest there: {names}."
        )
    if host_over > 0:
        yield f"It does not fit: a rank's host memory is {size(host_over)} too small."


def _largest(plan: Plan, rank: int, count: int = 3) -> Sequence[tuple[TablePlan, float]]:
    """Tables with the most bytes of weights and state on a rank."""
    on_it = [(t, t.held * t.ranks.count(rank)) for t in plan.tables if rank in t.ranks]
    return sorted(on_it, key=lambda pair: -pair[1])[:count]
