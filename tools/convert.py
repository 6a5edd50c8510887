"""Conversion and simulation of data sets with progress bars and a report on the console."""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts.conversion import (
    PART_ROWS,
    PartOptions,
    write_dataset_in_parts,
)
from msrec.data.convert.raw_tables import PublishedCounts, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.aliccp import SPLIT_COLUMN, read_aliccp
from msrec.data.convert.sources.amazon import read_amazon
from msrec.data.convert.sources.douban import read_douban
from msrec.data.convert.sources.kuairand import read_kuairand
from msrec.data.convert.sources.kuaisar import read_kuaisar
from msrec.data.convert.sources.movielens import read_movielens
from msrec.data.convert.sources.plain.table_files import (
    TIMESTAMP,
    TableFile,
    file_columns,
    is_text,
    text_columns,
)
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.split import FRACTIONS, Fractions, Method, SplitChoice
from msrec.data.convert.vocabulary_encoding import TableKind
from msrec.data.engines.engines import WorkerEngine, make_engine
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.vocabulary import Frequent
from msrec.data.histories.build import build_histories
from msrec.data.io.outputs import DATASET, check_output
from msrec.data.io.paths import AnyPath, local_path, to_path
from msrec.data.schema import SPLITS, Protocol, Schema
from msrec.data.synthetic.random_rows import random_rows
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.launch.console import PlainConsole
from msrec.tools.histories import histories_table
from msrec.tools.planner.tables import read_tables_file
from msrec.tools.progress_bars import progress_bars


@dataclass(frozen=True)
class Source:
    """A kind of raw data: its reader, and its published split if it has one."""

    read: Callable[..., RawTables]
    """Function of (folder, reader, options of the source)."""
    given_split: str | None = None
    """Column with the published split, the default and the one of the scenario-wise protocol."""


SOURCES = {
    "movielens": Source(read_movielens),
    "kuaisar": Source(read_kuaisar),
    "kuairand": Source(read_kuairand),
    "amazon": Source(read_amazon),
    "douban": Source(read_douban),
    "aliccp": Source(read_aliccp, given_split=SPLIT_COLUMN),
    "tables": Source(read_tables),
}


@dataclass(frozen=True)
class Workers:
    """Workers of a conversion in parts.

    Args:
        engine: runs the parts, see `make_engine`.
        count: number of workers on this machine; one for each core if None.
        address: of a Ray cluster.
        part_rows: raw rows of a part.
        work: folder for the parts, the same on all machines; `.OUT.parts` next to OUT if None,
            which must be a folder then.
    """

    engine: WorkerEngine = "processes"
    count: int | None = None
    address: str | None = None
    part_rows: int = PART_ROWS
    work: Path | None = None


def convert(
    source: str,
    raw: AnyPath | str,
    out: AnyPath | str,
    *,
    choice: SplitChoice | None = None,
    bad_rows: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    grow_from: AnyPath | None = None,
    table_kinds: Mapping[str, TableKind] | None = None,
    histories: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Schema:
    """Converts raw data to a dataset folder; prints decisions, counts and what was left out.

    Args:
        source: name in `SOURCES`.
        raw: folder with the raw files.
        out: dataset folder to make.
        choice: how to split the rows, see `split_choice`; the default of the source if None.
        bad_rows: refuse the first bad row, or leave bad rows out and count them.
        overwrite: replace the dataset folder `out`.
        grow_from: an older dataset folder, whose values keep their table rows.
        table_kinds: features whose table has not a row for each value, see `tables_by_option`.
        histories: index the histories of all rows, by both protocols, with all rows as events.
        console: prints the report.
        options: those of the source; plain tables also have `workers`, see `workers_by_option`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or an option is not valid.
    """
    console = console or PlainConsole()
    workers: Workers | None = options.pop("workers", None)
    choice = choice or split_choice(source)
    row_filter = RowFilter(bad_rows)
    raw, out = to_path(raw) if source == "tables" else local_path(str(raw)), to_path(out)
    check_output(out, DATASET, [raw, grow_from], overwrite=overwrite)
    with progress_bars(console) as progress:
        finish = partial(build_histories, progress=progress) if histories else None
        if workers is not None:
            schema, tables = _convert_in_parts(
                source,
                raw,
                out,
                workers,
                options,
                choice=choice,
                row_filter=row_filter,
                grow_from=grow_from,
                table_kinds=table_kinds,
                progress=progress,
                finish=finish,
            )
        else:
            tables = _read(source, raw, choice, TextReader(row_filter, progress), **options)
            if histories and tables.timestamp is None:
                _refuse_histories(tables.location("interaction"))
            schema = write_dataset(
                tables, out, choice, overwrite, progress, row_filter, grow_from, table_kinds, finish
            )
    for note in tables.notes:
        console.print(f"  {note}", highlight=False)
    _print_report(schema, out, console)
    for example in row_filter.examples.values():
        console.print(f"  left out, first: {example}", highlight=False)
    if tables.published:
        console.print(published_table(schema, tables.published))
    if histories:
        console.print(histories_table(schema))
    return schema


def _convert_in_parts(
    source: str,
    raw: AnyPath,
    out: AnyPath,
    workers: Workers,
    options: dict[str, Any],
    **settings: Any,
) -> tuple[Schema, RawTables]:
    """Converts plain tables on several workers; `settings` are those of the function."""
    if source != "tables":
        raise ValueError(f"only `msrec convert tables` has several workers; got {source!r}.")
    rows = TableRows.declared(raw, **options)
    if settings["finish"]:
        file = rows.of_versions(raw).files(raw)[0]
        if TIMESTAMP not in _columns(file, rows):
            _refuse_histories(str(file))
    work = workers.work or work_beside(out)
    with make_engine(workers.engine, workers.count, workers.address) as engine:
        parts = PartOptions(engine, work, workers.part_rows, overwrite=True)
        return write_dataset_in_parts(raw, rows, out, parts, **settings)


def work_beside(out: AnyPath) -> Path:
    """Returns the default folder for the parts.

    Raises:
        ValueError: the dataset folder is remote.
    """
    if not isinstance(out, Path):
        raise ValueError(
            f"--work must name a folder for the parts that all workers share, because {out} is in "
            "an object store; it is not given. Add --work, with space for 150 bytes a row."
        )
    return out.with_name(f".{out.name}.parts")


def _columns(file: TableFile, rows: TableRows) -> Container[str]:
    """Returns the names of the columns of a file of the interactions."""
    return text_columns(file, rows.types["interaction"]) if is_text(file) else file_columns(file)


def _read(
    source: str, raw: AnyPath, choice: SplitChoice, reader: TextReader, **options: Any
) -> RawTables:
    """Reads the raw tables of a source; refuses a protocol that does not fit them."""
    tables = SOURCES[source].read(raw, reader, **options)
    if choice.protocol == "scenario-wise" and tables.differs_from_published:
        raise ValueError(
            "the protocol scenario-wise has the scenarios of Scenario-Wise-Rec; these are "
            f"others: {tables.differs_from_published}. Give the published ones or use --split."
        )
    return tables


def _refuse_histories(location: str) -> None:
    raise ValueError(
        f"{location} must have timestamps for --histories; it has none. Leave the option out, then "
        "see `msrec histories --help`."
    )


def split_choice(
    source: str,
    protocol: Protocol | None = None,
    split: Method | None = None,
    seed: int = 0,
    fractions: Fractions = FRACTIONS,
    last: int | None = None,
    split_column: str | None = None,
) -> SplitChoice:
    """Returns the split of a protocol or of a method; by default the published one, or random.

    Raises:
        ValueError: a protocol and options of a method are given, or an option is not valid.
    """
    if protocol and (split or last or split_column or fractions != FRACTIONS):
        raise ValueError(
            "a protocol says how to split; give --protocol or --split with its options, not both."
        )
    given = SOURCES[source].given_split
    if given and (protocol == "scenario-wise" or not (protocol or split)):
        return SplitChoice("given", seed, fractions, last, split_column or given, protocol)
    if protocol:
        return SplitChoice.of(protocol, seed)
    return SplitChoice(split or "random", seed, fractions, last, split_column)


def workers_by_option(
    engine: Literal["polars"] | WorkerEngine = "polars",
    workers: int | None = None,
    address: str | None = None,
    part_rows: int | None = None,
    work: Path | None = None,
) -> Workers | None:
    """Returns the workers of the options of `msrec convert tables`; None for one process.

    Raises:
        ValueError: an option needs another engine.
    """
    if engine != "polars":
        part_rows = PART_ROWS if part_rows is None else part_rows
        return Workers(engine, workers, address, part_rows, work)
    if any(option is not None for option in (workers, address, part_rows, work)):
        raise ValueError(
            "--workers, --address, --part-rows and --work are for --engine processes, ray or ranks."
        )
    return None


def tables_by_option(
    hash: Sequence[str] | None = None,
    managed: Sequence[str] | None = None,
    min_rows: Sequence[str] | None = None,
) -> dict[str, TableKind]:
    """Returns feature -> its table, of the options `--hash`, `--managed` and `--min-rows`.

    Raises:
        ValueError: an option is not valid, or a feature has two of them.
    """
    kinds: dict[str, TableKind] = {}
    for table_kind, options in ((_hashed, hash), (_managed, managed), (_frequent, min_rows)):
        of_options: Iterable[tuple[str, TableKind]] = map(table_kind, options or ())
        for name, kind in of_options:
            if name in kinds:
                raise ValueError(
                    f"a feature must have one of --hash, --managed and --min-rows; {name!r} has "
                    "two."
                )
            kinds[name] = kind
    return kinds


def versions_by_option(versions: Sequence[str]) -> dict[str, int]:
    """Returns table -> version or snapshot, of the option `--versions`.

    Raises:
        ValueError: the option is not valid.
    """
    return dict(_number_of(each, "--versions", "interactions=12,users=3") for each in versions)


def _hashed(option: str) -> tuple[str, Hashed]:
    matched = re.fullmatch(r"(.+)=(\d+)(?:x(\d+))?", option)
    if matched is None:
        raise ValueError(
            "--hash must look like user_id=100000, or user_id=100000x2 for two hashes; got "
            f"{option!r}."
        )
    name, rows, hashes = matched.groups()
    return name, Hashed(int(rows), int(hashes or 1))


def _managed(option: str) -> tuple[str, Managed]:
    name, rows = _number_of(option, "--managed", "user_id=100000")
    return name, Managed(rows)


def _frequent(option: str) -> tuple[str, Frequent]:
    name, rows = _number_of(option, "--min-rows", "user_id=5")
    return name, Frequent(rows)


def _number_of(option: str, flag: str, example: str) -> tuple[str, int]:
    matched = re.fullmatch(r"(.+)=(\d+)", option)
    if matched is None:
        raise ValueError(f"{flag} must look like {example}; got {option!r}.")
    return matched.group(1), int(matched.group(2))


def make_synthetic(out: Path | str, console: Console | None = None, **options: Any) -> Schema:
    """Writes the simulated app as a dataset folder; `options` are those of `synthesize`."""
    console = console or PlainConsole()
    with progress_bars(console) as progress:
        schema = synthesize(out, progress=progress, **options)
    _print_report(schema, out, console)
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
    """Writes random rows for the embedding tables of a YAML or CSV file as a dataset folder."""
    console = console or PlainConsole()
    check_output(Path(out), DATASET, [tables], overwrite=overwrite)
    loads = read_tables_file(tables)
    schema = random_rows(out, loads, rows, users, items, seed=seed, overwrite=overwrite)
    _print_report(schema, out, console)
    dims = ", ".join(map(str, sorted({load.dim for load in loads})))
    note = f"dim {dims} of {tables} is not part of a data set: set embeddings.dim of the run"
    console.print(f"  {note}", highlight=False, soft_wrap=True)
    return schema


def summary_table(schema: Schema) -> Table:
    """Returns the rows and share of positives by scenario and split, and users and items."""
    counts = schema.counts
    names = [*(scenario.name for scenario in schema.scenarios), "all"]
    sides = [side for side in ("users", "items") if side in counts]
    _check_counts(schema, names)
    table = Table(title=f"{schema.name}: rows (positive)")
    table.add_column("scenario")
    for head in (*SPLITS, *sides):
        table.add_column(head, justify="right")
    for name in names:
        cells = []
        for split in SPLITS:
            rows, positives = counts["rows"][split][name], counts["positives"][split][name]
            cells.append(f"{rows:,} ({positives / rows:.1%})" if rows else "0")
        table.add_row(name, *cells, *(f"{counts[side][name]:,}" for side in sides))
    if counts.get("time"):
        table.add_section()
        times = counts["time"]
        spans = (_time_span(times[s], schema.timestamp_unit) if s in times else "" for s in SPLITS)
        table.add_row("time", *spans)
    return table


def _check_counts(schema: Schema, names: list[str]) -> None:
    """Checks that counts know each scenario: dataset.yaml may have been edited since."""
    for kind in ("rows", "positives", "users", "items"):
        of_kind = schema.counts.get(kind)
        parts = [of_kind]
        if kind in ("rows", "positives"):
            parts = [of_kind.get(split) if isinstance(of_kind, dict) else None for split in SPLITS]
        elif of_kind is None:
            continue
        for part in parts:
            if not isinstance(part, dict) or not all(type(part.get(n)) is int for n in names):
                raise ValueError(
                    f"dataset.yaml: counts.{kind} must have a number for each scenario "
                    f"({', '.join(names)}). Convert the data set again, or delete counts there."
                )


def published_table(schema: Schema, published: PublishedCounts) -> Table:
    """Returns the counts next to those of the published data set that is nearest in rows."""
    counts = schema.counts
    names = [scenario.name for scenario in schema.scenarios]
    rows = {name: sum(counts["rows"][split][name] for split in SPLITS) for name in names}
    total = sum(rows.values())
    sizes = {title: sum(n for n, _, _ in of.values()) for title, of in published.items()}
    nearest = min(published, key=lambda title: abs(sizes[title] - total))
    table = Table(title=f"next to {nearest}")
    for column in ("scenario", "", "here", "published", "difference"):
        table.add_column(column, justify="left" if column in ("scenario", "") else "right")
    converted = {"rows": rows, "users": counts["users"], "items": counts["items"]}
    for name, figures in published[nearest].items():
        for (kind, here_by_name), there in zip(converted.items(), figures, strict=True):
            here = here_by_name.get(name, 0)
            difference = "equal" if here == there else f"{here - there:+,}"
            table.add_row(name, kind, f"{here:,}", f"{there:,}", difference)
    return table


def _time_span(span: list[int], unit: str | None) -> str:
    """Returns the first and last time, as dates if the unit is known."""
    if unit is None:
        return f"{span[0]:,} to {span[1]:,}"
    scale = {"s": 1, "ms": 1000}[unit]
    times = [datetime.fromtimestamp(t / scale, UTC).strftime("%Y-%m-%d %H:%M") for t in span]
    return " to ".join(times)


def remarks(schema: Schema, of_tables: bool = True) -> list[str]:
    """Returns a line for each count that is not zero: unknown ids, missing values, duplicates, ...

    Args:
        schema: has the counts.
        of_tables: include unknown ids and collisions.
    """
    counts = schema.counts
    lines = []
    for kind in ("unknown", "missing") if of_tables else ("missing",):
        for feature, splits in counts.get(kind, {}).items():
            lines.append(f"{feature}: {kind} (row 0): {_per_split(splits)}")
    for feature, collisions in counts.get("collisions", {}).items() if of_tables else ():
        lines.append(
            f"{feature}: hashed; {collisions['shared']:,} of {collisions['values']:,} training "
            "values share all their rows with another"
        )
    for feature, cut in counts.get("cut", {}).items() if of_tables else ():
        lines.append(
            f"{feature}: {cut['values']:,} of {cut['of_values']:,} training values have fewer than "
            f"{cut['min_rows']:,} rows, {cut['rows']:,} in all, and have row 0"
        )
    lines += [_label_remark(name, splits) for name, splits in counts.get("labels", {}).items()]
    for side in ("users", "items"):
        cold = {k: n for k, n in counts.get(f"{side}_without_training", {}).items() if n}
        if cold:
            lines.append(f"{side} without a training row: {_per_split(cold)}")
    for table, number in counts.get("added", {}).items():
        lines.append(f"{table} that only interactions name, added without features: {number:,}")
    for column, number in counts.get("replaced", {}).items():
        lines.append(f"{column}: {number:,} texts with U+FFFD for what is no character")
    lines += [f"left out: {n:,}: {why}" for why, n in counts.get("left_out", {}).items()]
    if counts.get("duplicates"):
        lines.append(f"duplicate (user, item, timestamp) rows, kept: {counts['duplicates']:,}")
    lines += [f"{name}: {n:,} empty" for name, n in counts.get("empty_text", {}).items()]
    for name, value in counts.get("best_auc", {}).items():
        lines.append(f"best possible test AUC, {name}: {_number(value)}")
    for label, metrics in counts.get("best", {}).items():
        for metric, groups in metrics.items():
            lines.append(f"best possible test {metric} of {label}: {_number(groups['all'])}")
    return lines


def _label_remark(name: str, by_split: dict[str, dict[str, Any]]) -> str:
    """Returns the rows of all splits that have a label and lack it, and its values."""
    totals = {
        key: sum(counts[key] or 0 for counts in by_split.values())
        for key in ("rows", "missing", "positives", "clipped")
        if key in by_split["train"]
    }
    line = f"label {name}: in {totals['rows']:,} rows"
    if "positives" in totals:
        line += f", positive in {totals['positives']:,}"
    else:
        line += f", training mean {_number(by_split['train']['mean'])}"
    for key in ("missing", "clipped"):
        line += f", {key} in {totals[key]:,}" if totals.get(key) else ""
    return line


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _per_split(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} in {split}" for split, n in counts.items())


def _print_report(schema: Schema, out: AnyPath | str, console: Console) -> None:
    console.print(summary_table(schema))
    for remark in remarks(schema):
        console.print(f"  {remark}", highlight=False)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)
