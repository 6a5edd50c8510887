"""The interactions of a raw data set on disk: checked once, then read as often as needed."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import RawTables, checked_chunk, require_columns
from msrec.data.convert.row_filter import ROW, RowFilter

T = TypeVar("T", bound=np.generic)
CHUNK_ROWS = 1 << 20
LOOKUP_ROWS = 1 << 22
"""Keys looked up at a time: each lookup builds a hash table of all users or items anew."""


class Part(NamedTuple):
    """One file of the stage: rows `start` to `start + rows`, which came from file `where`."""

    path: Path
    where: str
    start: int
    rows: int


@dataclass(frozen=True)
class StagedRows:
    """Interactions in the order of the raw files, in a scratch folder.

    The arrays are memory-mapped, so that a data set may be larger than memory: their pages can be
    dropped, and what is computed from them is computed a chunk, or one share of the users, at a
    time.

    Shape:
        user: (rows,), int32, row in `RawTables.users`.
        item: (rows,), int32, row in `RawTables.items`.
        scenario: (rows,), int16.
        timestamp: (rows,), int64, or None.
    """

    parts: list[Part]
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    scenario: npt.NDArray[np.int16]
    timestamp: npt.NDArray[np.int64] | None
    added: dict[str, int]
    """Users and items that only interactions name."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.user)

    def chunks(self, columns: Sequence[str]) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Which rows, and some columns of the raw interactions for them."""
        for part in self.parts:
            rows = slice(part.start, part.start + part.rows)
            yield rows, pl.read_parquet(part.path, columns=list(dict.fromkeys(columns)))

    def place(self, row: int) -> str:
        """File and row in it of a row of the stage, for a sentence about it."""
        part = next(p for p in self.parts if row < p.start + p.rows)
        found = pl.read_parquet(part.path, columns=[ROW])[ROW][row - part.start]
        return f"{part.where}: row {found}"


def stage_interactions(
    raw: RawTables, folder: Path, faults: RowFilter, extra: Sequence[str] = ()
) -> tuple[RawTables, StagedRows]:
    """Check the interactions chunk by chunk, keep them in `folder`, and find their users and items.

    Args:
        raw: its chunks are read, once.
        folder: an empty scratch folder; must outlive the stage.
        faults: decides what happens to a bad row.
        extra: columns of the interactions to keep beside those of the schema.

    Returns:
        `raw` without interactions and with the users and items that only interactions name, where
        it asks for them; and the stage.

    Raises:
        ValueError: a row is bad (see `checked_chunk`), no row is left, or a key has another type
            than in its table.
    """
    parts = list(_parts(raw, folder, faults, extra))
    rows = sum(part.rows for part in parts)
    if not rows:
        raise ValueError(
            f"{raw.where('interactions')} must hold interactions; none of its rows is left."
        )
    known = {table: len(getattr(raw, table)) for table in ("users", "items")}
    if raw.unknown_keys == "add":
        raw = _with_named_keys(raw, [part.path for part in parts])
    raw = dataclasses.replace(raw, interactions=())
    added = {table: len(getattr(raw, table)) - rows for table, rows in known.items()}
    user = _positions(parts, rows, raw.users["user_key"], folder)
    item = _positions(parts, rows, raw.items["item_key"], folder)
    scenario = _array(folder, "scenario", np.int16, rows)
    timestamp = _array(folder, "timestamp", np.int64, rows) if raw.timestamp else None
    stage = StagedRows(parts, user, item, scenario, timestamp, added)
    columns = ["scenario", *([raw.timestamp] if raw.timestamp else [])]
    for at, frame in stage.chunks(columns):
        scenario[at] = frame["scenario"].to_numpy()
        if timestamp is not None:
            timestamp[at] = frame[columns[1]].to_numpy()
    return raw, stage


def _parts(raw: RawTables, folder: Path, faults: RowFilter, extra: Sequence[str]) -> Iterator[Part]:
    features = [feature.source for feature in raw.interaction_features]
    stamp = [raw.timestamp] if raw.timestamp else []
    columns = ["user_key", "item_key", "scenario", *raw.labels, *stamp, *features, *extra, ROW]
    start = number = 0
    for chunk in raw.chunks():
        frame = chunk.frame
        if ROW not in frame.columns:
            frame = frame.with_row_index(ROW)
        require_columns(frame, list(extra), chunk.where)
        frame = checked_chunk(raw, chunk._replace(frame=frame), faults)
        for key, table in (("user_key", "users"), ("item_key", "items")):
            frame = _known(raw, frame, key, table, chunk.where, faults)
        types: dict[str, Any] = {"scenario": pl.Int16} | dict.fromkeys(stamp, pl.Int64)
        types |= dict.fromkeys(raw.labels, pl.Float32)
        for piece in frame.select(list(dict.fromkeys(columns))).cast(types).iter_slices(CHUNK_ROWS):  # type: ignore[arg-type]
            path = folder / f"rows-{number:06d}.parquet"
            piece.write_parquet(path, compression="lz4", statistics=False)
            yield Part(path, chunk.where, start, piece.height)
            start, number = start + piece.height, number + 1


def _known(
    raw: RawTables, frame: pl.DataFrame, key: str, table: str, where: str, faults: RowFilter
) -> pl.DataFrame:
    keys, known = frame[key], getattr(raw, table)[key]
    if keys.dtype != known.dtype:
        raise ValueError(
            f"{where}: column {key!r} must have the type it has in {raw.where(table)}, "
            f"{known.dtype}; found {keys.dtype}."
        )
    if raw.unknown_keys == "add":
        return frame
    must = f"hold only keys of {raw.where(table)}"
    advice = f"Add them to {table} or drop the rows."
    return faults.keep(frame, ~keys.is_in(known.implode()), keys, where, must, advice)


def _with_named_keys(raw: RawTables, paths: list[Path]) -> RawTables:
    """Tables with a row for every key that interactions name; a new one has nothing but its key."""
    grown: dict[str, Any] = {}
    for table, key in (("users", "user_key"), ("items", "item_key")):
        known: pl.DataFrame = getattr(raw, table)
        named = pl.scan_parquet(paths).select(pl.col(key).unique()).collect(engine="streaming")
        new = named.join(known.select(key), on=key, how="anti").sort(key)
        grown[table] = pl.concat([known, new], how="diagonal")
    return dataclasses.replace(raw, **grown)


def _positions(
    parts: list[Part], rows: int, table: pl.Series, folder: Path
) -> npt.NDArray[np.int32]:
    """Each row's position in the table of its key."""
    found = _array(folder, table.name, np.int32, rows)
    numbers = pl.Series(np.arange(len(table), dtype=np.int32))
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part)
        start, end = waiting[0].start, part.start + part.rows
        if end - start >= LOOKUP_ROWS or part is parts[-1]:
            keys = pl.read_parquet([p.path for p in waiting], columns=[table.name])[table.name]
            found[start:end] = keys.replace_strict(table, numbers, return_dtype=pl.Int32)
            waiting = []
    return found


def _array(folder: Path, name: str, kind: type[T], rows: int) -> npt.NDArray[T]:
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(rows,))
