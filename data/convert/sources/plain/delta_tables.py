"""Delta tables as raw tables: the Parquet files of a version."""

import os
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa

from msrec.data.convert.sources.plain.version_files import VersionFile
from msrec.data.io.paths import AnyPath, first_line, is_remote, reachable

LOG = "_delta_log"
READABLE = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "variantType"}
"""Features of a table that do not change what its files hold, if no row has a deletion vector."""


def is_delta(folder: AnyPath) -> bool:
    """Returns whether a folder is a Delta table."""
    with reachable(folder):
        return (folder / LOG).is_dir()


def delta_version(folder: AnyPath) -> int:
    """Returns the latest version of a Delta table."""
    return int(_open(folder, None).version())


def delta_files(folder: AnyPath, version: int) -> list[VersionFile]:
    """Returns the files of a version of a Delta table, by name.

    Raises:
        ValueError: the version does not exist or has no files, or its rows are not those of plain
            Parquet files; or deltalake is not installed.
    """
    table = _open(folder, version)
    actions = pl.DataFrame(pl.from_arrow(pa.table(table.get_add_actions())))
    if actions.is_empty():
        raise ValueError(f"{folder} must hold rows; version {version} has no files.")
    schema = pl.DataFrame(pl.from_arrow(pa.schema(table.schema()).empty_table())).schema
    return [
        VersionFile(folder / unquote(row["path"]), schema, row.get("partition") or {})
        for row in actions.sort("path").to_dicts()
    ]


def _open(folder: AnyPath, version: int | None) -> Any:
    """Returns a version of a Delta table, the latest if None."""
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise ValueError(
            f"{folder} is a Delta table, which needs its package: pip install 'msrec[delta]'."
        ) from None
    is_http = is_remote(folder) and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
    try:
        options = {"AWS_ALLOW_HTTP": "true"} if is_http else None
        table = DeltaTable(str(folder), version, storage_options=options)
        found = _unreadable(table)
    except (DeltaError, OSError) as error:
        what = "the latest version" if version is None else f"version {version}"
        raise ValueError(
            f"{folder} must be a Delta table with {what}; {first_line(error)}. Name a version that "
            "it has, and check the access to it."
        ) from None
    if found:
        raise ValueError(
            f"{folder} must have the rows of its Parquet files; version {table.version()} uses "
            f"{', '.join(found)}. Write a table without (deletion vectors leave with REORG TABLE "
            "... APPLY (PURGE)), or Parquet files."
        )
    return table


def _unreadable(table: Any) -> list[str]:
    """Returns what makes the rows of a table others than those of its Parquet files."""
    features = table.protocol().reader_features or []
    found = [feature for feature in features if feature not in (*READABLE, "columnMapping")]
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        found.append("column mapping")
    if "deletionVectors" in features and any(rows.num_rows for rows in table.deletion_vectors()):
        found.append("deletion vectors")
    return found
