"""A matrix of plans as an offline HTML page: sliders over the plans, throughput and money."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from msrec.data.io.atomic_files import write_text
from msrec.launch.reporting.byte_sizes import format_bytes
from msrec.launch.reporting.figures import GREY, PALETTE, Figure, Trace, figure
from msrec.launch.reporting.page import DataTable, Explorer, Point, Section, Text, Tile, render_page
from msrec.tools.planner.command.plan_text import print_sentence, summary
from msrec.tools.planner.command.running_costs import RunningCosts, amount
from msrec.tools.planner.matrix.matrix_text import matrix_heads, matrix_notes, matrix_rows
from msrec.tools.planner.matrix.plan_matrix import PlanMatrix, Values
from msrec.tools.planner.plan import Plan

GIB = 2**30
LIMIT_COLOUR = "#c0392b"
COLOURS = (*PALETTE, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up")
EMPTY_TILES = [Tile("no plan", ""), *[Tile("–", "")] * 5]


def write_matrix_page(path: Path, matrix: PlanMatrix, console: Console) -> None:
    """Writes the page of a matrix of plans."""
    number = len(matrix.combinations)
    axes = "; ".join(f"{name} {', '.join(values)}" for name, values in matrix.axes.items())
    tables = len(next(iter(matrix.plans.values())).tables)
    snaps = (
        f"Each slider has the planned values only, and every one of the {number:,} combinations "
        "was planned for itself: nothing between them is computed."
    )
    page = render_page(
        title="msrec plan: what if",
        heading=f"What if: {tables} tables on other machines",
        subtitle=f"{number:,} combinations of {axes}",
        sections=[
            Section("Choose a plan", [Text(snaps, "muted"), _explorer(matrix)]),
            Section(
                "All plans",
                [DataTable([matrix_heads(matrix), *(cells for _, cells in matrix_rows(matrix))])],
            ),
            Section("What the figures are", [Text(line) for line in matrix_notes(matrix)]),
        ],
    )
    write_text(path, page)
    print_sentence(f"wrote {path}", console)


def _explorer(matrix: PlanMatrix) -> Explorer:
    keys, traces = matrix.combinations, _Traces()
    costs, plans = matrix.costs, matrix.plans.values()
    step = max(each.step_ms for each in costs.values() or plans)
    memory = max(plan.capacity for plan in plans) / GIB
    figures = [
        _bars(
            "Where the time goes",
            "Parts of a step on the critical rank, and the mean of all ranks (estimates).",
            "ms",
            step,
        ),
        _bars(
            "Memory",
            "The fullest rank, and the mean of all ranks; the dashed line is what may be used.",
            "GiB",
            memory,
        ),
    ]
    money = any(each.usd_per_billion is not None for each in costs.values())
    if money:
        figures.append(_money_figure())
    points = []
    for key in keys:
        plan = matrix.plans.get(key)
        if plan is None:
            points.append(Point(EMPTY_TILES, matrix.refused[key], [[]] * len(figures)))
            continue
        drawn = [_time_traces(plan, costs.get(key)), _memory_traces(plan)]
        if money:
            drawn.append([*_money_traces(matrix, matrix.model_of(key)), *_chosen(costs.get(key))])
        numbers = [[traces.number(trace) for trace in of_figure] for of_figure in drawn]
        points.append(Point(_tiles(plan, costs.get(key)), _text(matrix, key, plan), numbers))
    start = next((at for at, key in enumerate(keys) if key in costs), 0)
    return Explorer(matrix.axes, points, figures, traces.all, start)


class _Traces:
    """Traces that points share: each different one is stored once."""

    def __init__(self) -> None:
        self.all: list[Trace] = []
        self._numbers: dict[str, int] = {}

    def number(self, trace: Trace) -> int:
        """Stores a trace and returns its number."""
        number = self._numbers.setdefault(json.dumps(trace), len(self.all))
        if number == len(self.all):
            self.all.append(trace)
        return number


def _tiles(plan: Plan, costs: RunningCosts | None) -> list[Tile]:
    gpus = f"{plan.cluster_name}, {plan.batch:,} rows each"
    memory = format_bytes(plan.peak_memory), f"fullest rank, of {format_bytes(plan.capacity)}"
    if costs is None:
        return [Tile("no room", gpus), Tile(*memory), *[Tile("–", "does not fit")] * 4]
    parts = f"tables {plan.step_ms:.3f}, dense part {costs.dense_ms:.3f}"
    return [
        Tile(f"{costs.step_ms:.3f} ms", f"step: {parts}" if costs.dense_ms else "tables of a step"),
        Tile(*memory),
        Tile(f"{costs.rows_per_s / 1e6:,.2f} M", f"rows per second, {gpus}"),
        Tile(f"${amount(costs.usd_per_hour)}", "per hour"),
        Tile(f"${amount(costs.usd_per_billion)}", "per 1e9 rows"),
        Tile(f"{amount(costs.kwh_per_billion)} kWh", "per 1e9 rows, accelerators alone"),
    ]


def _text(matrix: PlanMatrix, key: Values, plan: Plan) -> str:
    front = "It is on the front of throughput and money." if key in matrix.front else ""
    return " ".join([*summary(plan), front]).strip()


def _time_traces(plan: Plan, costs: RunningCosts | None) -> list[Trace]:
    ranks = [rank.ms for rank in plan.ranks]
    parts = [*dict.fromkeys(part for ms in ranks for part in ms)]
    ms = {part: [of.get(part, 0.0) for of in ranks] for part in parts}
    values = {
        part.replace("_", " "): [of[plan.critical_rank], float(np.mean(of))]
        for part, of in ms.items()
    }
    if costs is not None and costs.dense_ms:
        values["dense part"] = [costs.dense_ms] * 2
    return _stack(values, ["critical", "mean"])


def _memory_traces(plan: Plan) -> list[Trace]:
    sizes = {use: [rank.memory[use] / GIB for rank in plan.ranks] for use in plan.ranks[0].memory}
    values = {use: [of[plan.fullest_rank], float(np.mean(of))] for use, of in sizes.items()}
    names = ["fullest", "mean"]
    limit = {"type": "scatter", "mode": "lines", "x": [plan.capacity / GIB] * 2, "y": names}
    line = {"color": LIMIT_COLOUR, "dash": "dash"}
    return [*_stack(values, names), limit | {"name": "usable", "line": line}]


def _stack(values: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Trace]:
    """Returns horizontal bars, stacked, one for each of `names`."""
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "x": list(of_part),
            "y": list(names),
            "marker": {
                "color": COLOURS[number % len(COLOURS)],
                "pattern": {"shape": "/" if number >= len(COLOURS) else ""},
            },
        }
        for number, (part, of_part) in enumerate(values.items())
        if any(of_part)
    ]


def _bars(name: str, caption: str, unit: str, largest: float) -> Figure:
    """Returns a figure of stacked bars, with the same scale for all plans."""
    drawn = figure(name, caption, [], unit, "")
    drawn["layout"] |= {"barmode": "stack", "bargap": 0.35}
    drawn["layout"]["legend"] |= {"traceorder": "normal", "font": {"size": 12}}
    drawn["layout"]["xaxis"] |= {"range": [0, 1.05 * largest]}
    drawn["layout"]["yaxis"] |= {"type": "category", "range": [1.5, -0.5]}
    return drawn


def _money_figure() -> Figure:
    caption = "All plans of the same model; the dashed line is the front."
    drawn = figure("Throughput and money", caption, [], "rows/s", "$ per 1e9 rows")
    for axis in ("xaxis", "yaxis"):
        drawn["layout"][axis] |= {"type": "log"}
    return drawn


def _money_traces(matrix: PlanMatrix, model: Values) -> list[Trace]:
    """Returns the plans of a model by kind of GPU, and the line of the front."""
    same = [key for key in matrix.costs if matrix.model_of(key) == model]
    priced = [key for key in same if matrix.costs[key].usd_per_billion is not None]
    front = sorted(matrix.front & set(priced), key=lambda key: matrix.costs[key].rows_per_s)
    line = _scatter("front", [matrix.costs[key] for key in front])
    traces = [line | {"mode": "lines", "line": {"color": GREY, "dash": "dash", "shape": "vh"}}]
    for number, gpu in enumerate(dict.fromkeys(matrix.plans[key].hardware for key in priced)):
        keys = [key for key in priced if matrix.plans[key].hardware == gpu]
        symbol = SYMBOLS[number // len(PALETTE) % len(SYMBOLS)]
        marker = {"color": PALETTE[number % len(PALETTE)], "symbol": symbol, "size": 9}
        trace = _scatter(gpu, [matrix.costs[key] for key in keys])
        names = [p.ranks_name for p in (matrix.plans[key] for key in keys)]
        traces.append(trace | {"mode": "markers", "marker": marker, "text": names})
    return traces


def _chosen(costs: RunningCosts | None) -> list[Trace]:
    """Returns a ring around the chosen plan, if it has a price and fits."""
    if costs is None or costs.usd_per_billion is None:
        return []
    marker = {"symbol": "circle-open", "size": 20, "color": LIMIT_COLOUR, "line": {"width": 3}}
    return [_scatter("chosen", [costs]) | {"mode": "markers", "marker": marker}]


def _scatter(name: str, costs: Sequence[RunningCosts]) -> Trace:
    points = [(each.rows_per_s, each.usd_per_billion) for each in costs]
    return {
        "type": "scatter",
        "name": name,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
    }
