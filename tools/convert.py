"""Raw data sets to dataset folders, for people: progress, remarks, and a table of what was done."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from msrec.data.raw import RawTables
from msrec.data.schema import SPLITS, Schema
from msrec.data.sources.movielens import read_movielens
from msrec.data.sources.tables import read_tables
from msrec.data.split import SplitChoice
from msrec.data.synthetic import synthesize
from msrec.data.write import Report, write_dataset

Method = Literal["random", "time", "user_last", "given"]


def convert_movielens(
    raw: Path | str,
    out: Path | str,
    scenario: Literal["age", "genre"] = "age",
    split: Method = "random",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    last: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Schema:
    """Convert ratings.dat, users.dat and movies.dat of MovieLens-1M."""
    console = console or Console()
    choice = SplitChoice(split, seed, fractions, last)
    with console.status(f"reading {raw}"):
        tables = read_movielens(raw, scenario)
    return _write(tables, out, choice, overwrite, console)


def convert_tables(
    raw: Path | str,
    out: Path | str,
    scenario_column: str = "scenario",
    label: str = "label",
    mapping: Path | str | None = None,
    split: Method = "random",
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    last: int | None = None,
    split_column: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Schema:
    """Convert a folder with interactions, items and users .parquet; tells what it decided."""
    console = console or Console()
    choice = SplitChoice(split, seed, fractions, last, split_column)
    with console.status(f"reading {raw}"):
        tables = read_tables(raw, scenario_column, label, mapping)
    return _write(tables, out, choice, overwrite, console)


def make_synthetic(
    out: Path | str,
    rows: int = 200_000,
    users: int = 600,
    items: int = 2_000,
    seed: int = 0,
    cold_fraction: float = 0.25,
    overwrite: bool = False,
    console: Console | None = None,
) -> Schema:
    """Simulate the short-video app and write it as a dataset folder."""
    console = console or Console()
    with _progress(console) as report:
        schema = synthesize(out, rows, users, items, seed, cold_fraction, overwrite, report)
    _tell(schema, out, console)
    return schema


def summary_table(schema: Schema) -> Table:
    """Rows and the share of positives, per scenario and split."""
    table = Table(title=f"{schema.name}: rows (positive)")
    table.add_column("scenario")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name in [*(s.name for s in schema.scenarios), "all"]:
        cells = []
        for split in SPLITS:
            rows = schema.counts["rows"][split][name]
            positives = schema.counts["positives"][split][name]
            cells.append(f"{rows:,} ({positives / rows:.1%})" if rows else "0")
        table.add_row(name, *cells)
    return table


def remarks(schema: Schema) -> list[str]:
    """What was counted and is not zero: unknown ids, missing values, duplicates, empty texts."""
    counts = schema.counts
    found = []
    for what in ("unknown", "missing"):
        for feature, splits in counts.get(what, {}).items():
            text = ", ".join(f"{n:,} in {split}" for split, n in splits.items())
            found.append(f"{feature}: {what} (row 0): {text}")
    for what in ("users", "items"):
        cold = {k: n for k, n in counts.get(f"{what}_without_training", {}).items() if n}
        if cold:
            text = ", ".join(f"{n:,} in {split}" for split, n in cold.items())
            found.append(f"{what} without a training row: {text}")
    if counts.get("duplicates"):
        found.append(f"duplicate (user, item, timestamp) rows, kept: {counts['duplicates']:,}")
    found += [f"{name}: {n:,} empty" for name, n in counts.get("empty_text", {}).items()]
    for name, value in counts.get("best_auc", {}).items():
        shown = "undefined" if value is None else f"{value:.4f}"
        found.append(f"best possible test AUC, {name}: {shown}")
    return found


def _write(
    tables: RawTables,
    out: Path | str,
    choice: SplitChoice,
    overwrite: bool,
    console: Console,
) -> Schema:
    for note in tables.notes:
        console.print(f"  {note}", highlight=False)
    with _progress(console) as report:
        schema = write_dataset(tables, out, choice, overwrite, report)
    _tell(schema, out, console)
    return schema


def _tell(schema: Schema, out: Path | str, console: Console) -> None:
    console.print(summary_table(schema))
    for remark in remarks(schema):
        console.print(f"  {remark}", highlight=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _reporter(progress)


def _reporter(progress: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done)

    return report
