"""Rows of a dataset folder that break its schema: policies for them, and records of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.paths import AnyPath

Policy = Literal["fail", "skip", "quarantine"]
BAD = "__bad__"
"""Column of `SplitReader.take` that marks excluded rows; only with skip and quarantine."""


class BadRow(NamedTuple):
    """A rule that a row of a file breaks; `column` is empty if no column could be read."""

    row: int
    column: str
    found: str
    must: str


BadRows = dict[tuple[str, int], list[BadRow]]
"""(file, number of the row group) -> its bad rows."""


@dataclass
class Quarantine:
    """The policy of a reader for rows that break the schema, and the rows it has found.

    `fail` raises an error on the first one. `skip` excludes the rows: their slots keep their place
    in the global order, with weight 0. `quarantine` does the same, and `write_quarantine` records
    file, row, column and reason.
    """

    policy: Policy = "fail"
    bad_rows: BadRows = field(default_factory=dict)

    @property
    def excludes(self) -> bool:
        """Whether bad rows are excluded instead of refused."""
        return self.policy != "fail"

    def add(self, path: AnyPath, group: int, rows: Iterable[BadRow]) -> None:
        """Records the bad rows of a row group, if the group has not been recorded before.

        A row group may be read by several ranks and again in every epoch.
        """
        key = (str(path), group)
        if key not in self.bad_rows and (bad_rows := list(rows)):
            self.bad_rows[key] = bad_rows


def merge_bad_rows(parts: Iterable[BadRows]) -> BadRows:
    """Returns the bad rows of several ranks, each row group once."""
    merged: BadRows = {}
    for part in parts:
        merged |= part
    return merged


def count_rows(bad_rows: BadRows) -> int:
    """Returns the number of excluded rows."""
    return sum(len({bad.row for bad in rows}) for rows in bad_rows.values())


def count_reasons(bad_rows: BadRows) -> dict[str, int]:
    """Returns reason -> rows; a row with several reasons counts for each."""
    counts = Counter(
        f"{bad.column}: {bad.must}" if bad.column else bad.must
        for rows in bad_rows.values()
        for bad in rows
    )
    return dict(counts.most_common())


def write_quarantine(bad_rows: BadRows, path: Path) -> None:
    """Writes one row per reason: file, row, column, found, must."""
    records = [
        {"file": file} | bad._asdict()
        for (file, _), rows in sorted(bad_rows.items())
        for bad in rows
    ]
    names = ("file", *BadRow._fields)
    schema = pa.schema([(name, pa.int64() if name == "row" else pa.string()) for name in names])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as scratch:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), scratch)
