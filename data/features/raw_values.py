"""Values of raw columns: looked up, checked, and told of by row and column where they are bad."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ids = npt.NDArray[np.int32]


class RowLocation(NamedTuple):
    """Where rows stand: what a sentence about a bad one names."""

    where: str
    first_row: int
    row_of: npt.NDArray[np.int64] | None = None
    """Of each value, where there may be several in a row."""

    def refuse(self, bad: npt.NDArray[np.bool_], values: pa.Array, name: str, must: str) -> None:
        """Raise one sentence about the first bad value, if there is one."""
        if not bad.any():
            return
        at = int(np.argmax(bad))
        row = at if self.row_of is None else int(self.row_of[at])
        count = int(bad.sum())
        raise ValueError(
            f"{self.where}: column {name!r}, row {self.first_row + row}: {must}; found "
            f"{values[at].as_py()!r}. {count} such value{'s' if count > 1 else ''}."
        )


class ValueIndex:
    """Value -> its place among distinct ones, counted from `first`; nulls among them have none.

    Integers are found by bisection in a sorted array, anything else in a dict.
    """

    def __init__(self, values: pa.Array, first: int = 0) -> None:
        self.kind = values.type
        places = np.arange(first, first + len(values), dtype=np.int32)
        if values.null_count:
            places = places[values.is_valid().to_numpy(zero_copy_only=False)]
            values = values.drop_null()
        self._is_integer = pa.types.is_integer(self.kind)
        self._places: dict[Any, int] = {}
        if self._is_integer:
            numbers = values.to_numpy()
            order = np.argsort(numbers, kind="stable")
            self._sorted, self._place = numbers[order], places[order]
        else:
            self.kind = pa.string() if is_text(self.kind) else self.kind
            self._places = dict(zip(values.to_pylist(), places.tolist(), strict=True))

    def rows(self, values: pa.Array, name: str, place: RowLocation, otherwise: int) -> Ids:
        """Places of values, `otherwise` for those that are not known and for nulls."""
        if self._is_integer:
            numbers, null = integer_values(values, name, place)
            at = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
            if not len(self._sorted):
                return np.full(len(numbers), otherwise, dtype=np.int32)
            known = (self._sorted[at] == numbers) & ~null
            return np.where(known, self._place[at], np.int32(otherwise))
        if not (is_text(values.type) if is_text(self.kind) else values.type == self.kind):
            if not pa.types.is_null(values.type):
                raise ValueError(
                    f"{place.where}: column {name!r} must be {self.kind}, as in the vocabulary; it "
                    f"is {values.type}."
                )
        of = self._places
        return np.array([of.get(value, otherwise) for value in values.to_pylist()], dtype=np.int32)


def dense_values(values: pa.Array, name: str, place: RowLocation) -> npt.NDArray[np.float32]:
    """Finite numbers as float32; anything else is refused."""
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{place.where}: column {name!r} must be a number; it is {kind}.")
    with np.errstate(over="ignore"):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    bad = nulls(values) | ~np.isfinite(numbers)
    place.refuse(bad, values, name, "a dense value must be finite")
    return np.asarray(numbers)


def integer_values(
    values: pa.Array, name: str, place: RowLocation
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Values as int64, 0 for nulls, and which are null."""
    null = nulls(values)
    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=np.int64), null
    if not pa.types.is_integer(values.type):
        raise ValueError(f"{place.where}: column {name!r} must be integers; it is {values.type}.")
    try:
        values = values.fill_null(0) if values.null_count else values
        numbers = values.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        bad = np.array([not -(2**63) <= (v or 0) < 2**63 for v in values.to_pylist()])
        place.refuse(bad, values, name, "an integer must have 64 bits")
        raise
    return numbers, null


def nulls(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Which values are null."""
    if not values.null_count:
        return np.zeros(len(values), dtype=np.bool_)
    found: npt.NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    return found


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, in a dictionary or not."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


class AllowedKinds(NamedTuple):
    """The kinds of values that a column of JSON rows may have; null is one of each."""

    text: bool = False
    integers: bool = False
    floats: bool = False
    lists: Sequence[bool] = (False,)
    """Whether a value is a list of such; both may be."""

    def takes(self, kind: pa.DataType) -> bool:
        """Whether a column of this inferred type has only such values."""
        if True in self.lists and pa.types.is_list(kind):
            return self._replace(lists=[False]).takes(kind.value_type)
        found = (
            (self.text and pa.types.is_string(kind))
            or (self.integers and pa.types.is_integer(kind))
            or (self.floats and pa.types.is_floating(kind))
        )
        return bool(pa.types.is_null(kind) or (found and False in self.lists))

    def __str__(self) -> str:
        kinds = {"a string": self.text, "an integer": self.integers, "a number": self.floats}
        told = " or ".join(kind for kind, takes in kinds.items() if takes)
        return f"a list, each {told}" if True in self.lists else told


def first_bad(
    rows: Sequence[Mapping[str, Any]], name: str, fits: AllowedKinds, where: str, first_row: int
) -> str:
    """What is wrong with the first row that has no such value, or none like those before it."""
    for number, row in enumerate(rows, start=first_row):
        if name not in row:
            return f"{where}: row {number} must have the column {name!r}; it has {', '.join(row)}."
        try:
            good = fits.takes(pa.array([row[name]]).type)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            return f"{where}: column {name!r}, row {number}: must be {fits}; found {row[name]!r}."
    return f"{where}: column {name!r} must be {fits}, of one kind in all rows."


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
