"""Training rows that the histories of users show, as a whole or sorted for blocks of users."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.parquet_files import parquet_files, parquet_metadata, scan_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.text.history_text import check_columns
from msrec.data.schema import Schema

SORTED_GROUP = 16_384
"""Rows of a row group of the sorted rows: a block of users reads few that it does not need."""


def is_ordered(folder: AnyPath, schema: Schema) -> bool:
    """Returns whether the training rows have timestamps that are not all the same."""
    files = parquet_files(folder / "train")
    if schema.timestamp is None or not files:
        return False
    time = pl.col(schema.timestamp)
    first, last = scan_parquet(files).select(first=time.min(), last=time.max()).collect().row(0)
    return bool(first != last)


def training_files(folder: AnyPath) -> list[tuple[AnyPath, int]]:
    """Returns the files of the training rows, with the number of each one's first row.

    Raises:
        FileNotFoundError: there are no training rows.
    """
    files = parquet_files(folder / "train")
    if not files:
        raise FileNotFoundError(
            f"{folder / 'train'} must hold Parquet files; found none: convert the data set again."
        )
    starts, start = [], 0
    for file in files:
        starts.append(start)
        start += parquet_metadata(file).num_rows
    return list(zip(files, starts, strict=True))


def history_rows(
    folder: AnyPath, schema: Schema, num_items: int, files: Sequence[tuple[AnyPath, int]]
) -> pl.DataFrame:
    """Reads what histories need of the training rows in some files.

    Args:
        folder: dataset.
        schema: of the dataset.
        num_items: number of items.
        files: of `training_files`, one after another.

    Returns:
        Columns row (number among all), user, item, scenario, liked and time.

    Raises:
        ValueError: a column is missing, or an index is out of range.
    """
    ids, label = ["user", "item", "scenario"], schema.labels[0]
    for file, _ in files:
        check_columns(file, [*ids, label, *filter(None, [schema.timestamp])])
    time = pl.col(schema.timestamp) if schema.timestamp else pl.lit(0)
    rows = (
        scan_parquet(file for file, _ in files)
        .with_row_index("row", files[0][1])
        .select("row", *ids, liked=pl.col(label) > 0.5, time=time)
        .collect(engine="streaming")
    )
    sizes = (schema.num_users, num_items, schema.num_scenarios)
    for column, size in zip(ids, sizes, strict=True):
        outside = rows.filter(~pl.col(column).is_between(0, size - 1))
        if outside.height:
            raise ValueError(
                f"{folder / 'train'}: column {column!r} must be in [0, {size}); row "
                f"{outside['row'][0]} holds {outside[column][0]}: convert the data set again."
            )
    return rows


def write_sorted_rows(rows: pl.DataFrame, file: Path) -> None:
    """Writes rows of `history_rows` in the order of their users, for `sorted_rows`."""
    with atomic_path(file) as scratch:
        rows.sort("user", "row").write_parquet(scratch, row_group_size=SORTED_GROUP)


def sorted_rows(folder: Path, users: range) -> pl.DataFrame:
    """Reads the rows of some users from all files that `write_sorted_rows` wrote in a folder.

    Of each file it reads the row groups that may have them, by their statistics.
    """
    return scan_parquet(parquet_files(folder)).filter(is_of(users)).collect()


def is_of(users: range) -> pl.Expr:
    """Returns whether a row is one of some users."""
    return pl.col("user").is_between(users.start, users.stop, "left")
