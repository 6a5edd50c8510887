"""Checks of the columns of an interactions file against the schema, which TorchRec leaves to us.

An id outside its table would read another row's vector or crash in a kernel, without a word on
where it came from.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.features.columns import Scalars
from msrec.data.schema import Schema

NO_NULL = "nothing may be null"


class Fault(NamedTuple):
    """Rows of a column that break one rule.

    Shape:
        bad: (rows,), bool.
        values: (rows,), the values found; None where they are null.
    """

    bad: npt.NDArray[np.bool_]
    values: Any
    must: str
    """The rule, such as "an id must be in [0, 100)"."""

    def value_at(self, row: int) -> object:
        """Returns the value found in a row."""
        return None if self.values is None else self.values[row]


class ColumnChecks:
    """Types and value ranges of some columns.

    Args:
        schema: of the dataset.
        columns: names of columns of the schema.
        extra: names of further float32 columns.
    """

    def __init__(self, schema: Schema, columns: Sequence[str], extra: Sequence[str] = ()) -> None:
        self._schema, self._extra = schema, tuple(extra)
        types = dict.fromkeys(("user", "item", "scenario"), pa.int32())
        for feature in schema.sparse:
            types[feature.name] = pa.list_(pa.int32()) if feature.multi else pa.int32()
        types |= dict.fromkeys([*schema.dense, *schema.labels, *extra], pa.float32())
        types |= {schema.timestamp: pa.int64()} if schema.timestamp else {}
        self.types: dict[str, pa.DataType] = {name: types[name] for name in (*columns, *extra)}
        sizes = {"user": schema.num_users, "item": schema.num_items}
        sizes["scenario"] = schema.num_scenarios
        sizes |= {feature.name: schema.tables[feature.table] for feature in schema.sparse}
        self._sizes = sizes

    def type_error(self, found: pa.Schema) -> str | None:
        """Returns a sentence on the first column that is missing or has a wrong type."""
        for name, wanted in self.types.items():
            if name not in found.names:
                return f"column {name!r} is missing; it has {', '.join(found.names)}."
            actual = found.field(name).type
            if not _same_type(actual, wanted):
                return f"column {name!r} must be {wanted}; it is {actual}."
        return None

    def check(self, array: pa.Array, name: str) -> tuple[Scalars | pa.ListArray, list[Fault]]:
        """Returns the values of a column and the faults found in it.

        Bad rows get harmless values: 0, or an empty list.
        """
        if pa.types.is_list(self.types[name]):
            return self._check_lists(array, name)
        faults = []
        if array.null_count:
            bad = array.is_null().to_numpy(zero_copy_only=False)
            faults.append(Fault(bad, None, NO_NULL))
            array = replaced(array, bad, self.types[name])
        values = array.to_numpy()
        fault = self._value_fault(values, name)
        if fault is not None and fault.bad.any():
            faults.append(fault)
        for fault in faults:
            values = np.where(fault.bad, values.dtype.type(0), values)
        return values, faults

    def _value_fault(self, values: Scalars, name: str) -> Fault | None:
        if name in self._schema.labels:
            return Fault(~((values == 0) | (values == 1)), values, "a label must be 0 or 1")
        if name in self._schema.dense or name in self._extra:
            return Fault(~np.isfinite(values), values, "a dense value must be finite")
        size = self._sizes.get(name)
        if size is None or _are_ids(values, size):
            return None
        return Fault((values < 0) | (values >= size), values, self._id_rule(name))

    def _check_lists(self, array: pa.ListArray, name: str) -> tuple[pa.ListArray, list[Fault]]:
        kind, size, faults = self.types[name], self._sizes[name], []
        if array.null_count or array.values.null_count:
            faults.append(_list_fault(array, _null_rows(array), NO_NULL))
            array = replaced(array, faults[-1].bad, kind)
        if not _are_ids(_flat(array), size):
            faults.append(_list_fault(array, _rows_with_bad_id(array, size), self._id_rule(name)))
            array = replaced(array, faults[-1].bad, kind)
        return array, [fault for fault in faults if fault.bad.any()]

    def _id_rule(self, name: str) -> str:
        if name == "scenario":
            return f"the scenario must be one of the schema's, 0 to {self._sizes[name] - 1}"
        return f"an id must be in [0, {self._sizes[name]})"


def replaced(array: pa.Array, bad: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Returns the array with a harmless value in its bad rows: 0, or an empty list."""
    if not bad.any():
        return array
    harmless = pa.scalar([] if pa.types.is_list(kind) else 0, kind)
    places = pa.array(np.where(bad, len(array), np.arange(len(array))))
    extended = pa.concat_arrays([array.cast(kind), pa.array([harmless.as_py()], kind)])
    return extended.take(places)


def _list_fault(array: pa.ListArray, bad: npt.NDArray[np.bool_], must: str) -> Fault:
    return Fault(bad, array.to_numpy(zero_copy_only=False), must)


def _are_ids(values: Scalars, size: int) -> bool:
    """Returns whether all int32 values are in [0, size); as uint32, negative ones are largest."""
    return len(values) == 0 or int(values.view(np.uint32).max()) < size


def _flat(array: pa.ListArray) -> npt.NDArray[np.int32]:
    """Returns the ids of all lists, one after another."""
    offsets = array.offsets
    values: npt.NDArray[np.int32] = array.values.to_numpy()
    return values[offsets[0].as_py() : offsets[-1].as_py()]


def _null_rows(array: pa.ListArray) -> npt.NDArray[np.bool_]:
    """Returns which lists are null or hold a null."""
    bad: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False).copy()
    if array.values.null_count:
        offsets = array.offsets.to_numpy()
        inside = array.values.is_null().to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
        bad[np.repeat(np.arange(len(array)), np.diff(offsets))[inside]] = True
    return bad


def _rows_with_bad_id(array: pa.ListArray, size: int) -> npt.NDArray[np.bool_]:
    """Returns which lists hold an id that is not in [0, size)."""
    values = _flat(array)
    rows = np.repeat(np.arange(len(array)), np.diff(array.offsets.to_numpy()))
    bad = np.zeros(len(array), dtype=np.bool_)
    bad[rows[(values < 0) | (values >= size)]] = True
    return bad


def _same_type(actual: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual)
        return is_list and bool(actual.value_type == wanted.value_type)
    return bool(actual == wanted)
