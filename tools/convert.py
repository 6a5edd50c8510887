"""Raw data sets to dataset folders, for people: progress, remarks, and a table of what was done."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from msrec.data.convert.conversion import Report, write_dataset
from msrec.data.convert.raw_tables import Published, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.aliccp import SPLIT_COLUMN, read_aliccp
from msrec.data.convert.sources.amazon import read_amazon
from msrec.data.convert.sources.douban import read_douban
from msrec.data.convert.sources.kuairand import read_kuairand
from msrec.data.convert.sources.kuaisar import read_kuaisar
from msrec.data.convert.sources.movielens import read_movielens
from msrec.data.convert.sources.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.features.vocabulary import Hashed
from msrec.data.io.paths import AnyPath
from msrec.data.schema import SPLITS, Protocol, Schema
from msrec.data.synthetic.random_rows import random_rows
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.tools.planner.tables import read_tables_file

Method = Literal["random", "time", "user_last", "given"]


@dataclass(frozen=True)
class Source:
    """A data set as it is published: how to read it, and its split where that is given."""

    read: Callable[..., RawTables]
    """(folder, faults, report, options of its own) -> raw tables."""
    given: str | None = None
    """Column with the published split: it is the default, and the scenario-wise protocol's."""


def _read_movielens(
    folder: Path, faults: RowFilter, report: Report, scenario: Literal["age", "genre"] = "age"
) -> RawTables:
    return read_movielens(folder, scenario)


def _read_tables(
    folder: Path,
    faults: RowFilter,
    report: Report,
    scenario_column: str = "scenario",
    label: str = "label",
    mapping: Path | str | None = None,
) -> RawTables:
    return read_tables(folder, scenario_column, label, mapping)


SOURCES = {
    "movielens": Source(_read_movielens),
    "kuaisar": Source(read_kuaisar),
    "kuairand": Source(read_kuairand),
    "amazon": Source(read_amazon),
    "douban": Source(read_douban),
    "aliccp": Source(read_aliccp, given=SPLIT_COLUMN),
    "tables": Source(_read_tables),
}


def convert(
    source: str,
    raw: Path | str,
    out: Path | str,
    *,
    protocol: Protocol | None = None,
    split: Method | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    last: int | None = None,
    split_column: str | None = None,
    bad_rows: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    grow_from: AnyPath | None = None,
    hash: Sequence[str] | None = None,
    console: Console | None = None,
    **options: Any,
) -> Schema:
    """Convert a data set of `SOURCES`; tells what it decided, counted and left out.

    Args:
        source: name in `SOURCES`.
        raw: folder with the published files.
        out: dataset folder to make.
        protocol: a split of the field by name, instead of the next five.
        split: of all rows at random, by global time, each user's last rows, or given by a column.
        seed: of a random split.
        fractions: train, valid and test.
        last: with user_last, test rows of a user.
        split_column: with given.
        bad_rows: refuse the first, or leave them out and count them.
        overwrite: replace the dataset folder `out`.
        grow_from: an older dataset folder, whose values keep their table rows.
        hash: features with tables of fixed size, as `user_id=100000` or, with two hashes,
            `user_id=100000x2`.
        console: where to tell.
        options: the source's own.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file or an option is not what it must be.
    """
    console = console or Console()
    found = SOURCES[source]
    choice = _choice(found, protocol, split, seed, fractions, last, split_column)
    faults, hashed = RowFilter(bad_rows), _hashed(hash or [])
    with _progress(console) as report:
        tables = found.read(Path(raw), faults, report, **options)
        if protocol == "scenario-wise" and tables.unlike_published:
            raise ValueError(
                f"the protocol scenario-wise has the scenarios of Scenario-Wise-Rec; these are "
                f"others: {tables.unlike_published}. Give the published ones or use --split."
            )
        schema = write_dataset(tables, out, choice, overwrite, report, faults, grow_from, hashed)
    for note in tables.notes:
        console.print(f"  {note}", highlight=False)
    _tell(schema, out, console)
    for example in faults.examples.values():
        console.print(f"  left out, first: {example}", highlight=False)
    if tables.published:
        console.print(published_table(schema, tables.published))
    return schema


def _hashed(options: Sequence[str]) -> dict[str, Hashed]:
    found = {}
    for option in options:
        matched = re.fullmatch(r"(.+)=(\d+)(?:x(\d+))?", option)
        if matched is None:
            raise ValueError(
                f"--hash must look like user_id=100000, or user_id=100000x2 for two hashes; got "
                f"{option!r}."
            )
        name, rows, hashes = matched.groups()
        found[name] = Hashed(int(rows), int(hashes or 1))
    return found


def _choice(
    source: Source,
    protocol: Protocol | None,
    split: Method | None,
    seed: int,
    fractions: tuple[float, float, float],
    last: int | None,
    split_column: str | None,
) -> SplitChoice:
    if protocol and (split or last or split_column or fractions != (0.8, 0.1, 0.1)):
        raise ValueError(
            "a protocol says how to split; give --protocol or --split with its options, not both."
        )
    if source.given and (protocol == "scenario-wise" or not (protocol or split)):
        return SplitChoice("given", column=source.given, protocol=protocol)
    if protocol:
        return SplitChoice.of(protocol, seed)
    method = split or "random"
    return SplitChoice(method, seed, fractions, last, split_column if method == "given" else None)


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


def make_random(
    out: Path | str,
    tables: Path,
    rows: int = 20_000,
    users: int = 500,
    items: int = 500,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Schema:
    """Write random rows for a list of tables as a dataset folder."""
    console = console or Console()
    loads = read_tables_file(tables)
    schema = random_rows(out, loads, rows, users, items, seed=seed, overwrite=overwrite)
    _tell(schema, out, console)
    dims = ", ".join(map(str, sorted({load.dim for load in loads})))
    console.print(
        f"  dim {dims} of {tables} is not part of a data set: a run says embeddings.dim",
        highlight=False,
        soft_wrap=True,
    )
    return schema


def summary_table(schema: Schema) -> Table:
    """Rows and the share of positives, per scenario and split; users and items per scenario."""
    counts = schema.counts
    table = Table(title=f"{schema.name}: rows (positive)")
    table.add_column("scenario")
    for name in (*SPLITS, *(side for side in ("users", "items") if side in counts)):
        table.add_column(name, justify="right")
    for name in [*(s.name for s in schema.scenarios), "all"]:
        cells = []
        for split in SPLITS:
            rows, positives = counts["rows"][split][name], counts["positives"][split][name]
            cells.append(f"{rows:,} ({positives / rows:.1%})" if rows else "0")
        cells += [f"{counts[side][name]:,}" for side in ("users", "items") if side in counts]
        table.add_row(name, *cells)
    if counts.get("time"):
        times = [_span(counts["time"].get(split), schema.timestamp_unit) for split in SPLITS]
        table.add_section()
        table.add_row("time", *times)
    return table


def published_table(schema: Schema, published: Sequence[Published]) -> Table:
    """Counts beside those of the published data set that is nearest in rows."""
    counts = schema.counts
    rows = {
        s.name: sum(counts["rows"][split][s.name] for split in SPLITS) for s in schema.scenarios
    }
    nearest = min(published, key=lambda p: abs(p.rows - sum(rows.values())))
    table = Table(title=f"beside {nearest.name}")
    for column in ("scenario", "", "here", "published", "difference"):
        table.add_column(column, justify="left" if column in ("scenario", "") else "right")
    for name, figures in nearest.scenarios.items():
        found = (rows.get(name, 0), *(counts[side].get(name, 0) for side in ("users", "items")))
        for what, here, there in zip(("rows", "users", "items"), found, figures, strict=True):
            if there is not None:
                shown = "equal" if here == there else f"{here - there:+,}"
                table.add_row(name, what, f"{here:,}", f"{there:,}", shown)
    return table


def _span(time: list[int] | None, unit: str | None) -> str:
    """First and last time, as dates where the unit is known."""
    if time is None:
        return ""
    if unit is None:
        return f"{time[0]:,} to {time[1]:,}"
    scale = {"s": 1, "ms": 1000}[unit]
    days = [datetime.fromtimestamp(t / scale, UTC).strftime("%Y-%m-%d %H:%M") for t in time]
    return " to ".join(days)


def remarks(schema: Schema, of_tables: bool = True) -> list[str]:
    """What was counted and is not zero: unknown ids, missing values, duplicates, empty texts.

    Args:
        schema: what has the counts.
        of_tables: also unknown ids and collisions.
    """
    counts = schema.counts
    found = []
    for what in ("unknown", "missing") if of_tables else ("missing",):
        for feature, splits in counts.get(what, {}).items():
            text = ", ".join(f"{n:,} in {split}" for split, n in splits.items())
            found.append(f"{feature}: {what} (row 0): {text}")
    for feature, found_of in counts.get("collisions", {}).items() if of_tables else ():
        values, shared = found_of["values"], found_of["shared"]
        found.append(
            f"{feature}: hashed; {shared:,} of {values:,} training values share all their rows "
            "with another"
        )
    for what in ("users", "items"):
        cold = {k: n for k, n in counts.get(f"{what}_without_training", {}).items() if n}
        if cold:
            text = ", ".join(f"{n:,} in {split}" for split, n in cold.items())
            found.append(f"{what} without a training row: {text}")
    for table, number in counts.get("added", {}).items():
        found.append(f"{table} that only interactions name, added without features: {number:,}")
    found += [f"left out: {n:,}: {why}" for why, n in counts.get("left_out", {}).items()]
    if counts.get("duplicates"):
        found.append(f"duplicate (user, item, timestamp) rows, kept: {counts['duplicates']:,}")
    found += [f"{name}: {n:,} empty" for name, n in counts.get("empty_text", {}).items()]
    for name, value in counts.get("best_auc", {}).items():
        shown = "undefined" if value is None else f"{value:.4f}"
        found.append(f"best possible test AUC, {name}: {shown}")
    for name, value in counts.get("reachable_auc", {}).items():
        if value is not None:
            found.append(f"test AUC that training rows allow at most, {name}: {value:.4f}")
    return found


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
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _reporter(progress)


def _reporter(progress: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done, total=total)

    return report
