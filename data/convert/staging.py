"""Interactions of a raw data set on disk: checked once, then read as often as needed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import SIDES, Chunk, RawTables, Side
from msrec.data.convert.row_filter import ROW, RowFilter
from msrec.data.convert.table_checks import check_type, checked_rows, require_columns
from msrec.data.features.value_index import ValueIndex

T = TypeVar("T", bound=np.generic)
CHUNK_ROWS = 1 << 20
LOOKUP_ROWS = 1 << 22
"""Keys looked up at a time; each lookup builds a hash table of all users or items."""


class StagedFile(NamedTuple):
    """A file of the stage with the rows [start, stop), which came from the file `location`."""

    path: Path
    location: str
    start: int
    stop: int


@dataclass(frozen=True)
class StagedRows:
    """Interactions in the order of the raw files, in a scratch folder.

    The arrays are memory-mapped, so that a data set may be larger than memory.

    Shape:
        user: (rows,), int32, row in `RawTables.users`.
        item: (rows,), int32, row in `RawTables.items`.
        scenario: (rows,), int16.
        timestamp: (rows,), int64, or None.
    """

    files: list[StagedFile]
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    scenario: npt.NDArray[np.int16]
    timestamp: npt.NDArray[np.int64] | None
    added: dict[str, int]
    """Number of `users` and `items` that only interactions name."""

    def __len__(self) -> int:
        return len(self.user)

    def positions(self, side: Side) -> npt.NDArray[np.int32]:
        """Returns the row of each interaction in the table of a side, (rows,)."""
        return self.user if side == "user" else self.item

    def chunks(self, columns: Sequence[str]) -> Iterator[tuple[slice, pl.DataFrame]]:
        """Yields rows of the stage, and some columns of the raw interactions for them."""
        for file in self.files:
            frame = pl.read_parquet(file.path, glob=False, columns=list(dict.fromkeys(columns)))
            yield slice(file.start, file.stop), frame

    def location(self, row: int) -> str:
        """Returns the raw file of a row of the stage, and its number in that file."""
        file = next(file for file in self.files if row < file.stop)
        raw_row = pl.read_parquet(file.path, glob=False, columns=[ROW])[ROW][row - file.start]
        return f"{file.location}: row {raw_row}"


def stage_interactions(
    raw: RawTables, folder: Path, row_filter: RowFilter, extra_columns: Sequence[str] = ()
) -> tuple[RawTables, StagedRows]:
    """Checks the interactions in chunks, writes them to `folder`, and looks up users and items.

    Args:
        raw: its chunks are read once.
        folder: an empty scratch folder; must outlive the stage.
        row_filter: decides what happens to a bad row.
        extra_columns: columns of the interactions to keep in addition to those of the schema.

    Returns:
        `raw` without interactions, and with the users and items that only interactions name if its
        `unknown_keys` is "add"; and the stage.

    Raises:
        ValueError: a row is bad (see `checked_rows`), no row is left, or the type of a key differs
            from that in its table.
    """
    files = list(_write_chunks(raw, folder, row_filter, extra_columns))
    num_rows = files[-1].stop if files else 0
    require_interactions(num_rows, raw.location("interaction"))
    known = {side: raw.table(side).height for side in SIDES}
    if raw.unknown_keys == "add":
        raw = _with_named_keys(raw, [file.path for file in files])
    raw = dataclasses.replace(raw, interactions=())
    stage = StagedRows(
        files,
        user=_look_up(files, raw.users["user_key"], folder),
        item=_look_up(files, raw.items["item_key"], folder),
        scenario=_array(folder, "scenario", np.int16, num_rows),
        timestamp=_array(folder, "timestamp", np.int64, num_rows) if raw.timestamp else None,
        added={f"{side}s": raw.table(side).height - known[side] for side in SIDES},
    )
    for rows, frame in stage.chunks(["scenario", *([raw.timestamp] if raw.timestamp else [])]):
        stage.scenario[rows] = frame["scenario"].to_numpy()
        if raw.timestamp and stage.timestamp is not None:
            stage.timestamp[rows] = frame[raw.timestamp].to_numpy()
    return raw, stage


def require_interactions(num_rows: int, location: str) -> None:
    """Refuses a data set without interactions."""
    if not num_rows:
        raise ValueError(f"{location} must hold interactions; none of its rows is left.")


def _write_chunks(
    raw: RawTables, folder: Path, row_filter: RowFilter, extra_columns: Sequence[str]
) -> Iterator[StagedFile]:
    start = number = 0
    for chunk in raw.chunks():
        rows = staged_rows(raw, chunk, row_filter, extra_columns)
        for piece in rows.iter_slices(CHUNK_ROWS):
            path = folder / f"rows-{number:06d}.parquet"
            piece.write_parquet(path, compression="lz4", statistics=False)
            yield StagedFile(path, chunk.location, start, start + piece.height)
            start, number = start + piece.height, number + 1


def staged_rows(
    raw: RawTables,
    chunk: Chunk,
    row_filter: RowFilter,
    extra_columns: Sequence[str],
    keys: Mapping[Side, ValueIndex] | None = None,
) -> pl.DataFrame:
    """Checks the rows of a chunk; returns the good ones with the columns and types of a stage.

    With `keys`, the indices of the keys of users and items, the columns `user` and `item` have
    their positions.

    Raises:
        ValueError: see `checked_rows`; or the type of a key differs from that in its table.
    """
    location, frame = chunk
    features = [feature.raw_column for feature in raw.interaction_features]
    columns = ["user_key", "item_key", "scenario", *raw.copied_columns, *features]
    columns = list(dict.fromkeys([*columns, *extra_columns, ROW]))
    types: dict[Any, Any] = {"scenario": pl.Int16}
    types |= dict.fromkeys([*raw.labels, *raw.weights], pl.Float32)
    types |= {name: pl.Int64 for name in (raw.timestamp, raw.impression) if name}
    if ROW not in frame.columns:
        frame = frame.with_row_index(ROW)
    require_columns(frame.columns, extra_columns, location)
    for column in extra_columns:
        check_type(frame[column], "split", location)
    frame = checked_rows(raw, Chunk(location, frame), row_filter)
    for side in SIDES:
        index = None if keys is None else keys[side]
        frame = _with_known_keys(raw, frame, side, location, row_filter, index)
    return frame.select(columns if keys is None else [*columns, *SIDES]).cast(types)


def _with_known_keys(
    raw: RawTables,
    frame: pl.DataFrame,
    side: Side,
    location: str,
    row_filter: RowFilter,
    index: ValueIndex | None,
) -> pl.DataFrame:
    key = f"{side}_key"
    known = raw.table(side)[key]
    if frame[key].dtype != known.dtype:
        raise ValueError(
            f"{location}: column {key!r} must have the type it has in {raw.location(side)}, "
            f"{known.dtype}; found {frame[key].dtype}. Convert one of them."
        )
    if raw.unknown_keys == "add":
        return frame
    is_known, must = pl.col(key).is_in(known.implode()), f"hold only keys of {raw.location(side)}"
    if index is not None:
        frame = frame.with_columns(pl.Series(side, index.positions(frame[key].to_arrow())))
        is_known = pl.col(side) >= 0
    advice = f"Add them to {side}s or drop the rows."
    return row_filter.keep(frame, key, is_known, location, must, advice)


def _with_named_keys(raw: RawTables, paths: list[Path]) -> RawTables:
    """Adds a row for each key that only interactions name; it has nothing but the key."""
    grown: dict[str, Any] = {}
    for side in SIDES:
        key, table = f"{side}_key", raw.table(side)
        keys = pl.scan_parquet(paths, glob=False).select(pl.col(key).unique())
        named = keys.collect(engine="streaming")
        new = named.join(table.select(key), on=key, how="anti").sort(key)
        grown[f"{side}s"] = pl.concat([table, new], how="diagonal")
    return dataclasses.replace(raw, **grown)


def _look_up(files: list[StagedFile], keys: pl.Series, folder: Path) -> npt.NDArray[np.int32]:
    """Returns the position of each row's key among `keys`."""
    positions = _array(folder, keys.name, np.int32, files[-1].stop)
    numbers = pl.Series(np.arange(len(keys), dtype=np.int32))
    waiting: list[StagedFile] = []
    for file in files:
        waiting.append(file)
        start, stop = waiting[0].start, file.stop
        if stop - start >= LOOKUP_ROWS or file is files[-1]:
            paths = [f.path for f in waiting]
            rows = pl.read_parquet(paths, glob=False, columns=[keys.name])[keys.name]
            positions[start:stop] = rows.replace_strict(keys, numbers, return_dtype=pl.Int32)
            waiting = []
    return positions


def _array(folder: Path, name: str, kind: type[T], rows: int) -> npt.NDArray[T]:
    path = folder / f"{name}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(rows,))
