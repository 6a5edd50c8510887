"""Raw tables of a conversion in parts: text becomes Parquet, and workers read users and items."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from msrec.data.convert.parts.job import ROWS_FILE, RawPart
from msrec.data.convert.parts.part_functions import TABLE_FILE, TextFile, table_part, text_part
from msrec.data.convert.parts.stages import Stages
from msrec.data.convert.raw_tables import Side
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.plain.table_files import (
    TableFile,
    file_path,
    is_text,
    read_files,
    text_columns,
)
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.text_reader import Columns, TextReader
from msrec.data.io.mapped_tables import read_mapped
from msrec.data.io.parquet_files import footers
from msrec.data.io.paths import AnyPath


def parquet_files(
    files: Sequence[TableFile], source: TableRows, stages: Stages, row_filter: RowFilter
) -> list[tuple[TableFile, AnyPath | None]]:
    """Returns the interactions as Parquet files, each with the text file of which it was made."""
    if not is_text(files[0]):
        return [(file, None) for file in files]
    columns = text_columns(files[0], source.types["interaction"])
    tasks = _text_files(files, columns, row_filter)
    merge_filtered(row_filter, stages.run("text", text_part, tasks))
    made = stages.files("text", ROWS_FILE, len(tasks))
    return [(path, task.path) for path, task in zip(made, tasks, strict=True)]


def raw_parts(files: Sequence[tuple[TableFile, AnyPath | None]], rows: int) -> list[RawPart]:
    """Returns the parts of Parquet files, each with at most `rows` rows of one file."""
    sizes = [footer.num_rows for footer in footers([file_path(file) for file, _ in files])]
    return [
        RawPart(file, start, min(rows, size - start), text)
        for (file, text), size in zip(files, sizes, strict=True)
        for start in range(0, size, rows)
    ]


def read_side_files(
    stages: Stages,
    part_rows: int,
    side: Side,
    files: Sequence[TableFile],
    columns: Columns,
    reader: TextReader,
) -> pl.DataFrame:
    """Reads users or items on the workers; returns the table in files that are mapped."""
    tasks: Sequence[Any]
    if is_text(files[0]):
        tasks = _text_files(files, columns, reader.row_filter)
    else:
        tasks = raw_parts([(file, None) for file in files], part_rows)
    if not tasks:
        return read_files(side, files, columns, reader)
    stage = f"{side}s"
    merge_filtered(reader.row_filter, stages.run(stage, table_part, tasks))
    return pl.concat([read_mapped(path) for path in stages.files(stage, TABLE_FILE, len(tasks))])


def merge_filtered(row_filter: RowFilter, results: Sequence[Mapping[str, Any]]) -> None:
    """Adds what the filters of parts have counted."""
    for result in results:
        row_filter.merge(RowFilter(**{name: result[name] for name in row_filter.counts}))


def _text_files(
    files: Sequence[TableFile], columns: Columns, row_filter: RowFilter
) -> list[TextFile]:
    return [TextFile(file_path(file), columns, row_filter.policy) for file in files]
