"""Rows of a dataset folder that break its schema: refused, or left out, counted and kept aside."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import replacing
from msrec.data.io.paths import AnyPath

Policy = Literal["fail", "skip", "quarantine"]
BAD = "__bad__"
"""Column of `SplitFiles.take` that marks the rows to leave out; only with skip and quarantine."""
QUARANTINE = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("found", pa.string()),
        ("must", pa.string()),
    ]
)


class BadRow(NamedTuple):
    """One reason to leave a row of a file out; `column` is empty where no column could be read."""

    row: int
    column: str
    found: str
    must: str


Groups = dict[tuple[str, int], list[BadRow]]
"""(file, number of the row group) -> its bad rows."""


class BadRows:
    """What a reader does with rows that break the schema, and what it met so far.

    `fail` raises one sentence about the first. `skip` leaves the rows out: their slots stay where
    they are, so that the global order is what it was, with weight 0. `quarantine` does too, and
    `write_quarantine` keeps file, row, column and reason.

    A row group may be read by several ranks and again in every epoch: it is noted once.
    """

    def __init__(self, policy: Policy = "fail") -> None:
        self.policy = policy
        self.groups: Groups = {}

    @property
    def leaves_out(self) -> bool:
        """Whether bad rows are left out instead of refused."""
        return self.policy != "fail"

    def note(self, path: AnyPath, group: int, rows: Iterable[BadRow]) -> None:
        """Remember bad rows of a row group, all of them at once."""
        self.groups.setdefault((str(path), group), []).extend(rows)

    def is_noted(self, path: AnyPath, group: int) -> bool:
        """Whether this row group was looked at before."""
        return (str(path), group) in self.groups


def merged(groups: Iterable[Groups]) -> Groups:
    """What several ranks met, each row group once."""
    found: Groups = {}
    for own in groups:
        found |= own
    return found


def count_rows(groups: Groups) -> int:
    """Rows left out."""
    return sum(len({bad.row for bad in rows}) for rows in groups.values())


def count_reasons(groups: Groups) -> dict[str, int]:
    """Reason -> rows; a row with several reasons counts for each."""
    found = Counter(
        f"{bad.column}: {bad.must}" if bad.column else bad.must
        for rows in groups.values()
        for bad in rows
    )
    return dict(found.most_common())


def write_quarantine(groups: Groups, path: Path) -> None:
    """Write one row a reason: file, row, column, found, must."""
    table: dict[str, list[Any]] = {name: [] for name in QUARANTINE.names}
    for (file, _), rows in sorted(groups.items()):
        for bad in rows:
            for name, value in zip(QUARANTINE.names, (file, *bad), strict=True):
                table[name].append(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        pq.write_table(pa.table(table, schema=QUARANTINE), scratch)


def without(array: pa.Array, bad: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """The array with something harmless in its bad rows: 0, or an empty list."""
    if not bad.any():
        return array
    harmless = pa.scalar([] if pa.types.is_list(kind) else 0, kind)
    places = pa.array(np.where(bad, len(array), np.arange(len(array))))
    extended = pa.concat_arrays([array.cast(kind), pa.array([harmless.as_py()], kind)])
    return extended.take(places)
