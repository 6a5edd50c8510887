"""Iceberg tables as raw tables: the Parquet files of a snapshot."""

import re
from typing import Any

import polars as pl

from msrec.data.convert.sources.plain.version_files import VersionFile
from msrec.data.io.paths import AnyPath, entries, first_line, to_path

METADATA, FILE_IO = "metadata", "pyiceberg.io.fsspec.FsspecFileIO"
_NUMBER = re.compile(r"v?(\d+)\b.*\.metadata\.json$")
"""`00003-UUID.metadata.json` of a catalog, or `v3.metadata.json`."""


def is_iceberg(folder: AnyPath) -> bool:
    """Returns whether a folder is an Iceberg table."""
    return bool(entries(folder / METADATA, "*.metadata.json"))


def iceberg_snapshot(folder: AnyPath) -> int:
    """Returns the current snapshot of an Iceberg table.

    Raises:
        ValueError: it has none; or see `iceberg_files`.
    """
    snapshot = _open(folder).current_snapshot()
    if snapshot is None:
        raise ValueError(f"{folder} must hold rows; the table has no snapshot.")
    return int(snapshot.snapshot_id)


def iceberg_files(folder: AnyPath, snapshot: int) -> list[VersionFile]:
    """Returns the files of a snapshot of an Iceberg table, by path.

    The columns are those of the snapshot. A file may be older than the name of a column, which has
    a number for that reason.

    Raises:
        ValueError: the snapshot does not exist or has no files, or its rows are not those of
            Parquet files; or pyiceberg is not installed.
    """
    table = _open(folder)
    if table.snapshot_by_id(snapshot) is None:
        raise ValueError(
            f"{folder} must be an Iceberg table with snapshot {snapshot}; it has "
            f"{', '.join(str(s.snapshot_id) for s in table.snapshots()[-3:]) or 'none'}. Name one "
            "that it has."
        )
    scan = table.scan(snapshot_id=snapshot)
    try:
        tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)
    except (ValueError, OSError) as error:
        raise _refused(folder, snapshot, first_line(error)) from None
    if not tasks:
        raise ValueError(f"{folder} must hold rows; snapshot {snapshot} has no files.")
    if any(task.delete_files for task in tasks):
        raise _refused(folder, snapshot, "rows are deleted by delete files")
    if found := {str(task.file.file_format.value) for task in tasks} - {"PARQUET"}:
        raise _refused(folder, snapshot, f"there are files in {', '.join(sorted(found))}")
    columns = scan.projection()
    schema = pl.DataFrame(pl.from_arrow(columns.as_arrow().empty_table())).schema
    ids = {field.name: field.field_id for field in columns.fields}
    defaults = {f.name: f.initial_default for f in columns.fields if f.initial_default is not None}
    return [VersionFile(to_path(task.file.file_path), schema, defaults, ids) for task in tasks]


def _refused(folder: AnyPath, snapshot: int, found: str) -> ValueError:
    return ValueError(
        f"{folder} must have the rows of Parquet files in snapshot {snapshot}; {found}. Rewrite "
        "the table's files (Spark: CALL system.rewrite_data_files), or write Parquet files."
    )


def _open(folder: AnyPath) -> Any:
    """Returns the table as of its last metadata file."""
    try:
        from pyiceberg.table import StaticTable
    except ImportError:
        raise ValueError(
            f"{folder} is an Iceberg table, which needs its package: pip install 'msrec[iceberg]'."
        ) from None
    numbers = {path: _NUMBER.match(path.name) for path in entries(folder / METADATA)}
    files = {path: int(match[1]) for path, match in numbers.items() if match}
    last = [path for path, number in files.items() if number == max(files.values())]
    if len(last) > 1:
        raise ValueError(
            f"{folder / METADATA} must have one last metadata file; found "
            f"{' and '.join(path.name for path in last)}. Move the one away that the catalog does "
            "not name."
        )
    try:
        # By fsspec, which has the same access to a store as all of msrec.
        return StaticTable.from_metadata(str(last[0]), {"py-io-impl": FILE_IO})
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{last[0]} must be the metadata of an Iceberg table; {first_line(error)}. Check it "
            "and the access to it."
        ) from None
