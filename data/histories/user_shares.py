"""The rows of a dataset by shares of its users, so that all rows need not fit into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.convert.parts.exchange import read_batches, write_exchange
from msrec.data.convert.raw_tables import Progress
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import SPLITS, EventOrder, Schema

SHARE_ROWS = 1 << 22
"""Rows of a share; with more only if a single user has more."""


class UserRows(NamedTuple):
    """The rows of some users, in the order of the files, train first.

    Shape:
        number: (n,), int64, numbers of the rows among those of all splits.
        user, items, scenarios: (n,), int32.
        labels: (n,), uint8.
        times: (n,), int64.
        is_good: (n,), bool, false for rows that are excluded.
    """

    number: npt.NDArray[np.int64]
    user: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    scenarios: npt.NDArray[np.int32]
    labels: npt.NDArray[np.uint8]
    times: npt.NDArray[np.int64]
    is_good: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class UserShares:
    """The rows of all splits, in files with a batch for each share of the users.

    Shape:
        users: (shares + 1,), int64; share s has the users [users[s], users[s + 1]).
        starts: (4,), int64, first row of each split, then the number of rows.
        good: (3, 2), int64, rows of each split that are not excluded, by whether the label is 1.
    """

    files: Sequence[Path]
    users: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    good: npt.NDArray[np.int64]

    def __iter__(self) -> Iterator[tuple[int, int, UserRows]]:
        """Yields the first user of each share, one past its last, and its rows."""
        for share, (first, stop) in enumerate(pairwise(self.users.tolist())):
            tables = list(read_batches(self.files, share))
            columns = (
                np.concatenate([table[name].to_numpy() for table in tables])
                for name in UserRows._fields
            )
            yield first, stop, UserRows(*columns)


def write_user_shares(
    dataset: Path,
    schema: Schema,
    order: EventOrder,
    faults: Policy,
    folder: Path,
    progress: Progress,
) -> UserShares:
    """Reads all splits, one row group at a time, and writes their rows to files of the folder.

    Raises:
        FileNotFoundError: a split does not exist.
        ValueError: a row breaks the schema.
    """
    clock = schema.timestamp if order == "timestamp" else None
    names = ["user", "item", "scenario", schema.labels[0], *([clock] if clock else [])]
    if faults != "fail":
        names = schema.columns  # a fault in any column excludes a row
    readers = [SplitReader(dataset, schema, split, names, faults) for split in SPLITS]
    starts = np.cumsum([0, *(reader.num_rows for reader in readers)])
    users = _share_users(dataset, schema, faults)
    good = np.zeros((len(SPLITS), 2), np.int64)
    files: list[Path] = []
    waiting: list[UserRows] = []
    for code, (reader, start) in enumerate(zip(readers, starts, strict=False)):
        for first, count in zip(reader.starts, reader.group_rows, strict=False):
            columns = reader.take(np.arange(first, first + count))
            number = start + first + np.arange(count)
            is_good = ~columns[BAD] if BAD in columns else np.ones(count, np.bool_)
            labels = columns[schema.labels[0]].astype(np.uint8)
            times = columns[clock].astype(np.int64) if clock else number
            user, item, scenario = (
                columns[name].astype(np.int32) for name in ("user", "item", "scenario")
            )
            waiting.append(UserRows(number, user, item, scenario, labels, times, is_good))
            good[code] += np.bincount(labels[is_good] == 1, minlength=2)
            progress("reading", int(number[-1]) + 1, int(starts[-1]))
            is_last = number[-1] + 1 == starts[-1]
            if is_last or sum(len(rows.number) for rows in waiting) >= SHARE_ROWS:
                files.append(folder / f"rows-{len(files):05d}.arrow")
                _write(files[-1], waiting, users)
                waiting.clear()
    return UserShares(files, users, starts, good)


def _share_users(dataset: AnyPath, schema: Schema, faults: Policy) -> npt.NDArray[np.int64]:
    """Returns the first user of each share, then the number of users."""
    rows = np.zeros(schema.num_users, np.int64)
    for split in SPLITS:
        reader = SplitReader(dataset, schema, split, ["user"], faults)
        for first, count in zip(reader.starts, reader.group_rows, strict=False):
            user = reader.take(np.arange(first, first + count))["user"]
            rows += np.bincount(user, minlength=schema.num_users)
    share = (np.cumsum(rows) - rows) // SHARE_ROWS
    return np.append(np.flatnonzero(np.diff(share, prepend=-1)), schema.num_users)


def _write(path: Path, groups: Sequence[UserRows], users: npt.NDArray[np.int64]) -> None:
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate(parts)
        for name, parts in zip(UserRows._fields, zip(*groups, strict=True), strict=True)
    }
    share = np.searchsorted(users, columns["user"], side="right") - 1
    write_exchange(path, pa.table(columns), share, len(users) - 1)
