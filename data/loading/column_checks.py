"""Checks of the columns of an interactions file against the schema.

TorchRec does not check ids: one outside its table would read the vector of another row, or crash in
a kernel without a hint where it came from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from msrec.data.features.columns import Scalars, flattened, is_list, nulls
from msrec.data.features.hashed_values import MAX_MANAGED_ID
from msrec.data.labels import LabelOptions
from msrec.data.schema import Schema

Mask = npt.NDArray[np.bool_]


class Fault(NamedTuple):
    """Rows of a column that break one rule."""

    bad: Mask
    """(rows,), bool."""
    values: pa.Array
    """(rows,), the values in the file."""
    must: str
    """The rule, such as "an id must be in [0, 100)"."""

    def value_at(self, row: int) -> object:
        """Returns the value in a row; a float prints as float32."""
        value = self.values[row].as_py()
        return np.float32(value) if isinstance(value, float) else value


class ColumnChecks:
    """Types and value ranges of some columns.

    Args:
        schema: of the dataset.
        columns: names of columns; one that the schema does not know must be float32 and finite.
    """

    def __init__(self, schema: Schema, columns: Sequence[str]) -> None:
        self._labels = {name: schema.label(name) for name in schema.labels}
        self._weights = set(schema.weights)
        self._whole_numbers = {n for n in (schema.timestamp, schema.impression) if n}
        self._sizes = {"user": schema.num_users, "item": schema.num_items}
        self._sizes["scenario"] = schema.num_scenarios
        self._managed = {feature.name for feature in schema.managed}
        self._sizes |= {f.name: schema.tables[f.table] for f in schema.sparse if not f.managed}
        types = dict.fromkeys(self._sizes, pa.int32())
        types |= {f.name: pa.list_(pa.int32()) for f in schema.sparse if f.multi}
        types |= dict.fromkeys((*self._whole_numbers, *self._managed), pa.int64())
        self.types: dict[str, pa.DataType] = {n: types.get(n, pa.float32()) for n in columns}

    def type_error(self, file: pa.Schema) -> str | None:
        """Returns a sentence on the first column that is missing or has a wrong type."""
        for name, wanted in self.types.items():
            if name not in file.names:
                return f"column {name!r} is missing; it has {', '.join(file.names)}."
            actual = file.field(name).type
            same = is_list(actual) and actual.value_type == pa.int32()
            if not (same if is_list(wanted) else actual == wanted):
                return f"column {name!r} must be {wanted}; it is {actual}."
        return None

    def check(self, array: pa.Array, name: str) -> tuple[Scalars | pa.ListArray, list[Fault]]:
        """Returns the values of a column and the faults found in it.

        Bad rows get harmless values: 0, or an empty list.
        """
        faults, has_lists = [], is_list(array.type)
        flat = array.flatten() if has_lists else array
        if array.null_count or flat.null_count:
            bad = nulls(array) | _rows_with(nulls(flat), array)
            faults.append(Fault(bad, array, "nothing may be null"))
            array = harmless(array, bad, self.types[name])
            flat = array.flatten() if has_lists else array
        is_bad, must = self._broken_rule(flat.to_numpy(), name)
        if is_bad is not None and is_bad.any():
            faults.append(Fault(_rows_with(is_bad, array), array, must))
            array = harmless(array, faults[-1].bad, self.types[name])
        return array if has_lists else array.to_numpy(), faults

    def _broken_rule(self, values: Scalars, name: str) -> tuple[Mask | None, str]:
        """Returns which values break the rule of a column, and the rule."""
        if name in self._labels:
            return _broken_label(values, self._labels[name])
        if name in self._weights:
            return ~(np.isfinite(values) & (values >= 0)), "a weight must be finite and at least 0"
        if name in self._managed:
            outside: Mask = (values < 0) | (values > MAX_MANAGED_ID)
            return outside, "a managed id must be in [0, 2^63 - 2]"
        size = self._sizes.get(name)
        if size is None:
            is_bad = None if name in self._whole_numbers else ~np.isfinite(values)
            return is_bad, "a dense value must be finite"
        # One pass in the usual case that all ids are good: as uint32, negative ids are largest.
        if not len(values) or int(values.view(np.uint32).max()) < size:
            return None, ""
        must = f"an id must be in [0, {size})"
        if name == "scenario":
            must = f"the scenario must be one of the schema's, 0 to {size - 1}"
        return (values < 0) | (values >= size), must


def _broken_label(values: Scalars, options: LabelOptions) -> tuple[Mask, str]:
    """Returns which labels break the rule of their kind, and the rule."""
    is_bad, must = (values != 0) & (values != 1), "a label must be 0 or 1"
    if options.kind == "regression":
        is_bad, must = ~np.isfinite(values), "a regression label must be finite"
    if options.may_be_missing:
        is_bad, must = is_bad & ~np.isnan(values), f"{must}, or NaN in a row without it"
    return is_bad, must


def harmless(array: pa.Array, bad: Mask, kind: pa.DataType) -> pa.Array:
    """Returns the array with 0 or an empty list in its bad rows."""
    value = pa.scalar([] if is_list(kind) else 0, kind)
    return pc.if_else(pa.array(bad), value, array.cast(kind))


def _rows_with(is_bad: Mask, array: pa.Array) -> Mask:
    """Returns which rows of a column have a bad value."""
    _, lengths = flattened(array)
    if lengths is None:
        return is_bad
    bad = np.zeros(len(lengths), dtype=np.bool_)
    bad[np.repeat(np.arange(len(lengths)), lengths)[is_bad]] = True
    return bad
