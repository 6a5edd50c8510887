"""Reads the Parquet files of a split by row id, and checks them against the schema."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.features.columns import Columns, Scalars, is_list
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.value_counts import Counts
from msrec.data.io.parquet_files import REMOTE_READERS, footers, parquet_files, read_row_group
from msrec.data.io.paths import AnyPath, first_line, is_remote, to_path
from msrec.data.loading.column_checks import ColumnChecks, Fault
from msrec.data.loading.quarantine import BAD, BadRow, Policy, Quarantine
from msrec.data.schema import Schema, Split

CACHED_GROUPS = 128
"""Decoded row groups that a reader keeps in memory."""


@dataclass(frozen=True)
class RowGroup:
    """A row group: its file, its number in the file, and its first row in the file."""

    path: AnyPath
    index: int
    first_row: int
    num_rows: int


class SplitReader:
    """The rows of a split, decoded on demand.

    Row groups are decoded whole and kept in a least-recently-used cache, because the rows of a
    window of batches come from few row groups, and so do those of the next window.

    Args:
        dataset: the dataset folder.
        schema: of the dataset.
        split: "train", "valid" or "test".
        columns: columns to read; None reads those of the schema. A column that the schema does not
            know, such as `p_click`, must be float32.
        faults: policy for rows that break the schema; `quarantine` holds the bad rows.
        paths: files to read instead of the split's.
        encoder: encodes the rows of files that hold raw values; it refuses bad values itself.

    Raises:
        FileNotFoundError: the split has no files.
        ValueError: a file is not readable Parquet, or the split has no rows. With `faults="fail"`
            also: a file lacks a column or has one of another type, or (while reading) a row group
            cannot be read or a value breaks the schema.
    """

    def __init__(
        self,
        dataset: AnyPath | str,
        schema: Schema,
        split: Split,
        columns: Sequence[str] | None = None,
        faults: Policy = "fail",
        paths: Sequence[AnyPath] | None = None,
        encoder: RowEncoder | None = None,
    ) -> None:
        self.columns = list(schema.columns if columns is None else columns)
        self.quarantine = Quarantine(faults)
        self.metadata: dict[AnyPath, pq.FileMetaData] = {}
        """The footer of each file, read once."""
        self.counts: dict[tuple[str, int], Counts] = {}
        """(file, number of the row group) -> counts of its raw values."""
        self._checks, self._encoder = ColumnChecks(schema, self.columns), encoder
        self._cache: OrderedDict[int, Columns] = OrderedDict()
        self._cache_groups = CACHED_GROUPS
        self._type_errors: dict[AnyPath, str] = {}
        folder = to_path(dataset) / split
        paths = parquet_files(folder) if paths is None else paths
        if not paths:
            raise FileNotFoundError(f"{folder} must hold *.parquet files; it has none.")
        opened = map(self._open, paths, footers(paths))
        self.groups = [group for groups in opened for group in groups]
        if not self.groups:
            raise ValueError(
                f"{paths[0].parent} must have at least one row; its {len(paths)} files are empty."
            )
        self.starts = np.concatenate([[0], np.cumsum(self.group_rows)])
        """(row groups + 1,), first row id of each row group."""

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return int(self.starts[-1])

    @property
    def group_rows(self) -> tuple[int, ...]:
        """Rows of each row group, in file order."""
        return tuple(group.num_rows for group in self.groups)

    def read(self) -> Columns:
        """Returns the columns of all rows, in order; none may be a multi-valued feature."""
        groups = list(self._decoded(list(range(len(self.groups)))))
        return {name: np.concatenate([columns[name] for columns in groups]) for name in groups[0]}

    def good_groups(self) -> Iterator[Columns]:
        """Yields the columns of each row group, in order, without bad rows."""
        for group in range(len(self.groups)):
            [columns] = self._decoded([group])
            bad = columns.get(BAD)
            good = slice(None) if bad is None else ~bad
            yield {name: v[good] for name, v in columns.items() if name != BAD}

    def read_good(self) -> Columns:
        """Returns the columns of all rows except bad ones, in order."""
        groups = list(self.good_groups())
        return {name: np.concatenate([columns[name] for columns in groups]) for name in groups[0]}

    def take(self, row_ids: npt.NDArray[np.int64]) -> Columns:
        """Returns the columns of the given rows, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
            returns: per column an array of n values, or a list array for a multi-valued feature.
                If bad rows are excluded, also `BAD`, (n,) bool; their values are harmless.
        """
        # A window often needs only a part of a row group. So each group is cut to the span from its
        # first to its last row in `row_ids`, the spans are joined, and all rows are taken from the
        # joined columns at once: position = row id + shift of the row's group.
        #
        #     groups   |....[===]....|[=====]......|....[==]|
        #     joined   [===][=====][==]
        group_of_row = np.searchsorted(self.starts, row_ids, side="right") - 1
        first, last = self.starts[1:].copy(), np.full(len(self.groups), -1)
        np.minimum.at(first, group_of_row, row_ids)
        np.maximum.at(last, group_of_row, row_ids)
        needed = np.flatnonzero(last >= 0)
        shift = np.zeros(len(self.groups), dtype=np.int64)
        spans, length = [], 0
        for group, columns in zip(needed, self._decoded(needed.tolist()), strict=True):
            start, end = first[group] - self.starts[group], last[group] + 1 - self.starts[group]
            shift[group] = length - first[group]
            length += end - start
            spans.append({name: values[start:end] for name, values in columns.items()})
        positions = row_ids + shift[group_of_row]
        return {name: _gathered([span[name] for span in spans], positions) for name in spans[0]}

    def file_rows(self, row_ids: npt.NDArray[np.int64]) -> dict[str, list[int]]:
        """Returns the file of each row and its row number there, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
            returns: path below the dataset folder -> row numbers in that file.
        """
        rows_of: dict[str, list[int]] = {}
        numbers = np.searchsorted(self.starts, row_ids, side="right") - 1
        for row, number in zip(row_ids, numbers, strict=True):
            group = self.groups[number]
            file = f"{group.path.parent.name}/{group.path.name}"
            row_of_file = group.first_row + int(row - self.starts[number])
            rows_of.setdefault(file, []).append(row_of_file)
        return rows_of

    def _open(self, path: AnyPath, metadata: pq.FileMetaData) -> list[RowGroup]:
        """Checks the types in the footer of a file, and returns its row groups with rows."""
        types = metadata.schema.to_arrow_schema()
        if self._encoder is not None:
            self._encoder.require(types.names, str(path))
        elif type_error := self._checks.type_error(types):
            if not self.quarantine.excludes:
                raise ValueError(f"{path}: {type_error}")
            self._type_errors[path] = type_error.rstrip(".")
        self.metadata[path] = metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        first_rows = itertools.accumulate(sizes, initial=0)
        return [
            RowGroup(path, index, first_row, num_rows)
            for index, (first_row, num_rows) in enumerate(zip(first_rows, sizes, strict=False))
            if num_rows
        ]

    def _decoded(self, numbers: list[int]) -> Iterator[Columns]:
        """Yields the columns of row groups, from the cache where they are in it."""
        # What the cache holds is taken out first: adding a group may evict one that comes later.
        cached = {number: self._cache[number] for number in numbers if number in self._cache}
        missing = [self.groups[number] for number in numbers if number not in cached]
        # A request over a network is mostly waiting, which several can do at the same time.
        remote = bool(missing) and is_remote(missing[0].path)
        with ThreadPoolExecutor(REMOTE_READERS) if remote else nullcontext() as pool:
            decoded = pool.map(self._decode, missing) if pool else map(self._decode, missing)
            for number in numbers:
                columns = cached[number] if number in cached else next(decoded)
                self._cache[number] = columns
                self._cache.move_to_end(number)
                if len(self._cache) > self._cache_groups:
                    self._cache.popitem(last=False)
                yield columns

    def _decode(self, group: RowGroup) -> Columns:
        """Reads the columns of a row group."""
        if group.path in self._type_errors:
            return self._unreadable(group, self._type_errors[group.path])
        metadata, names = self.metadata[group.path], self.columns
        if self._encoder is not None:
            names = self._encoder.columns_of(metadata.schema.to_arrow_schema().names)
        try:
            table = read_row_group(group.path, group.index, names, metadata)
        except (pa.ArrowInvalid, OSError) as error:
            # A network that fails is no fault of the data: its rows are not excluded.
            network = isinstance(error, ConnectionError | TimeoutError)
            if network or not self.quarantine.excludes:
                raise ValueError(
                    f"{group.path}: row group {group.index} could not be read; {first_line(error)}."
                ) from None
            return self._unreadable(group, first_line(error))
        if self._encoder is not None:
            where = str(group.path)
            encoded, counts = self._encoder.encode_counted(table, where, group.first_row)
            self.counts[where, group.index] = counts
            return {name: encoded[name] for name in self.columns}
        return self._checked(group, table)

    def _checked(self, group: RowGroup, table: pa.Table) -> Columns:
        """Checks the columns of a row group, and records its bad rows."""
        columns: Columns = {}
        faults: list[tuple[str, Fault]] = []
        for name in self.columns:
            columns[name], of_column = self._checks.check(table[name].combine_chunks(), name)
            faults += [(name, fault) for fault in of_column]
        if not self.quarantine.excludes:
            for bad in _bad_rows(group, faults):
                count = int(faults[0][1].bad.sum())
                raise ValueError(
                    f"{group.path}: column {bad.column!r}, row {bad.row}: {bad.must}; found "
                    f"{bad.found}. {count} such rows in this row group."
                )
            return columns
        self.quarantine.add(group.path, group.index, _bad_rows(group, faults))
        columns[BAD] = np.zeros(group.num_rows, dtype=np.bool_)
        for _, fault in faults:
            columns[BAD] |= fault.bad
        return columns

    def _unreadable(self, group: RowGroup, reason: str) -> Columns:
        """Returns harmless values for a row group that cannot be read, all rows marked bad."""
        must = f"the row group must be readable; {reason}"
        count = group.num_rows
        rows = range(group.first_row, group.first_row + count)
        self.quarantine.add(group.path, group.index, (BadRow(row, "", "", must) for row in rows))
        columns: Columns = {
            name: pa.array([[]] * count, kind)
            if is_list(kind)
            else np.zeros(count, kind.to_pandas_dtype())
            for name, kind in self._checks.types.items()
        }
        return columns | {BAD: np.ones(count, dtype=np.bool_)}


def _bad_rows(group: RowGroup, faults: list[tuple[str, Fault]]) -> Iterator[BadRow]:
    for name, fault in faults:
        for at in np.flatnonzero(fault.bad).tolist():
            yield BadRow(group.first_row + at, name, str(fault.value_at(at)), fault.must)


def _gathered(
    spans: list[Scalars | pa.ListArray], positions: npt.NDArray[np.int64]
) -> Scalars | pa.ListArray:
    if isinstance(spans[0], np.ndarray):
        return np.take(np.concatenate(spans) if len(spans) > 1 else spans[0], positions)
    return pa.concat_arrays(spans).take(pa.array(positions))
