"""Plain tables: interactions, items and users, described by tables.yaml."""

import dataclasses
import itertools

import polars as pl

from msrec.data.convert.raw_tables import Chunk, RawTables
from msrec.data.convert.sources.plain.table_files import (
    Versions,
    read_table,
    text_columns,
)
from msrec.data.convert.sources.plain.table_rows import Survey, TableRows
from msrec.data.convert.sources.plain.tables_mapping import DEFAULT_LABEL
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.table_checks import check_type
from msrec.data.io.paths import AnyPath, to_path


def read_tables(
    folder: AnyPath | str,
    reader: TextReader | None = None,
    scenario_column: str = "scenario",
    label: str = DEFAULT_LABEL,
    mapping: AnyPath | str | None = None,
    versions: Versions | None = None,
) -> RawTables:
    """Reads interactions (user_id, item_id, scenario, label, ...), users and items.

    Each is Parquet, CSV or JSON lines, or a folder with a Delta or Iceberg table. There may be
    a folder `interactions` of files of one format.

    Scenarios are named by the column `<scenario_column>_name`. Features are named by tables.yaml or
    the defaults in `data/convert/sources/plain/guess.py`. Columns of the interactions are features
    only if tables.yaml names them, and never a rating or a label.

    Args:
        folder: with the three files.
        reader: reads text, with the policy for bad rows; refuses them if None.
        scenario_column: column of the interactions.
        label: column of the interactions with the first label, which is renamed to `label` if
            tables.yaml names no labels.
        mapping: the YAML file; `tables.yaml` in the folder if None.
        versions: versions of Delta and Iceberg tables; the latest if not given.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, a column is missing, or tables.yaml is wrong.
    """
    folder, reader = to_path(folder), reader or TextReader()
    source = TableRows.declared(folder, scenario_column, label, mapping, versions)
    source = source.of_versions(folder)
    files = source.files(folder)
    columns = text_columns(files[0], source.types["interaction"])
    frames = [source.typed(read_table(path, columns, reader), str(path)) for path in files]
    surveys = [source.survey(f, str(path)) for f, path in zip(frames, files, strict=True)]
    survey = Survey.merged(surveys)
    raw = source.raw_tables(folder, files[0], survey, reader)
    frames, notes = _with_impressions(
        [source.converted(frame, survey) for frame in frames], source.mapping.impression
    )
    raw = dataclasses.replace(raw, notes=(*raw.notes, *notes))
    if len(files) == 1:
        return dataclasses.replace(raw, interactions=frames[0])
    chunks = [Chunk(str(path), frame) for path, frame in zip(files, frames, strict=True)]
    return dataclasses.replace(raw, interactions=chunks)


def _with_impressions(
    frames: list[pl.DataFrame], column: str | None
) -> tuple[list[pl.DataFrame], list[str]]:
    """Numbers impressions that are not integers; returns a note on it."""
    if column is None or frames[0][column].dtype.is_integer():
        return frames, []
    check_type(frames[0][column], "key", "interactions")
    values = pl.concat([frame[column] for frame in frames])
    numbers = values.rank("dense").cast(pl.Int64) - 1
    ends = itertools.accumulate(map(len, frames))
    frames = [
        frame.with_columns(numbers.slice(end - len(frame), len(frame)))
        for frame, end in zip(frames, ends, strict=True)
    ]
    return frames, [f"values of {column!r} are numbered from 0, in their order"]
