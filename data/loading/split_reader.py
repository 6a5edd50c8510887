"""Read and check the Parquet files of a split: row ids -> columns."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.parquet_files import parquet_files, parquet_metadata, read_row_group
from msrec.data.io.paths import AnyPath, first_line, is_remote, to_path
from msrec.data.loading.quarantine import BAD, BadRow, BadRows, Policy, without
from msrec.data.schema import Schema, Split

REMOTE_READERS = 8
"""Row groups that are asked for at the same time."""
Scalars = npt.NDArray[np.generic]
Fault = tuple[npt.NDArray[np.bool_], Any, str]
"""Which rows, what was found in all rows, and what must hold."""
NO_NULL = "nothing may be null"
Columns = dict[str, Any]
"""Name -> `Scalars`, or a `pa.ListArray` of a multi-valued feature: the schema says which."""


@dataclass(frozen=True)
class RowGroup:
    """One row group: the file it is in, its number and its first row there."""

    path: AnyPath
    index: int
    first_row: int
    num_rows: int


class SplitFiles:
    """The row groups of one split, checked against the schema, decoded on demand.

    Args:
        dataset: the dataset folder.
        schema: its schema.
        split: "train", "valid" or "test".
        extra: float32 columns to read beside the schema's, such as `p_click`.
        only: columns of the schema to read instead of all.
        cache_groups: decoded row groups kept in memory.
        faults: what to do with rows that break the schema; `bad_rows` says which were met.
        paths: files to read instead of the split's.

    Raises:
        FileNotFoundError: the split has no files.
        ValueError: a file is not readable Parquet, or the split has no rows. Besides, unless bad
            rows are left out: a file lacks a column or has one of another type, or (while reading)
            a row group cannot be read or a value breaks the schema.
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
        self._extra = tuple(extra)
        self._cache: OrderedDict[int, Columns] = OrderedDict()
        self._cache_groups = cache_groups
        self._types = self._wanted_types()
        self.bad_rows = BadRows(faults)
        self.metadata: dict[AnyPath, pq.FileMetaData] = {}
        """The footer of each file, read once."""
        self._drifted: dict[AnyPath, str] = {}
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
        """Columns of all rows, in order; none may be a multi-valued feature."""
        bounds = zip(self.starts, self.starts[1:], strict=False)
        pieces = [self.take(np.arange(start, end)) for start, end in bounds]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def read_good(self) -> Columns:
        """Columns of all rows but bad ones, in order."""
        columns = self.read()
        bad = columns.pop(BAD, None)
        return columns if bad is None else {name: v[~bad] for name, v in columns.items()}

    def take(self, row_ids: npt.NDArray[np.int64]) -> Columns:
        """Columns of the given rows, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
            returns: per column an array of n values, or a list array for a multi-valued feature.
                Where bad rows are left out, besides `BAD`, (n,) bool; their values are harmless.
        """
        group_of_row = np.searchsorted(self.starts, row_ids, side="right") - 1
        # The first and the last row of each group that is asked for.
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
        """Where rows are: file, below the data set's folder -> its rows, in the given order.

        Shape:
            row_ids: (n,), int64 in [0, num_rows).
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
        try:
            self._check_types(path, metadata.schema.to_arrow_schema())
        except ValueError as error:
            if not self.bad_rows.leaves_out:
                raise
            self._drifted[path] = str(error).removeprefix(f"{path}: ").rstrip(".")
        self.metadata[path] = metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        first_rows = itertools.accumulate(sizes, initial=0)
        return [
            RowGroup(path, index, first_row, num_rows)
            for index, (first_row, num_rows) in enumerate(zip(first_rows, sizes, strict=False))
            if num_rows
        ]

    def _check_types(self, path: AnyPath, found: pa.Schema) -> None:
        for name, wanted in self._types.items():
            if name not in found.names:
                raise ValueError(
                    f"{path}: column {name!r} is missing; it has {', '.join(found.names)}."
                )
            actual = found.field(name).type
            if not _same_type(actual, wanted):
                raise ValueError(f"{path}: column {name!r} must be {wanted}; it is {actual}.")

    def _wanted_types(self) -> dict[str, pa.DataType]:
        schema = self.schema
        types = dict.fromkeys(("user", "item", "scenario"), pa.int32())
        for feature in schema.sparse:
            types[feature.name] = pa.list_(pa.int32()) if feature.multi else pa.int32()
        types |= dict.fromkeys([*schema.dense, *schema.labels, *self._extra], pa.float32())
        types |= {schema.timestamp: pa.int64()} if schema.timestamp else {}
        return {name: types[name] for name in self.columns}

    def _decoded(self, numbers: list[int]) -> Iterator[Columns]:
        kept = {number: self._cache[number] for number in numbers if number in self._cache}
        missing = [self.groups[number] for number in numbers if number not in kept]
        # A request over a network is mostly waiting, which several can do at the same time.
        remote = bool(missing) and is_remote(missing[0].path)
        with ThreadPoolExecutor(REMOTE_READERS) if remote else nullcontext() as pool:
            fresh = pool.map(self._columns, missing) if pool else map(self._columns, missing)
            for number in numbers:
                columns = kept[number] if number in kept else next(fresh)
                self._cache[number] = columns
                self._cache.move_to_end(number)
                if len(self._cache) > self._cache_groups:
                    self._cache.popitem(last=False)
                yield columns

    def _columns(self, group: RowGroup) -> Columns:
        if group.path in self._drifted:
            return self._nothing(group, self._drifted[group.path])
        try:
            table = read_row_group(group.path, group.index, self.columns, self.metadata[group.path])
        except (pa.ArrowInvalid, OSError) as error:
            # A network that fails is no fault of the data: its rows are not left out.
            network = isinstance(error, ConnectionError | TimeoutError)
            if network or not self.bad_rows.leaves_out:
                raise ValueError(
                    f"{group.path}: row group {group.index} could not be read; {first_line(error)}."
                ) from None
            return self._nothing(group, first_line(error))
        found = {
            name: self._checked(table.column(name).combine_chunks(), name, group)
            for name in self.columns
        }
        columns: Columns = {name: values for name, (values, _) in found.items()}
        if self.bad_rows.leaves_out:
            self._note(group, {name: faults for name, (_, faults) in found.items()})
            bad = np.zeros(group.num_rows, dtype=np.bool_)
            for _, faults in found.values():
                for mask, _, _ in faults:
                    bad |= mask
            columns[BAD] = bad
        return columns

    def _nothing(self, group: RowGroup, reason: str) -> Columns:
        """Harmless values for a row group of which nothing can be read."""
        must = f"the row group must be readable; {reason}"
        count = group.num_rows
        if not self.bad_rows.is_noted(group.path, group.index):
            rows = range(group.first_row, group.first_row + count)
            self.bad_rows.note(group.path, group.index, (BadRow(r, "", "", must) for r in rows))
        columns: Columns = {}
        for name, kind in self._types.items():
            if pa.types.is_list(kind):
                columns[name] = pa.array([[]] * count, kind)
            else:
                columns[name] = np.zeros(count, kind.to_pandas_dtype())
        return columns | {BAD: np.ones(count, dtype=np.bool_)}

    def _note(self, group: RowGroup, faults: "dict[str, list[Fault]]") -> None:
        if self.bad_rows.is_noted(group.path, group.index):
            return
        rows = [
            BadRow(group.first_row + int(at), name, str(values[at]), must)
            for name, found in faults.items()
            for mask, values, must in found
            for at in np.flatnonzero(mask)
        ]
        if rows:
            self.bad_rows.note(group.path, group.index, rows)

    def _checked(
        self, array: pa.Array, name: str, group: RowGroup
    ) -> "tuple[Scalars | pa.ListArray, list[Fault]]":
        """The values of a column, after every check that TorchRec leaves to its callers.

        Returns:
            The values, harmless ones in bad rows, and for each kind of fault: which rows, what was
            found there, and what must hold.
        """
        faults: list[Fault] = []

        def look(
            bad: npt.NDArray[np.bool_], values: "Scalars | pa.Array | None", must: str
        ) -> None:
            if not bad.any():
                return
            if isinstance(values, pa.Array):
                values = values.to_numpy(zero_copy_only=False)
            if values is None:
                values = np.full(len(bad), None)
            if not self.bad_rows.leaves_out:
                at = int(np.argmax(bad))
                raise ValueError(
                    f"{group.path}: column {name!r}, row {group.first_row + at}: {must}; found "
                    f"{values[at]}. {int(bad.sum())} such rows in this row group."
                )
            faults.append((bad, values, must))

        kind = self._types[name]
        if pa.types.is_list(kind):
            if array.null_count or array.values.null_count:
                look(_null_rows(array), array, NO_NULL)
            if faults:
                array = without(array, faults[0][0], kind)
            if not _are_ids(_flat(array), self._limit(name)):
                look(self._bad_ids(array, name), array, self._must(name))
            return without(array, faults[-1][0], kind) if faults else array, faults
        if array.null_count:
            missing = array.is_null().to_numpy(zero_copy_only=False)
            look(missing, None, NO_NULL)
            array = without(array, missing, kind)
        values = array.to_numpy()
        schema = self.schema
        if name in schema.labels:
            look(~((values == 0) | (values == 1)), values, "a label must be 0 or 1")
        elif name in schema.dense or name in self._extra:
            look(~np.isfinite(values), values, "a dense value must be finite")
        elif name != schema.timestamp and not _are_ids(values, self._limit(name)):
            look((values < 0) | (values >= self._limit(name)), values, self._must(name))
        for bad, _, _ in faults:
            values = np.where(bad, values.dtype.type(0), values)
        return values, faults

    def _bad_ids(self, array: pa.ListArray, name: str) -> npt.NDArray[np.bool_]:
        """Which lists hold an id that the table has not."""
        offsets = array.offsets.to_numpy()
        values = _flat(array)
        bad_id = (values < 0) | (values >= self._limit(name))
        rows = np.repeat(np.arange(len(array)), np.diff(offsets))
        bad = np.zeros(len(array), dtype=np.bool_)
        bad[rows[bad_id]] = True
        return bad

    def _limit(self, name: str) -> int:
        schema = self.schema
        fixed = {
            "user": schema.num_users,
            "item": schema.num_items,
            "scenario": schema.num_scenarios,
        }
        return fixed[name] if name in fixed else schema.tables[schema.table_of(name)]

    def _must(self, name: str) -> str:
        if name == "scenario":
            return f"the scenario must be one of the schema's, 0 to {self._limit(name) - 1}"
        return f"an id must be in [0, {self._limit(name)})"


def _gather(
    pieces: "list[Scalars | pa.ListArray]", place: npt.NDArray[np.int64]
) -> "Scalars | pa.ListArray":
    if isinstance(pieces[0], np.ndarray):
        return np.take(np.concatenate(pieces) if len(pieces) > 1 else pieces[0], place)
    return pa.concat_arrays(pieces).take(pa.array(place))


def _are_ids(values: Scalars, limit: int) -> bool:
    """Whether all are in [0, limit); as unsigned numbers, negative ones are the largest."""
    return len(values) == 0 or int(values.view(np.uint32).max()) < limit


def _flat(array: pa.ListArray) -> npt.NDArray[np.int32]:
    """The ids of all lists, one after another."""
    offsets = array.offsets
    values: npt.NDArray[np.int32] = array.values.to_numpy()
    return values[offsets[0].as_py() : offsets[-1].as_py()]


def _null_rows(array: pa.ListArray) -> npt.NDArray[np.bool_]:
    """Which lists are null or hold a null."""
    bad: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False).copy()
    if array.values.null_count:
        offsets = array.offsets.to_numpy()
        inside = array.values.is_null().to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
        bad[np.repeat(np.arange(len(array)), np.diff(offsets))[inside]] = True
    return bad


def _same_type(actual: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual)
        return is_list and bool(actual.value_type == wanted.value_type)
    return bool(actual == wanted)
