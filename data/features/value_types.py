"""Types that raw values may have, the same ones from conversion to serving.

===========  ================================================  =========  ======================
a value is   types of columns                                  stored as  in JSON
===========  ================================================  =========  ======================
an integer   integers that fit int64                           int64      integer
a string     strings, Categorical, Enum                        string     string
true, false  Boolean                                           bool       true or false
a date       Date                                              date32     "2024-01-31"
a number     floats, integers, Decimal; dense features, labels float32    number
===========  ================================================  =========  ======================

Each may be dictionary-encoded. A feature of lists has lists of integers, strings, Booleans or
dates, of fixed size or not. All other types (struct, binary, lists of lists, Datetime, Time,
Duration) are refused when a data set is converted; only a text for prompts may be a time.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import polars as pl
import pyarrow as pa

from msrec.data.features.columns import is_list


def is_text(kind: pa.DataType) -> bool:
    """Returns whether values are strings, dictionary-encoded or not."""
    kind = _plain(kind)
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


@dataclass(frozen=True)
class ValueType:
    """A row of the table above."""

    name: str
    stored: pa.DataType
    includes: Callable[[pa.DataType], bool]
    json: tuple[type, ...]


INTEGER = ValueType("an integer", pa.int64(), pa.types.is_integer, (int,))
TEXT = ValueType("a string", pa.large_string(), is_text, (str,))
BOOLEAN = ValueType("true or false", pa.bool_(), pa.types.is_boolean, (bool,))
DATE = ValueType('a date such as "2024-01-31"', pa.date32(), pa.types.is_date, (str,))
NUMBER = ValueType(
    "a number",
    pa.float64(),
    lambda kind: (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    ),
    (int, float),
)
TIME = ValueType(
    "a time", pa.large_string(), lambda k: pa.types.is_timestamp(k) or pa.types.is_time(k), ()
)
VALUES = (INTEGER, TEXT, BOOLEAN, DATE)
"""Types of values that a vocabulary or a hash may have."""


class AllowedTypes(NamedTuple):
    """Types that a raw column may have; nulls are always allowed."""

    values: tuple[ValueType, ...]
    lists: Sequence[bool] = (False,)
    """Whether a row holds a list of values; with (False, True) it may hold either."""
    separator: str | None = None
    """Separator of the values of a list that is given as one string; None if it may not be."""

    def accept(self, kind: pa.DataType) -> bool:
        """Returns whether a column may have this type; a date may also be a string."""
        if pa.types.is_null(kind) or (self.separator is not None and is_text(kind)):
            return True
        if holds_lists(kind) not in self.lists:
            return False
        kind = kind.value_type if holds_lists(kind) else kind
        if pa.types.is_null(kind) or (DATE in self.values and is_text(kind)):
            return True
        return any(value.includes(_plain(kind)) for value in self.values)

    def __str__(self) -> str:
        names = " or ".join(value.name for value in self.values)
        if True not in self.lists:
            return names
        separated = "" if self.separator is None else f", or a string with {self.separator!r}"
        return f"a list, each {names}{separated}"

    def from_json(self, values: Sequence[Any]) -> pa.Array:
        """Returns values that were parsed from JSON as a column; each is judged by itself.

        Where several types are allowed, values become strings, which is how a hash sees them. Dates
        stay strings too.

        Raises:
            ValueError: a value has another type, or an integer does not fit int64.
        """
        kind = self.values[0] if len(self.values) == 1 and DATE not in self.values else TEXT
        if True not in self.lists:
            return pa.array(self._checked(values, kind), kind.stored)
        rows = [self._list(value) for value in values]
        lengths = [0 if row is None else len(row) for row in rows]
        flat = self._checked([value for row in rows for value in row or ()], kind)
        offsets = [
            None if row is None else end - n
            for row, end, n in zip(rows, itertools.accumulate(lengths), lengths, strict=True)
        ]
        return pa.LargeListArray.from_arrays(
            pa.array([*offsets, len(flat)], pa.int64()), pa.array(flat, kind.stored)
        )

    def _list(self, value: Any) -> list[Any] | None:
        """Returns the values of a row."""
        if value is None or type(value) is list:
            return value
        if self.separator is not None and type(value) is str:
            return split_text(value, self.separator)
        if False not in self.lists:
            raise ValueError(f"must be {self}")
        return [value]

    def _checked(self, values: Sequence[Any], kind: ValueType) -> list[Any]:
        """Returns values in the form of a type; refuses values of types that are not allowed."""
        allowed = {form for value in self.values for form in value.json}
        if not set(map(type, values)) - {type(None)} <= allowed:
            raise ValueError(f"must be {self}")
        if kind is not NUMBER:
            for value in values:
                if type(value) is int and not -(2**63) <= value < 2**63:
                    raise ValueError("must be an integer that fits int64")
        convert = {TEXT: _text, NUMBER: _number}.get(kind)
        if convert is None:
            return list(values)
        return [None if value is None else convert(value) for value in values]


def types_like(kind: pa.DataType) -> tuple[ValueType, ...]:
    """Returns the types whose values can be compared with stored values of the given type.

    Raises:
        ValueError: an older version stored a type that is not allowed any more.
    """
    if pa.types.is_null(kind):
        return VALUES
    found = tuple(value for value in VALUES if value.includes(_plain(kind)))
    if not found:
        raise ValueError(f"values of type {kind} cannot be looked up; convert the data set again.")
    return found


def stored(values: pa.Array) -> pa.Array:
    """Returns values, no lists, in the type in which they are stored and compared.

    Raises:
        ValueError: an integer does not fit int64.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    for value in VALUES:
        if value.includes(values.type):
            return values.cast(value.stored)
    return values


def stored_series(values: pl.Series) -> pl.Series:
    """Returns a column, or one of lists, in the type in which `stored` returns its values.

    Other types, and integers that do not fit int64, stay as they are.
    """
    try:
        return values.cast(_stored_dtype(values.dtype))
    except pl.exceptions.InvalidOperationError:
        return values


def _stored_dtype(kind: pl.DataType) -> pl.DataType:
    if isinstance(kind, pl.List | pl.Array):
        return pl.List(_stored_dtype(kind.inner))  # type: ignore[arg-type]
    if isinstance(kind, pl.Categorical | pl.Enum):
        return pl.String()
    return pl.Int64() if kind.is_integer() else kind


def arrow_type(kind: pl.DataType) -> pa.DataType | None:
    """Returns the Arrow type of a polars type; None if there is none."""
    try:
        return cast(pa.DataType, pl.Series(dtype=kind).to_arrow().type)
    except (pa.ArrowInvalid, pl.exceptions.PolarsError):
        return None


def holds_lists(kind: pa.DataType) -> bool:
    """Returns whether values are lists, of fixed size or not."""
    return is_list(kind) or bool(pa.types.is_fixed_size_list(kind))


def split_text(text: str, separator: str) -> list[str]:
    """Returns the values in a string, without white space around them; empty ones are left out.

    Example:
        >>> split_text("Action, Drama,", ",")
        ['Action', 'Drama']
    """
    return [value for piece in text.split(separator) if (value := piece.strip())]


def split_texts(values: pa.Array, separator: str) -> pa.Array:
    """Returns the values in each string as a list, see `split_text`; null stays null."""
    distinct = stored(values).dictionary_encode()
    lists = [split_text(text, separator) for text in distinct.dictionary.to_pylist()]
    return pa.array(lists, pa.large_list(pa.large_string())).take(distinct.indices)


def _plain(kind: pa.DataType) -> pa.DataType:
    return cast(pa.DataType, kind.value_type) if pa.types.is_dictionary(kind) else kind


def _text(value: Any) -> str:
    """Returns a value as Arrow and polars write it."""
    return str(value).lower() if type(value) is bool else str(value)


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
