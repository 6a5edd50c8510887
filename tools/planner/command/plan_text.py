"""A plan as text for the terminal: what is placed where, whether it fits, what takes the time."""

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from msrec.launch.reporting.byte_sizes import format_bytes, format_ranks
from msrec.tools.planner.command.running_costs import (
    accelerators_of,
    amount,
    running_costs,
)
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.sharding_options import COST_PARTS, EXTRA_PARTS, RANK_PARTS
from msrec.tools.planner.tables import Sharding

MAX_GROUPS = 40
"""Groups of equal tables with a line of their own; all others share one line."""
MAX_RANKS = 16
ONE_WAY = ("compute", "comms")
"""Parts that a step has forward and backward."""
EXPLAINED_TABLES = 4
"""Tables whose placement is explained in words."""
NAMED_TABLES = 3
"""Largest tables that are named if a plan does not fit."""


def print_plan(plan: Plan, console: Console) -> None:
    """Prints a plan as tables and in words."""
    console.print(tables_table(plan))
    console.print(memory_table(plan))
    console.print(ranks_table(plan))
    for sentence in summary(plan):
        print_sentence(sentence, console)
    if plan.fits:
        print_sentence(money_sentence(plan), console)
    print_sentence("Placement of the largest and costliest tables:", console)
    for sentence in placement_reasons(plan):
        print_sentence(f"  {sentence}", console)


def print_sentence(sentence: str, console: Console) -> None:
    """Prints a sentence as one line, without colours."""
    console.print(sentence, highlight=False, soft_wrap=True)


def tables_table(plan: Plan) -> Table:
    """Returns a table of the embedding tables, the costliest first; equal ones share a line."""
    table = Table(title=f"{len(plan.tables)} tables on {plan.cluster_name} (ms are estimates)")
    for head in ("table", "sharding", "ranks"):
        table.add_column(head, overflow="fold")
    for head in ("rows", "dim", "size", "ms per shard", "next best option", "step with it"):
        table.add_column(head, justify="left" if head == "next best option" else "right")
    groups = list(plan.groups.items())
    for name, group in groups[:MAX_GROUPS]:
        first = group[0]
        table.add_row(
            *(name, first.option, format_ranks(sorted({r for each in group for r in each.ranks}))),
            *(f"{first.rows:,}", f"{first.dim}", format_bytes(sum(each.size for each in group))),
            *(f"{first.total_ms:.3f}", first.next_way or "none", first.next_step),
        )
    rest = [each for _, group in groups[MAX_GROUPS:] for each in group]
    if rest:
        rows, size = sum(each.rows for each in rest), sum(each.size for each in rest)
        table.add_section()
        table.add_row(f"{len(rest)} more", "", "", f"{rows:,}", "", format_bytes(size))
    return table


def memory_table(plan: Plan) -> Table:
    """Returns a table of memory by use, on the fullest rank and on average."""
    table = Table(title="memory of a rank (estimates, except weights and state)")
    table.add_column("")
    table.add_column(f"fullest, rank {plan.fullest_rank}", justify="right")
    table.add_column("mean", justify="right")

    def add(use: str, largest: float, by_rank: list[int]) -> None:
        table.add_row(use, format_bytes(largest), format_bytes(float(np.mean(by_rank))))

    for use in plan.ranks[0].memory:
        by_rank = [rank.memory[use] for rank in plan.ranks]
        add(use, by_rank[plan.fullest_rank], by_rank)
    table.add_section()
    add("total", plan.peak_memory, [rank.total_memory for rank in plan.ranks])
    add("usable", plan.capacities[plan.fullest_rank], plan.capacities)
    hosts = [rank.host for rank in plan.ranks]
    if any(hosts):
        available = plan.host_capacities
        add("host memory", max(hosts), hosts)
        add("host memory available", available[int(np.argmax(hosts))], available)
    return table


def ranks_table(plan: Plan) -> Table:
    """Returns a table of estimated milliseconds by rank; of many ranks, the busiest and idlest."""
    shown, title = list(range(plan.world_size)), "ms of a step, by rank"
    if plan.world_size > MAX_RANKS:
        shown.sort(key=lambda r: -plan.ranks[r].total_ms)
        shown = [*shown[: MAX_RANKS // 2], *shown[-3:]]
        title += " (busiest and idlest)"
    table = Table(title=title)
    has_host = any(load.host for load in plan.ranks)
    parts = [
        p for p in RANK_PARTS if p in (*COST_PARTS, "latency") or any(p in r.ms for r in plan.ranks)
    ]
    heads = ["rank", *(part.replace("_", " ") for part in parts), "total", "memory"]
    for head in [*heads, "host memory"] if has_host else heads:
        table.add_column(head, justify="right")
    for rank in shown:
        load = plan.ranks[rank]
        values = [load.ms.get(part, 0.0) for part in parts]
        ms = [f"{value:.2f}" for value in (*values, load.total_ms)]
        sizes = [load.total_memory, load.host] if has_host else [load.total_memory]
        table.add_row(f"{rank}", *ms, *map(format_bytes, sizes))
    return table


def estimators_table(plan: Plan, other: Plan) -> Table:
    """Returns a table of milliseconds per shard by TorchRec's estimates and by msrec's.

    Args:
        plan: with TorchRec's estimates.
        other: the same placement with msrec's.
    """
    table = Table(title="ms per shard of both directions, by TorchRec's planner and by msrec")
    for head in ("table", "sharding"):
        table.add_column(head, overflow="fold")
    for head in ("compute", "msrec", "comms", "msrec", "total", "msrec"):
        table.add_column(head, justify="right")
    ours = {each.name: each for each in other.tables}
    for name, group in list(plan.groups.items())[:MAX_GROUPS]:
        pair = [group[0].ms, ours[group[0].name].ms]
        sums = [[ms["fwd_" + part] + ms["bwd_" + part] for ms in pair] for part in ONE_WAY]
        sums.append([sum(ms.values()) for ms in pair])
        table.add_row(name, group[0].option, *(f"{ms:.3f}" for each in sums for ms in each))
    return table


def comparison_table(plans: Mapping[str, Plan]) -> Table:
    """Returns a table with one column for each plan."""
    table = Table(title="what if (estimates)")
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right", overflow="fold")

    def add(head: str, value: Callable[[Plan], str]) -> None:
        table.add_row(head, *map(value, plans.values()))

    add("ranks", lambda p: p.cluster_name)
    add("fits", lambda p: "yes" if p.fits else "no")
    add("tables, all ranks", lambda p: format_bytes(sum(t.size for t in p.tables)))
    add("fullest rank", lambda p: format_bytes(p.peak_memory))
    add("usable", lambda p: format_bytes(p.capacities[p.fullest_rank]))
    add("step, ms", lambda p: f"{p.step_ms:.2f}")
    add("imbalance", lambda p: f"{p.imbalance:.2f}")
    costs = {id(plan): running_costs(plan) for plan in plans.values()}
    add("1e6 rows/s", lambda p: f"{costs[id(p)].rows_per_s / 1e6:,.2f}" if p.fits else "")
    add("$ per hour", lambda p: amount(costs[id(p)].usd_per_hour))
    add("$ per 1e9 rows", lambda p: amount(costs[id(p)].usd_per_billion) if p.fits else "")
    add("kWh per 1e9 rows", lambda p: amount(costs[id(p)].kwh_per_billion) if p.fits else "")
    for sharding in get_args(Sharding):
        counts = [sum(t.sharding == sharding for t in p.tables) for p in plans.values()]
        if any(counts):
            table.add_row(sharding, *map(str, counts))
    return table


def summary(plan: Plan) -> Iterator[str]:
    """Yields sentences that say whether the plan fits, and what takes the time."""
    if plan.fits:
        room = format_bytes(plan.capacities[plan.fullest_rank] - plan.peak_memory)
        yield f"It fits: rank {plan.fullest_rank} is the fullest and has {room} left."
    else:
        yield from _misfit(plan)
    critical = plan.ranks[plan.critical_rank]
    part = max((*COST_PARTS, *EXTRA_PARTS), key=lambda p: critical.ms.get(p, 0.0))
    share = critical.ms[part] / max(critical.total_ms, 1e-12)
    on_it = [table for table in plan.tables if plan.critical_rank in table.ranks]
    nothing = "nothing but prefetch" if critical.ms.get("prefetch") else "nothing"
    overlap = f"estimate, as if {nothing} overlapped"
    latency = critical.ms.get("latency", 0.0)
    if latency > critical.ms[part]:
        yield (
            f"The tables take {plan.step_ms:.2f} ms of a step ({overlap}), {latency:.2f} ms of it "
            "latency, which does not grow with the batch."
        )
        return
    costliest = max(on_it, key=lambda table: table.ms.get(part, 0.0))
    yield (
        f"The tables take {plan.step_ms:.2f} ms of a step ({overlap}). "
        f"The critical rank is {plan.critical_rank}, with {plan.imbalance:.2f} times the mean. "
        f"The bottleneck is its {part.replace('_', ' ')} ({share:.0%}), to which table "
        f"{costliest.name} contributes most."
    )


def money_sentence(plan: Plan) -> str:
    """Returns throughput, money and energy, as far as they are known."""
    costs = running_costs(plan)
    known = [f"{costs.rows_per_s / 1e6:,.2f} million rows per second"]
    if costs.usd_per_billion is not None:
        known.append(
            f"${costs.usd_per_hour:,.2f} per hour, ${costs.usd_per_billion:,.2f} per 1e9 rows"
        )
    if costs.kwh_per_billion is not None:
        known.append(f"{costs.kwh_per_billion:,.2f} kWh per 1e9 rows for the accelerators alone")
    dense = f", and {costs.dense_ms:.2f} ms of the dense part," if costs.dense_ms else ""
    prices = ((each.name, each.hardware.price) for each in accelerators_of(plan))
    source = "".join(f" {name}: {price}." for name, price in prices if price is not None)
    return f"With this step{dense} at best: {'; '.join(known)}.{source}"


def placement_reasons(plan: Plan) -> Iterator[str]:
    """Yields a sentence on each of the largest and costliest tables: placement and alternative."""
    costliest = [group[0] for group in plan.groups.values()]
    largest = sorted(costliest, key=lambda table: -table.size)
    pairs = zip(largest, costliest, strict=True)
    by_name = {table.name: table for pair in pairs for table in pair}
    for table in list(by_name.values())[:EXPLAINED_TABLES]:
        size = format_bytes(table.shard_bytes)
        placed = f"{table.name}: {table.option}, {size} and {table.total_ms:.2f} ms per shard"
        if table.next_way is None:
            yield f"{placed}; no other option is allowed."
        elif table.next_step_ms is None:
            yield f"{placed}; {table.next_way} would not fit."
        else:
            more = round(table.next_step_ms - plan.step_ms, 2)
            change = f"{abs(more):.2f} ms {'longer' if more > 0 else 'shorter'}"
            yield (
                f"{placed}; with {table.next_way}, the next best, the step would be "
                f"{change if more else 'as long'}."
            )


def _misfit(plan: Plan) -> Iterator[str]:
    rank = plan.fullest_rank
    capacity = plan.capacities[rank]
    excess = plan.peak_memory - capacity
    on_rank = [(t, t.shard_bytes * t.ranks.count(rank)) for t in plan.tables if rank in t.ranks]
    largest = sorted(on_rank, key=lambda pair: -pair[1])[:NAMED_TABLES]
    names = ", ".join(f"{table.name} ({format_bytes(size)})" for table, size in largest)
    if excess > 0:
        yield (
            f"It does not fit: rank {rank} needs {format_bytes(plan.peak_memory)} and has "
            f"{format_bytes(capacity)}, {format_bytes(excess)} too little. Largest there: "
            f"{names}."
        )
    hosts = zip(plan.ranks, plan.host_capacities, strict=True)
    host_excess = max(load.host - available for load, available in hosts)
    if host_excess > 0:
        yield f"It does not fit: a rank's host memory is {format_bytes(host_excess)} too small."
