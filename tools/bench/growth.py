"""What happens as a thing grows: a line that is flat, or one that is linear."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import write_json, write_text
from msrec.data.loading.loader import open_loader
from msrec.launch.distributed import Process, process_group, quiet_libraries
from msrec.tools.bench.harness.processes import ranks
from msrec.tools.bench.harness.report import OUT, machine
from msrec.tools.bench.harness.shapes import movielens_tables, shaped
from msrec.tools.bench.harness.training import Training
from msrec.tools.bench.step import OPTIONS, SKIP
from msrec.tools.bench.zoo import step_times
from msrec.tools.planner.tables import TableLoad

BATCH = 4096
STEPS, REPEATS = 10, 3
MOVED = ("c10d::", "_c10d_functional::")


class Series(NamedTuple):
    """What was measured at each size."""

    name: str
    what: str
    unit: str
    expected: str
    """flat, linear, falling."""
    points: dict[int, float]

    @property
    def power(self) -> float:
        """K of y = a x^k through the first and the last point: 0 is flat, 1 is linear."""
        (x0, y0), *_, (x1, y1) = sorted(self.points.items())
        return float(torch.log(torch.tensor(y1 / y0)) / torch.log(torch.tensor(x1 / x0)))


def bench_growth(sizes: dict[str, Sequence[int]], page: Path) -> None:
    """Measure the series that have sizes, print them, draw them.

    Args:
        sizes: of SERIES, at least two each.
        page: HTML to write, which opens offline.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on, console = machine(), Console(width=120)
    found = []
    for name, (measure, what, unit, expected) in SERIES.items():
        if not (wanted := sizes.get(name, ())):
            continue
        console.print(f"{name} ...", highlight=False)
        points = {size: measure(size) for size in sorted(wanted)}
        found.append(Series(name, what, unit, expected, points))
    table = Table(title="growth", caption=f"{on['processor']}, load {on['load'][0]}; y = a x^k")
    for head in ("of", "what", "unit", "expected", "k", "sizes and figures"):
        table.add_column(head)
    for series in found:
        figures = "  ".join(f"{size:,}: {value:,.4g}" for size, value in series.points.items())
        table.add_row(*series[:4], f"{series.power:.2f}", figures)
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [series._asdict() | {"power": series.power} for series in found]
    write_json(OUT / "growth.json", {"bench": "growth", "machine": on, "series": lines})
    write_text(page, _drawn(found))
    console.print(f"drawn in {page}", highlight=False)


def _drawn(found: Sequence[Series]) -> str:
    titles = [f"{s.what} by {s.name}: {s.expected} (k = {s.power:.2f})" for s in found]
    figure = make_subplots(rows=len(found), cols=1, subplot_titles=titles)
    for place, series in enumerate(found, start=1):
        x, y = zip(*sorted(series.points.items()), strict=True)
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", showlegend=False), place, 1)
        figure.update_xaxes(type="log", title_text=series.name, row=place, col=1)
        # With both axes logarithmic a power is a straight line.
        axis = {"rangemode": "tozero"} if series.expected == "flat" else {"type": "log"}
        figure.update_yaxes(title_text=series.unit, row=place, col=1, **axis)
    figure.update_layout(height=360 * len(found), template="plotly_white")
    html: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return html


def _fastest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Processor seconds of the fastest of several, which other programs disturb least."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def by_rows(rows: int) -> float:
    """Processor microseconds a row to load a shuffled epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        data = shaped(Path(scratch) / "data", movielens_tables(), -(-rows // BATCH), BATCH)

        def epoch() -> None:
            for _ in open_loader(data, "train", BATCH, prefetch=0).batches():
                pass

        return 1e6 * _fastest(epoch) / rows


def by_scenarios(scenarios: int) -> float:
    """Ms of a step of STAR."""
    return 1e3 * step_times("star", scenarios, BATCH, REPEATS)[0]


def by_users(users: int) -> float:
    """Processor ms of a training step with so many users in the table."""
    rest = [table for table in movielens_tables() if table.name != "user_id"]
    return _step([TableLoad(name="visitor", rows=users, dim=16), *rest])


def by_tables(tables: int) -> float:
    """Processor ms of a training step."""
    return _step([TableLoad(name=f"t{n}", rows=1000, dim=16) for n in range(tables)], batch=512)


def _step(tables: Sequence[TableLoad], batch: int = BATCH) -> float:
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        data = shaped(Path(scratch) / "data", tables, 4, batch)
        options = [*OPTIONS, f"trainer.global_batch={batch}"]
        training = Training(data, Path(scratch), options, process)
        batches = training.batches(4)
        rounds = [
            training.run(lambda: itertools.cycle(batches), STEPS + SKIP, SKIP)
            for _ in range(REPEATS)
        ]
        return 1e3 * min(processor for _, processor in rounds) / STEPS


def by_ranks(world_size: int) -> float:
    """MB of ids and vectors that one rank sends in a step, the global batch being the same."""
    with tempfile.TemporaryDirectory() as scratch:
        data = shaped(Path(scratch) / "data", movielens_tables(), 4, BATCH)
        with ranks(world_size, communicated, data, Path(scratch)) as run:
            return float(run()[0]) / 1e6


def communicated(process: Process, dataset: Path, folder: Path) -> Iterator[float]:
    """Bytes that a rank hands to all-to-all in a step, its own share included; 4 a number."""
    training = Training(dataset, folder, OPTIONS, process)
    batches = training.batches(4)
    training.run(lambda: itertools.cycle(batches), SKIP)
    counted = []
    for steps in (STEPS, 2 * STEPS):
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            training.run(lambda: itertools.cycle(batches), steps)
        counted.append(sum(map(_numbers, profile.events())))
    # A round's own beginning and log line are in both.
    yield 4 * (counted[1] - counted[0]) / STEPS


def _numbers(event: Any) -> int:
    if not event.name.startswith(MOVED):
        return 0
    return sum(torch.Size(shape).numel() for shape in event.input_shapes if shape)


Measure = Callable[[int], float]
SERIES: dict[str, tuple[Measure, str, str, str]] = {
    "rows": (by_rows, "loading a row", "µs", "flat"),
    "scenarios": (by_scenarios, "a step of STAR", "ms", "flat, then linear"),
    "users": (by_users, "a step", "ms", "flat"),
    "tables": (by_tables, "a step of 512 rows", "ms", "linear"),
    "ranks": (by_ranks, "ids and vectors sent, a rank and step", "MB", "falls as 1 / ranks"),
}
