"""Checks of raw columns: types, null values and ranges, with row and column in every error."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.features.columns import Ids, Lengths, flattened, is_list, nulls
from msrec.data.features.value_index import is_text


class RawColumn(NamedTuple):
    """A column of raw rows, and its location for error messages."""

    name: str
    values: pa.Array
    where: str
    """File or request."""
    first_row: int
    lengths: Lengths | None = None
    """Values per row; None if every row has one."""

    def flattened(self) -> Self:
        """Returns the column with the values of all lists one after another."""
        values, lengths = flattened(self.values)
        return self._replace(values=values, lengths=lengths)

    def refuse(self, bad: npt.NDArray[np.bool_], must: str) -> None:
        """Raises an error about the first bad value, if there is one."""
        if not bad.any():
            return
        at = row = int(np.argmax(bad))
        if self.lengths is not None:
            row = int(np.searchsorted(np.cumsum(self.lengths), at, side="right"))
        count = int(bad.sum())
        raise ValueError(
            f"{self.where}: column {self.name!r}, row {self.first_row + row}: {must}; found "
            f"{self.values[at].as_py()!r}. {count} such value{'s' if count > 1 else ''}."
        )

    def refuse_large_integers(self) -> None:
        """Refuses integers of type uint64 that do not fit int64."""
        if pa.types.is_uint64(self.values.type):
            is_large = self.values.fill_null(0).to_numpy() >= np.uint64(2**63)
            self.refuse(is_large, "an integer must fit int64")

    def integers_below(self, size: int, must: str) -> Ids:
        """Returns the values as int32; refuses nulls and integers that are not in [0, size)."""
        self.refuse_large_integers()
        numbers = self.values.cast(pa.int64()).fill_null(-1).to_numpy()
        self.refuse((numbers < 0) | (numbers >= size), must)
        return np.asarray(numbers, dtype=np.int32)

    def integers(self) -> npt.NDArray[np.int64]:
        """Returns the values as int64; refuses nulls."""
        self.refuse_large_integers()
        self.refuse(nulls(self.values), "nothing may be null")
        return np.asarray(self.values.cast(pa.int64()).to_numpy())

    def finite_floats(self) -> npt.NDArray[np.float32]:
        """Returns the values as float32; refuses nulls, NaN and numbers beyond float32."""
        with np.errstate(over="ignore"):
            numbers = self.values.to_numpy(zero_copy_only=False).astype(np.float32)
        self.refuse(~np.isfinite(numbers), "a dense value must be finite")
        return np.asarray(numbers)


class AllowedTypes(NamedTuple):
    """Types that the values of a raw column may have; nulls are always allowed."""

    text: bool = False
    integers: bool = False
    floats: bool = False
    other: pa.DataType | None = None
    """One more type, such as that of a vocabulary of dates."""
    lists: Sequence[bool] = (False,)
    """Whether a row holds a list of values; with (False, True) it may hold either."""

    def accept(self, kind: pa.DataType) -> bool:
        """Returns whether a column may have this type."""
        if not pa.types.is_null(kind) and is_list(kind) not in self.lists:
            return False
        kind = kind.value_type if is_list(kind) else kind
        return bool(
            pa.types.is_null(kind)
            or (self.text and is_text(kind))
            or (self.integers and pa.types.is_integer(kind))
            or (self.floats and pa.types.is_floating(kind))
            or kind == self.other
        )

    def __str__(self) -> str:
        kinds = {"a string": self.text, "an integer": self.integers, "a number": self.floats}
        kinds[str(self.other)] = self.other is not None
        names = " or ".join(name for name, is_allowed in kinds.items() if is_allowed)
        return f"a list, each {names}" if True in self.lists else names


def types_like(kind: pa.DataType) -> AllowedTypes:
    """Returns the types whose values can be compared with values of the given type."""
    if pa.types.is_integer(kind):
        return AllowedTypes(integers=True)
    return AllowedTypes(text=True) if is_text(kind) else AllowedTypes(other=kind)


def first_bad_row(
    rows: Sequence[Mapping[str, Any]], name: str, allowed: AllowedTypes, where: str, first_row: int
) -> str:
    """Returns a sentence on the first JSON row whose value is missing or of another type.

    Rows may also differ from each other, such as an integer in one and a string in another.
    """
    for number, row in enumerate(rows, start=first_row):
        if name not in row:
            return f"{where}: row {number} must have the column {name!r}; it has {', '.join(row)}."
        try:
            is_allowed = allowed.accept(pa.array([row[name]]).type)
        except (TypeError, ValueError, OverflowError):
            is_allowed = False
        if not is_allowed:
            value = row[name]
            return f"{where}: column {name!r}, row {number}: must be {allowed}; found {value!r}."
    return f"{where}: column {name!r} must be {allowed}, of one kind in all rows."
