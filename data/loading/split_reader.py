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

from msrec.data.features.columns import Columns, Scalars
from msrec.data.io.parquet_files import parquet_files, parquet_metadata, read_row_group
from msrec.data.io.paths import AnyPath, first_line, is_remote, to_path
from msrec.data.loading.column_checks import ColumnChecks, Fault
from msrec.data.loading.quarantine import BAD, BadRow, Policy, Quarantine
from msrec.data.schema import Schema, Split

REMOTE_READERS = 8
"""Row groups of a remote file system that are requested at the same time."""


@dataclass(frozen=True)
class RowGroup:
    """One row group: its file, its number in the file, and its first row in the file."""

    path: AnyPath
    index: int
    first_row: int
    num_rows: int


class SplitReader:
    """The rows of a split, decoded on demand.

    Row groups are decoded whole and kept in a least-recently-used cache, because the rows of a
    window of batches come from few row groups.

    Args:
        dataset: the dataset folder.
        schema: of the dataset.
        split: "train", "valid" or "test".
        extra: float32 columns to read in addition to the schema's, such as `p_click`.
        only: columns of the schema to read; None reads all.
        cache_groups: number of decoded row groups to keep in memory.
        faults: policy for rows that break the schema; `quarantine` holds those that were found.
        paths: files to read instead of the split's.

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
        extra: Sequence[str] = (),
        only: Sequence[str] | None = None,
        cache_groups: int = 128,
        faults: Policy = "fail",
        paths: Sequence[AnyPath] | None = None,
    ) -> None:
        self.schema = schema
        self.columns = [*(schema.columns if only is None else only), *extra]
        self.quarantine = Quarantine(faults)
        self.metadata: dict[AnyPath, pq.FileMetaData] = {}
        """The footer of each file, read once."""
        self._checks = ColumnChecks(schema, self.columns[: len(self.columns) - len(extra)], extra)
        self._cache: OrderedDict[int, Columns] = OrderedDict()
        self._cache_groups = cache_groups
        self._type_errors: dict[AnyPath, str] = {}
        folder = to_path(dataset) / split
        paths = parquet_files(folder) if paths is None else paths
        if not paths:
            raise FileNotFoundError(f"{folder} must hold *.parquet files; it has none.")
        self.groups = [group for path in paths for group in self._open(path)]
        if not sum(group.num_rows for group in self.groups):
            raise ValueError(
                f"{paths[0].parent} must have at least one row; its {len(paths)} files are empty."
            )
        self.starts = np.concatenate([[0], np.cumsum([g.num_rows for g in self.groups])])

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
        bounds = zip(self.starts, self.starts[1:], strict=False)
        pieces = [self.take(np.arange(start, end)) for start, end in bounds]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def read_good(self) -> Columns:
        """Returns the columns of all rows except bad ones, in order."""
        columns = self.read()
        bad = columns.pop(BAD, None)
        return columns if bad is None else {name: v[~bad] for name, v in columns.items()}

    def take(self, row_ids: npt.NDArray[np.int64]) -> Columns:
        """Returns the columns of the given rows, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
            returns: per column an array of n values, or a list array for a multi-valued feature.
                If bad rows are excluded, also `BAD`, (n,) bool; their values are harmless.
        """
        group_of_row = np.searchsorted(self.starts, row_ids, side="right") - 1
        # Only the span from the first to the last wanted row of each group is copied.
        lowest, highest = self.starts[1:].copy(), np.full(len(self.groups), -1)
        np.minimum.at(lowest, group_of_row, row_ids)
        np.maximum.at(highest, group_of_row, row_ids)
        needed = np.flatnonzero(highest >= 0)
        pieces, shift = [], np.zeros(len(self.groups), dtype=np.int64)
        length = 0
        for group, columns in zip(needed, self._decoded(needed.tolist()), strict=True):
            first, last = (
                int(row - self.starts[group]) for row in (lowest[group], highest[group] + 1)
            )
            shift[group] = length - first - self.starts[group]
            length += last - first
            pieces.append({name: values[first:last] for name, values in columns.items()})
        place = row_ids + shift[group_of_row]
        return {name: _gather([piece[name] for piece in pieces], place) for name in pieces[0]}

    def places(self, row_ids: npt.NDArray[np.int64]) -> dict[str, list[int]]:
        """Returns the file of each row and its row number there, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
            returns: path below the dataset folder -> row numbers in that file.
        """
        found: dict[str, list[int]] = {}
        for row, number in zip(
            row_ids, np.searchsorted(self.starts, row_ids, "right"), strict=True
        ):
            group = self.groups[number - 1]
            file = f"{group.path.parent.name}/{group.path.name}"
            row_of_file = group.first_row + int(row - self.starts[number - 1])
            found.setdefault(file, []).append(row_of_file)
        return found

    def _open(self, path: AnyPath) -> list[RowGroup]:
        try:
            metadata = parquet_metadata(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{path} must be a whole Parquet file; {first_line(error)}. Convert it again."
            ) from None
        type_error = self._type_error(path, metadata.schema.to_arrow_schema())
        if type_error is not None:
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

    def _type_error(self, path: AnyPath, found: pa.Schema) -> str | None:
        return self._checks.type_error(found)

    def _decoded(self, numbers: list[int]) -> Iterator[Columns]:
        kept = {number: self._cache[number] for number in numbers if number in self._cache}
        missing = [self.groups[number] for number in numbers if number not in kept]
        # A request over a network is mostly waiting, which several can do at the same time.
        remote = bool(missing) and is_remote(missing[0].path)
        with ThreadPoolExecutor(REMOTE_READERS) if remote else nullcontext() as pool:
            fresh = pool.map(self._decode, missing) if pool else map(self._decode, missing)
            for number in numbers:
                columns = kept[number] if number in kept else next(fresh)
                self._cache[number] = columns
                self._cache.move_to_end(number)
                if len(self._cache) > self._cache_groups:
                    self._cache.popitem(last=False)
                yield columns

    def _decode(self, group: RowGroup) -> Columns:
        if group.path in self._type_errors:
            return self._unreadable(group, self._type_errors[group.path])
        try:
            table = read_row_group(group.path, group.index, self.columns, self.metadata[group.path])
        except (pa.ArrowInvalid, OSError) as error:
            # A network that fails is no fault of the data: its rows are not excluded.
            network = isinstance(error, ConnectionError | TimeoutError)
            if network or not self.quarantine.excludes:
                raise ValueError(
                    f"{group.path}: row group {group.index} could not be read; {first_line(error)}."
                ) from None
            return self._unreadable(group, first_line(error))
        columns: Columns = {}
        faults: dict[str, list[Fault]] = {}
        for name in self.columns:
            array = table.column(name).combine_chunks()
            columns[name], faults[name] = self._checks.check(array, name)
            if faults[name] and not self.quarantine.excludes:
                raise ValueError(_first_bad_row(group, name, faults[name][0]))
        if self.quarantine.excludes:
            self._record(group, faults)
            bad = np.zeros(group.num_rows, dtype=np.bool_)
            for fault in itertools.chain(*faults.values()):
                bad |= fault.bad
            columns[BAD] = bad
        return columns

    def _unreadable(self, group: RowGroup, reason: str) -> Columns:
        """Returns harmless values for a row group that cannot be read, all rows marked bad."""
        must = f"the row group must be readable; {reason}"
        count = group.num_rows
        if not self.quarantine.has(group.path, group.index):
            rows = range(group.first_row, group.first_row + count)
            self.quarantine.add(group.path, group.index, (BadRow(r, "", "", must) for r in rows))
        columns: Columns = {}
        for name, kind in self._checks.types.items():
            if pa.types.is_list(kind):
                columns[name] = pa.array([[]] * count, kind)
            else:
                columns[name] = np.zeros(count, kind.to_pandas_dtype())
        return columns | {BAD: np.ones(count, dtype=np.bool_)}

    def _record(self, group: RowGroup, faults: dict[str, list[Fault]]) -> None:
        if self.quarantine.has(group.path, group.index):
            return
        rows = [
            BadRow(group.first_row + int(at), name, str(fault.value_at(int(at))), fault.must)
            for name, of_column in faults.items()
            for fault in of_column
            for at in np.flatnonzero(fault.bad)
        ]
        if rows:
            self.quarantine.add(group.path, group.index, rows)


def _first_bad_row(group: RowGroup, name: str, fault: Fault) -> str:
    at = int(np.argmax(fault.bad))
    return (
        f"{group.path}: column {name!r}, row {group.first_row + at}: {fault.must}; found "
        f"{fault.value_at(at)}. {int(fault.bad.sum())} such rows in this row group."
    )


def _gather(
    pieces: list[Scalars | pa.ListArray], place: npt.NDArray[np.int64]
) -> Scalars | pa.ListArray:
    if isinstance(pieces[0], np.ndarray):
        return np.take(np.concatenate(pieces) if len(pieces) > 1 else pieces[0], place)
    return pa.concat_arrays(pieces).take(pa.array(place))
