"""A plan as one self-contained HTML page: memory and time of each rank, and the critical path."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from msrec.data.io.atomic_files import write_text
from msrec.launch.reporting.byte_sizes import format_bytes, format_ranks
from msrec.launch.reporting.figures import GREY, PALETTE, Figure, figure
from msrec.launch.reporting.page import DataTable, Figures, Section, Text, Tile, render_page
from msrec.tools.planner.command.plan_text import (
    money_sentence,
    placement_reasons,
    print_sentence,
    summary,
)
from msrec.tools.planner.plan import TABLE_MEMORY, Plan, TablePlan
from msrec.tools.planner.sharding_options import COST_PARTS, EXTRA_PARTS

GIB = 2**30
COLOURED_GROUPS = len(PALETTE) - 1
"""Groups of tables with a colour; all others share the last colour."""
TABLE_HEAD = [
    *("table", "sharding", "kernel", "ranks", "rows", "dim", "size", "ms per shard"),
    "next best option: step with it",
]
LIMIT_COLOUR = "#c0392b"
Trace = dict[str, Any]


def write_page(path: Path, plan: Plan, compared: Mapping[str, Plan], console: Console) -> None:
    """Writes the page of a plan, which may be compared with others (name -> plan)."""
    figures = [_memory(plan), _time(plan), _critical_path(plan)]
    if compared:
        figures += _comparison({"as asked": plan} | dict(compared))
    cluster = plan.cluster_name
    sources = "; ".join(plan.specification.sources)
    formulas = "msrec's" if plan.estimator == "msrec" else "TorchRec's"
    note = f"Times are estimates by {formulas} formulas with the figures of {sources}."
    money = [money_sentence(plan)] if plan.fits else []
    table = DataTable([TABLE_HEAD, *map(_row, plan.by_cost)])
    page = render_page(
        title=f"msrec plan: {cluster}",
        heading=f"{len(plan.tables)} tables on {cluster}",
        subtitle=f"{plan.specification.about}; {plan.batch:,} rows per rank and step; plan "
        f"{plan.hash[:12]}",
        tiles=_tiles(plan),
        sections=[
            Section(
                "In words",
                [Text(line) for line in (*summary(plan), *money, *placement_reasons(plan))],
            ),
            Section("By rank", [Figures(figures, "wide")]),
            Section("By table", [table, Text(note, "muted")]),
        ],
    )
    write_text(path, page)
    print_sentence(f"wrote {path}", console)


def _tiles(plan: Plan) -> list[Tile]:
    return [
        Tile("yes" if plan.fits else "no", "does it fit?"),
        Tile(f"{plan.world_size * plan.copies}", plan.cluster_name),
        Tile(
            format_bytes(plan.peak_memory),
            f"fullest rank, of {format_bytes(plan.capacities[plan.fullest_rank])}",
        ),
        Tile(f"{plan.step_ms:.2f} ms", "tables' part of a step, estimated"),
        Tile(f"{plan.imbalance:.2f}", "critical rank over the mean"),
    ]


def _row(table: TablePlan) -> list[str]:
    """Returns the cells below `TABLE_HEAD`."""
    return [
        table.name,
        table.option,
        table.kernel,
        format_ranks(table.ranks),
        f"{table.rows:,}",
        str(table.dim),
        format_bytes(table.size),
        f"{table.total_ms:.3f}",
        f"{table.next_way}: {table.next_step}" if table.next_way else "none",
    ]


def _memory(plan: Plan) -> Figure:
    traces = _stacked(plan, lambda table: table.shard_bytes / GIB)
    weights_and_state = TABLE_MEMORY[:2]
    other = [
        sum(size for use, size in rank.memory.items() if use not in weights_and_state) / GIB
        for rank in plan.ranks
    ]
    traces.append(_bar("other than tables", other, GREY))
    ends = [-0.5, plan.world_size - 0.5]
    limit = {"type": "scatter", "mode": "lines", "x": ends, "y": [min(plan.capacities) / GIB] * 2}
    traces.append(limit | {"name": "usable", "line": {"color": LIMIT_COLOUR, "dash": "dash"}})
    return _by_rank("Memory", "Memory of each rank, by table.", traces, "GiB")


def _time(plan: Plan) -> Figure:
    traces = _stacked(plan, lambda table: table.total_ms)
    latency = [rank.ms.get("latency", 0.0) for rank in plan.ranks]
    # Shards take less time on a faster GPU, and while rows are fetched for the next step.
    totals = np.sum([trace["y"] for trace in traces], axis=0)
    shares = [r.total_ms - late for r, late in zip(plan.ranks, latency, strict=True)]
    for trace in traces:
        trace["y"] = (np.array(trace["y"]) * shares / np.maximum(totals, 1e-12)).tolist()
    traces.append(_bar("latency", latency, GREY))
    return _by_rank("Time", "Time of each rank in a step, by table (estimates).", traces, "ms")


def _critical_path(plan: Plan) -> Figure:
    """Returns the critical rank's step as bars in a row, each part after the one before."""
    rank, traces = plan.critical_rank, list[Trace]()
    parts = [*COST_PARTS, *(part for part in EXTRA_PARTS if part in plan.ranks[rank].ms)]
    in_turn = [0.0 if part == "prefetch" else plan.ranks[rank].ms[part] for part in parts]
    ends = np.cumsum(in_turn)
    # Prefetch begins with the step.
    starts = np.where(np.array(parts) == "prefetch", 0.0, ends - in_turn)
    for name, colour, tables in _coloured_groups(plan):
        ms = np.array([sum(t.ms.get(p, 0.0) * t.ranks.count(rank) for t in tables) for p in parts])
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [part.replace("_", " ") for part in parts],
                "x": ms.tolist(),
                "base": starts.tolist(),
                "marker": {"color": colour},
            }
        )
        starts = starts + ms
    nothing = "nothing but prefetch" if "prefetch" in parts else "nothing"
    caption = f"Step of the critical rank, {rank}, as if {nothing} overlapped (estimates)."
    latency = plan.ranks[rank].ms.get("latency", 0.0)
    grey = {"type": "bar", "orientation": "h", "name": "latency", "marker": {"color": GREY}}
    traces.append(grey | {"y": ["latency"], "x": [latency], "base": [float(ends[-1])]})
    drawn = figure("Critical path", caption, traces, "ms", "")
    drawn["layout"]["barmode"] = "overlay"
    drawn["layout"]["yaxis"]["autorange"] = "reversed"
    return drawn


def _comparison(plans: Mapping[str, Plan]) -> list[Figure]:
    names = list(plans)
    bar: Trace = {"type": "bar", "x": names, "marker": {"color": PALETTE[0]}}
    times = [bar | {"y": [plan.step_ms for plan in plans.values()], "name": "step"}]
    peaks = [plan.peak_memory / GIB for plan in plans.values()]
    limit = {
        "type": "scatter",
        "mode": "markers",
        "x": names,
        "y": [plan.capacities[plan.fullest_rank] / GIB for plan in plans.values()],
        "name": "usable",
        "marker": {"symbol": "line-ew-open", "size": 34, "color": LIMIT_COLOUR},
    }
    memory = [bar | {"y": peaks, "name": "fullest rank"}, limit]
    return [
        figure("What if: time", "Tables' part of a step, estimated.", times, "", "ms"),
        figure("What if: memory", "Memory of the fullest rank.", memory, "", "GiB"),
    ]


def _coloured_groups(plan: Plan) -> list[tuple[str, str, list[TablePlan]]]:
    """Returns name, colour and tables of each group, the same in every figure.

    The groups of equal tables that take the most time or the most memory over all ranks have a
    colour each; the other tables share one.
    """

    def by_total(value: Callable[[TablePlan], float]) -> list[tuple[str, list[TablePlan]]]:
        groups = plan.groups.items()
        return sorted(groups, key=lambda item: -sum(value(t) * len(t.ranks) for t in item[1]))

    by_time, by_size = by_total(lambda t: t.total_ms), by_total(lambda t: t.shard_bytes)
    both = dict(item for pair in zip(by_time, by_size, strict=True) for item in pair)
    coloured = list(both.items())[:COLOURED_GROUPS]
    groups = [(name, PALETTE[at], tables) for at, (name, tables) in enumerate(coloured)]
    shown = {table.name for _, _, tables in groups for table in tables}
    rest = [table for table in plan.tables if table.name not in shown]
    if rest:
        groups.append((f"{len(rest)} others", PALETTE[COLOURED_GROUPS], rest))
    return groups


def _stacked(plan: Plan, value: Callable[[TablePlan], float]) -> list[Trace]:
    traces = []
    for name, colour, group in _coloured_groups(plan):
        by_rank = np.zeros(plan.world_size)
        for table in group:
            np.add.at(by_rank, table.ranks, value(table))
        traces.append(_bar(name, by_rank.tolist(), colour))
    return traces


def _bar(name: str, values: Sequence[float], colour: str) -> Trace:
    ranks = list(range(len(values)))
    return {"type": "bar", "name": name, "x": ranks, "y": values, "marker": {"color": colour}}


def _by_rank(name: str, caption: str, traces: list[Trace], unit: str) -> Figure:
    drawn = figure(name, caption, traces, "rank", unit)
    drawn["layout"] |= {"barmode": "stack", "bargap": 0.1}
    return drawn
