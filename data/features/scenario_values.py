"""Scenarios of raw rows, given by name or by number."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from msrec.data.features.columns import Ids
from msrec.data.features.value_types import TEXT, VALUES, AllowedTypes, stored

SCENARIO_TYPES = AllowedTypes(VALUES)


class ScenarioValues:
    """Numbers of scenarios by their names, or by their positions in `dataset.yaml`.

    If all names are whole numbers, as those of raw data that has only numbers, an integer is a
    name.

    Args:
        names: of all scenarios, in the order of the schema.

    Example:
        >>> scenarios = ScenarioValues(["feed", "search"])
        >>> scenarios.number("search"), scenarios.number(0), scenarios.number("new")
        (1, 0, -1)
        >>> ScenarioValues(["1", "2"]).number(1)
        0
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = {name: number for number, name in enumerate(names)}
        self._numbers = {number: number for number in self._names.values()}
        if all(re.fullmatch("0|-?[1-9][0-9]*", name) for name in names):
            self._numbers = {int(name): number for name, number in self._names.items()}

    def number(self, value: Any) -> int:
        """Returns the number of a scenario; -1 for a value that is no scenario."""
        if type(value) is int:
            return self._numbers.get(value, -1)
        name = str(value).lower() if type(value) is bool else value
        return self._names.get(name, -1) if type(name) is str else -1

    def with_names(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Returns the scenarios of rows, numbers as names; a row without one stays as it is."""
        names = {number: name for name, number in self._names.items()}
        return [
            {"scenario": names.get(self.number(row["scenario"]), row["scenario"])}
            if "scenario" in row
            else row
            for row in rows
        ]

    def numbers(self, values: pa.Array) -> Ids:
        """Returns the numbers of the scenarios in a column, int32; -1 where there is none."""
        values = stored(values)
        if not pa.types.is_integer(values.type):
            values = values.cast(TEXT.stored)
        distinct = values.dictionary_encode()
        found = [self.number(value) for value in distinct.dictionary.to_pylist()]
        at = distinct.indices.fill_null(len(found)).to_numpy()
        numbers: Ids = np.array([*found, -1], dtype=np.int32)[at]
        return numbers

    def __str__(self) -> str:
        of = {number: value for value, number in self._numbers.items()}
        return ", ".join(f"{name} ({of[number]})" for name, number in self._names.items())
