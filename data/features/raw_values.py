"""Checks of raw columns: types, null values and ranges, with row and column in every error."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.features.columns import Ids, Lengths, flattened, nulls
from msrec.data.features.value_types import AllowedTypes, is_text, stored


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

    def dates(self) -> Self:
        """Returns the column with dates that are given as strings as date32."""
        if not is_text(self.values.type):
            return self
        distinct = stored(self.values).dictionary_encode()
        dates = pa.array(list(map(_date, distinct.dictionary.to_pylist())), pa.date32())
        dates = dates.take(distinct.indices)
        self.refuse(nulls(dates) & ~nulls(self.values), 'a date must look like "2024-01-31"')
        return self._replace(values=dates)

    def finite_floats(self) -> npt.NDArray[np.float32]:
        """Returns the values as float32; refuses nulls, NaN and numbers beyond float32."""
        with np.errstate(over="ignore"):
            numbers = self.values.to_numpy(zero_copy_only=False).astype(np.float32)
        self.refuse(~np.isfinite(numbers), "a dense value must be finite")
        return np.asarray(numbers)


def json_column(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    other: str | None,
    allowed: AllowedTypes,
    where: str,
    first_row: int,
) -> pa.Array:
    """Returns a column of rows that were parsed from JSON; each row is judged by itself.

    Args:
        rows: the rows.
        name: the column.
        other: the column that is taken for a row without `name`, if there is one.
        allowed: types of the column.
        where: file or request, for error messages.
        first_row: number of the first row, for error messages.

    Raises:
        ValueError: a row lacks the column or has a value of another type; names row and column.
    """
    try:
        return allowed.from_json([row[name if name in row else other or name] for row in rows])
    except (KeyError, ValueError):
        for number, row in enumerate(rows, start=first_row):
            if name not in row and other not in row:
                also = "" if other is None else f" (or {other!r})"
                raise ValueError(
                    f"{where}: row {number} must have the column {name!r}{also}; it has "
                    f"{', '.join(row)}."
                ) from None
            value = row[name if name in row else other or name]
            try:
                allowed.from_json([value])
            except ValueError as error:
                raise ValueError(
                    f"{where}: column {name!r}, row {number}: {error}; found {value!r}."
                ) from None
        raise


def _date(text: str) -> datetime.date | None:
    """Returns the date that a string names; None for anything but `2024-01-31`."""
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        return None
    return date if date.isoformat() == text else None
