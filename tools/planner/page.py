"""A plan as one self-contained page: what each rank holds and does, and what the step waits for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.launch.reporting.figures import GREY, PALETTE, Figure, figure
from msrec.launch.reporting.page import DataTable, Figures, Section, Text, Tile, render_page
from msrec.launch.reporting.plan_table import ranges, size
from msrec.tools.planner.plan import GIB, PARTS, TABLE_LINES, Plan, TablePlan
from msrec.tools.planner.plan_text import class_name, reasons, verdict

NAMED = len(PALETTE) - 1
"""Tables with a colour of their own; the others share one."""
TABLE_HEAD = [
    *("table", "sharding", "kernel", "ranks", "rows", "dim", "size", "ms a shard"),
    "next best way: step then",
]
Floats = npt.NDArray[np.float64]


def plan_page(plan: Plan, compared: Mapping[str, Plan]) -> str:
    """The page.

    Args:
        plan: as asked.
        compared: name -> other plans that stand beside it.
    """
    figures = [_memory(plan), _time(plan), _critical(plan)]
    if compared:
        figures += _beside({"as asked": plan} | dict(compared))
    cluster = f"{plan.nodes} x {plan.per_node} {plan.hardware}"
    sources = "; ".join(plan.specification.sources)
    note = f"Times are estimates by TorchRec's formulas with the bandwidths of {sources}."
    table = DataTable([TABLE_HEAD, *map(_row, plan.by_cost)])
    return render_page(
        title=f"msrec plan: {cluster}",
        heading=f"{len(plan.tables)} tables on {cluster}",
        subtitle=f"{plan.specification.about}; {plan.batch:,} rows of a step on each rank; "
        f"plan {plan.hash[:12]}",
        tiles=_tiles(plan),
        sections=[
            Section("In words", [Text(line) for line in (*verdict(plan), *reasons(plan))]),
            Section("By rank", [Figures(figures, "wide")]),
            Section("By table", [table, Text(note, "muted")]),
        ],
    )


def _tiles(plan: Plan) -> list[Tile]:
    full = plan.ranks[plan.fullest].total_memory
    return [
        Tile("yes" if plan.fits else "no", "does it fit?"),
        Tile(f"{plan.nodes} x {plan.per_node}", plan.hardware),
        Tile(size(full), f"fullest rank, of {size(plan.capacity)}"),
        Tile(f"{plan.step_ms:.2f} ms", "the tables' part of a step, estimated"),
        Tile(f"{plan.imbalance:.2f}", "busiest rank over the mean"),
    ]


def _row(table: TablePlan) -> list[str]:
    """The cells under `TABLE_HEAD`."""
    return [
        table.name,
        table.way,
        table.kernel,
        ranges(table.ranks),
        f"{table.rows:,}",
        str(table.dim),
        size(table.weights + table.host),
        f"{table.total_ms:.3f}",
        f"{table.next_way}: {table.step_then}" if table.next_way else "none",
    ]


def _memory(plan: Plan) -> Figure:
    traces = _stacked(plan, lambda table: table.held / GIB)
    rest = [line for line in plan.ranks[0].memory if line not in TABLE_LINES[:2]]
    beside = [sum(rank.memory[line] for line in rest) / GIB for rank in plan.ranks]
    traces.append(_bar("all but tables", beside, GREY))
    ends = [-0.5, plan.world_size - 0.5]
    limit = {"type": "scatter", "mode": "lines", "x": ends, "y": [plan.capacity / GIB] * 2}
    traces.append(limit | {"name": "may be used", "line": {"color": "#c0392b", "dash": "dash"}})
    return _by_rank("Memory", "What each rank holds, by table.", traces, "GiB")


def _time(plan: Plan) -> Figure:
    traces = _stacked(plan, lambda table: table.total_ms)
    return _by_rank("Time", "What each rank does in a step, by table (estimates).", traces, "ms")


def _critical(plan: Plan) -> Figure:
    """The busiest rank's step as a row of bars, one part after the other."""
    traces: list[dict[str, Any]] = []
    starts = np.zeros(len(PARTS))
    ends = np.cumsum([plan.ranks[plan.busiest].ms[part] for part in PARTS])
    starts[1:] = ends[:-1]
    for name, colour, tables in _groups(plan):
        took = np.array([sum(t.ms[p] * t.ranks.count(plan.busiest) for t in tables) for p in PARTS])
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [part.replace("_", " ") for part in PARTS],
                "x": took.tolist(),
                "base": starts.tolist(),
                "marker": {"color": colour},
            }
        )
        starts = starts + took
    caption = f"What the step waits for: rank {plan.busiest}, as if nothing overlapped (estimates)."
    found = figure("Critical path", caption, traces, "ms", "")
    found["layout"] |= {"barmode": "overlay"}
    found["layout"]["yaxis"]["autorange"] = "reversed"
    return found


def _beside(plans: Mapping[str, Plan]) -> list[Figure]:
    names = list(plans)
    step = [plan.step_ms for plan in plans.values()]
    full = [plan.ranks[plan.fullest].total_memory / GIB for plan in plans.values()]
    limit = [plan.capacity / GIB for plan in plans.values()]
    times = [
        {"type": "bar", "x": names, "y": step, "marker": {"color": PALETTE[0]}, "name": "step"}
    ]
    memory = [
        {"type": "bar", "x": names, "y": full, "marker": {"color": PALETTE[0]}, "name": "fullest"},
        {
            "type": "scatter",
            "mode": "markers",
            "x": names,
            "y": limit,
            "name": "may be used",
            "marker": {"symbol": "line-ew-open", "size": 34, "color": "#c0392b"},
        },
    ]
    return [
        figure("What if: time", "A step's tables, estimated.", times, "", "ms"),
        figure("What if: memory", "The fullest rank, and what it may use.", memory, "", "GiB"),
    ]


def _groups(plan: Plan) -> list[tuple[str, str, Sequence[TablePlan]]]:
    """Name, colour and tables, the same in every figure.

    The classes of tables (alike and placed alike) that take most time over all ranks, and those
    that take most memory, stand each for itself, all others together.
    """

    def over_ranks(value: Callable[[TablePlan], float]) -> list[list[TablePlan]]:
        return sorted(plan.alike, key=lambda g: -sum(value(t) * len(t.ranks) for t in g))

    by_time, by_size = over_ranks(lambda t: t.total_ms), over_ranks(lambda t: t.held)
    both = [group for pair in zip(by_time, by_size, strict=True) for group in pair]
    named = list({group[0].name: group for group in both}.values())[:NAMED]
    found: list[tuple[str, str, Sequence[TablePlan]]] = [
        (class_name(group), PALETTE[at], group) for at, group in enumerate(named)
    ]
    shown = {table.name for group in named for table in group}
    rest = [table for table in plan.tables if table.name not in shown]
    if rest:
        found.append((f"{len(rest)} others", PALETTE[NAMED], rest))
    return found


def _stacked(plan: Plan, value: Callable[[TablePlan], float]) -> list[dict[str, Any]]:
    traces = []
    for name, colour, group in _groups(plan):
        of_rank: Floats = np.zeros(plan.world_size)
        for table in group:
            np.add.at(of_rank, table.ranks, value(table))
        traces.append(_bar(name, of_rank.tolist(), colour))
    return traces


def _bar(name: str, values: Sequence[float], colour: str) -> dict[str, Any]:
    places = list(range(len(values)))
    return {"type": "bar", "name": name, "x": places, "y": values, "marker": {"color": colour}}


def _by_rank(name: str, caption: str, traces: list[dict[str, Any]], y: str) -> Figure:
    found = figure(name, caption, traces, "rank", y)
    found["layout"] |= {"barmode": "stack", "bargap": 0.1}
    return found
