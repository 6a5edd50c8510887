"""Conversion of plain tables in parts: the same dataset folder as `write_dataset`, byte for byte.

Every stage runs the functions of `part_functions` over parts or shares, on any number of workers::

    (text) -> survey -> users, items -> keys -> stage -> shares -> (times) -> values -> trained
        -> vocabulary -> index -> encode -> sides, lookups -> files

A process holds one part, or the rows of one share of the users, at a time. The command holds one
column of the users or items, or the distinct values of a feature; the others are in files that are
mapped into memory.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from msrec.data.convert.conversion import schema_of, write_metadata
from msrec.data.convert.parts.job import (
    CODES_FILE,
    ENCODE,
    KEYS,
    SPLITS_FILE,
    Job,
    RawPart,
    key_files,
    mapped_sides,
    without_rows,
    write_sides,
)
from msrec.data.convert.parts.part_functions import (
    dataset_files,
    file_part,
    send_part,
    survey_part,
)
from msrec.data.convert.parts.raw_files import parquet_files, raw_parts, read_side_files
from msrec.data.convert.parts.stages import Stages
from msrec.data.convert.parts.steps import (
    divide_rows,
    encode_rows,
    fit_vocabularies,
    index_columns,
    stage_rows,
)
from msrec.data.convert.raw_tables import SIDES, Progress, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.plain.declared_columns import ReadFiles
from msrec.data.convert.sources.plain.table_files import (
    TableFile,
    file_path,
)
from msrec.data.convert.sources.plain.table_rows import Survey, TableRows
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.split import SplitChoice
from msrec.data.convert.staging import require_interactions
from msrec.data.convert.table_checks import checked_tables
from msrec.data.convert.vocabulary_encoding import EncodedFeatures, TableKind
from msrec.data.engines.tasks import Engine
from msrec.data.features.vocabulary import load_vocabularies
from msrec.data.io.atomic_files import write_json
from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.mistakes import is_mistake
from msrec.data.io.outputs import DATASET, FolderKind, check_output, new_folder
from msrec.data.io.paths import AnyPath, is_remote, reachable
from msrec.data.io.remote_folders import require_writable
from msrec.data.schema import SCHEMA_FILE, SPLITS, Schema

PART_ROWS = 1 << 20
SHARE_PARTS = 4
"""Parts whose rows make a share of the users."""
FILES, SEND = "files", "send"
Finish = Callable[[Path], Schema]
MARKER = "conversion.json"
FORMAT = 3
"""Version of the files in a work folder: raised when a stage writes others for the same input."""
WORK = FolderKind("a work folder of a conversion", MARKER, (MARKER, "*.arrow", CODES_FILE, "*/**"))


@dataclass(frozen=True)
class PartOptions:
    """Options of a conversion in parts.

    Args:
        engine: runs the parts.
        work: folder for the files of the stages; all workers see it under the same path.
        part_rows: raw rows of a part.
        overwrite: replace an older dataset folder.
    """

    engine: Engine
    work: Path
    part_rows: int = PART_ROWS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.part_rows < 1:
            raise ValueError(f"a part must have at least 1 row; got {self.part_rows}.")


def write_dataset_in_parts(
    folder: AnyPath,
    source: TableRows,
    out: AnyPath,
    options: PartOptions,
    choice: SplitChoice | None = None,
    row_filter: RowFilter | None = None,
    grow_from: AnyPath | None = None,
    table_kinds: Mapping[str, TableKind] | None = None,
    progress: Progress | None = None,
    finish: Finish | None = None,
) -> tuple[Schema, RawTables]:
    """Converts the tables of a folder; see `write_dataset` and `read_tables`.

    If it is stopped, the same call goes on with the parts that are not done. The work folder is
    removed at the end.

    Returns:
        The schema, and the raw tables without rows.

    Raises:
        ValueError: see `write_dataset`; or the work folder has the parts of another conversion.
        ConnectionError: several workers died with the same part.
    """
    choice, row_filter = choice or SplitChoice(), row_filter or RowFilter()
    table_kinds = table_kinds or {}
    source = source.of_versions(folder, _versions(options.work))
    files = source.files(folder)
    check_output(out, DATASET, [folder, grow_from, options.work], overwrite=options.overwrite)
    if is_remote(out):
        require_writable(out, SCHEMA_FILE)
    record = _record(folder, files, source, options, choice, row_filter, grow_from, table_kinds)
    with exclusive(options.work, f"{out} must be converted"), _work_folder(options.work, record):
        stages = Stages(options.work, options.engine, progress)
        made = _converted(
            folder,
            source,
            files,
            stages,
            options.part_rows,
            choice,
            row_filter,
            grow_from,
            table_kinds,
        )
        inputs = [folder, grow_from, options.work]
        send = partial(_send, stages)
        with new_folder(
            out, DATASET, inputs, overwrite=options.overwrite, work=options.work, send=send
        ) as new:
            for number, name in enumerate(made.folders):
                _link(next(stages.part(FILES, number).glob("*.parquet")), new / name)
            raw = made.raw
            schema = write_metadata(made.schema, made.encoded, made.counts, {}, row_filter, new)
            if finish is not None:
                schema = finish(new)
        raw = without_rows(raw)
        del made  # closes the memory maps before their files are removed
    return schema, raw


class Converted(NamedTuple):
    """Results of all stages; the files of rows, users and items are in the work folder.

    Attributes:
        raw: the tables without interactions.
        schema: without counts.
        encoded: has the vocabularies.
        counts: see `write_metadata`.
        folders: folder of each file, in the dataset folder.
    """

    raw: RawTables
    schema: Schema
    encoded: EncodedFeatures
    counts: dict[str, Any]
    folders: list[str]


def _converted(
    folder: AnyPath,
    source: TableRows,
    files: Sequence[TableFile],
    stages: Stages,
    part_rows: int,
    choice: SplitChoice,
    row_filter: RowFilter,
    grow_from: AnyPath | None,
    table_kinds: Mapping[str, TableKind],
) -> Converted:
    """Runs all stages; arguments as those of `write_dataset_in_parts`."""
    parts = raw_parts(parquet_files(files, source, stages, row_filter), part_rows)
    read, reader = partial(read_side_files, stages, part_rows), TextReader(row_filter)
    survey, raw = _survey(folder, source, files[0], stages, parts, reader, read)
    write_sides(raw, stages.folder)
    raw = mapped_sides(raw, stages.folder)
    index_columns(stages, KEYS, key_files(stages.folder))
    num_rows = sum(part.rows for part in parts)
    job = Job(
        stages.folder,
        uuid.uuid4().hex,
        source,
        survey,
        without_rows(raw),
        choice,
        row_filter.policy,
        -(-num_rows // (SHARE_PARTS * part_rows)),
        table_kinds,
        tuple(parts),
    )
    job, duplicates = stage_rows(job, raw, stages, row_filter)
    rows, split = divide_rows(job, raw, stages)
    known = load_vocabularies(grow_from) if grow_from is not None else None
    encoded, labels = fit_vocabularies(job, raw, stages, known)
    raw = replace(raw, label_options=labels)
    schema = schema_of(raw, encoded, split)
    job = replace(job, schema=schema)
    counts = {**encode_rows(job, raw, encoded, stages), "duplicates": duplicates}
    tasks = dataset_files(rows)
    results = stages.run(FILES, partial(file_part, job), [*SIDES, *tasks])
    stages.discard(ENCODE, SPLITS_FILE)
    counts["empty_text"] = results[0] | results[1]
    folders = ["" for _ in SIDES] + [SPLITS[task.split] for task in tasks]
    return Converted(raw, schema, encoded, counts, folders)


def _record(
    folder: AnyPath,
    files: Sequence[TableFile],
    source: TableRows,
    options: PartOptions,
    choice: SplitChoice,
    row_filter: RowFilter,
    grow_from: AnyPath | None,
    table_kinds: Mapping[str, TableKind],
) -> dict[str, Any]:
    """Returns everything that the files of a work folder depend on, as JSON."""
    sides = (source.files(folder, table) for table in ("users", "items"))
    return {
        "format": FORMAT,
        "raw": {str(file): _state(file_path(file)) for file in (*files, *chain(*sides))},
        "versions": dict(source.versions),
        "mapping": source.mapping.model_dump(mode="json"),
        "columns": [source.label, source.scenario_column],
        "split": json.loads(json.dumps(asdict(choice))),
        "bad_rows": row_filter.policy,
        "grow_from": None if grow_from is None else str(grow_from),
        "tables": {name: repr(table) for name, table in table_kinds.items()},
        "part_rows": options.part_rows,
    }


def _versions(work: Path) -> dict[str, int]:
    """Returns the versions of the tables of which a work folder has parts."""
    marker = work / MARKER
    versions = json.loads(marker.read_text()).get("versions") if marker.is_file() else None
    return versions or {}


def _state(path: AnyPath) -> list[int]:
    """Returns the size of a file, and the time at which it was changed."""
    with reachable(path):
        stat = path.stat()
    # A store may give the seconds only, depending on the request.
    return [stat.st_size, int(stat.st_mtime) if is_remote(path) else stat.st_mtime_ns]


@contextmanager
def _work_folder(work: Path, record: dict[str, Any]) -> Iterator[None]:
    """Makes a work folder, or takes the one that an earlier call of the same conversion left.

    It is removed at the end, and after a mistake in the input, with which all later calls of the
    same conversion would end too.
    """
    check_output(work, WORK)
    work.mkdir(parents=True, exist_ok=True)
    marker = work / MARKER
    if marker.is_file() and json.loads(marker.read_text()) != record:
        raise ValueError(
            f"{work} must hold parts of this conversion; they are of another one, with other raw "
            "files or options, or by another version of msrec. Remove it, or repeat that "
            "conversion."
        )
    write_json(marker, record)
    try:
        yield
    except ValueError as error:
        if is_mistake(error):
            shutil.rmtree(work, ignore_errors=True)  # other workers may still write
        raise
    shutil.rmtree(work)


def _survey(
    folder: AnyPath,
    source: TableRows,
    file: TableFile,
    stages: Stages,
    parts: list[RawPart],
    reader: TextReader,
    read: ReadFiles,
) -> tuple[Survey, RawTables]:
    """Returns the survey of all parts, and the raw tables without interactions.

    `file` is the first file of the interactions.
    """
    if not parts:
        require_interactions(0, str(file))
    columns = source.typed(replace(parts[0], rows=0).read(), str(file))
    results = stages.run("survey", partial(survey_part, source), parts)
    scenarios = stages.files("survey", "scenarios.parquet", len(parts))
    surveys = [
        Survey(columns, pl.read_parquet(path), result["separators"], result["given"])
        for path, result in zip(scenarios, results, strict=True)
    ]
    survey = Survey.merged(surveys)
    raw = checked_tables(source.raw_tables(folder, file, survey, reader, read))
    if raw.impression and not columns[raw.impression].dtype.is_integer():
        raise ValueError(
            f"{file}: column {raw.impression!r} must hold integers to be converted in parts; "
            f"found {columns[raw.impression].dtype}. Number the impressions, or use one process."
        )
    return survey, raw


def _send(stages: Stages, files: Sequence[tuple[Path, AnyPath]]) -> None:
    """Lets workers copy all files to a remote folder, which may have changed since a last call."""
    shutil.rmtree(stages.folder / SEND, ignore_errors=True)
    stages.run(SEND, send_part, files)


def _link(file: Path, folder: Path) -> None:
    """Puts a file into a folder; it stays where it is, so that a stopped conversion goes on."""
    folder.mkdir(exist_ok=True)
    try:
        os.link(file, folder / file.name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, folder / file.name)
