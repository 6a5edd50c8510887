"""What happens to a bad row: refuse it by name, or leave it out and count it."""

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

ROW = "row"
"""Column of a raw frame with each row's number in its file, from 0, header not counted."""


@dataclass
class RowFilter:
    """The policy for bad rows, and what was met.

    `fail` raises on the first bad row. `skip` leaves bad rows out; `excluded` then says why and how
    many, `examples` the first of each. Rows that a source leaves out by a rule of its own
    (`exclude`) are counted there too, whatever the policy.
    """

    policy: Literal["fail", "skip"] = "fail"
    excluded: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def keep(
        self,
        frame: pl.DataFrame,
        bad: pl.Series,
        values: pl.Series,
        where: str,
        must: str,
        advice: str,
    ) -> pl.DataFrame:
        """The rows of `frame` where `bad` is false; null counts as bad.

        Raises:
            ValueError: a row is bad and the policy is `fail`.
        """
        bad = bad.fill_null(value=True)
        count = int(bad.sum())
        if not count:
            return frame
        sentence = bad_row(bad, values, where, must, advice, frame.get_column(ROW, default=None))
        if self.policy == "fail":
            raise ValueError(sentence)
        self._count(f"{where}: column {values.name!r} must {must}", count, sentence)
        return frame.filter(~bad)

    def exclude(self, frame: pl.DataFrame, out: pl.Series, reason: str) -> pl.DataFrame:
        """The rows of `frame` where `out` is false; the others are counted under `reason`."""
        out = out.fill_null(value=True)
        count = int(out.sum())
        if not count:
            return frame
        self._count(reason, count)
        return frame.filter(~out)

    def unreadable(self, count: int, reason: str, sentence: str) -> None:
        """Rows of which no frame could be made.

        Raises:
            ValueError: the policy is `fail`.
        """
        if self.policy == "fail":
            raise ValueError(sentence)
        self._count(reason, count, sentence)

    def _count(self, reason: str, count: int, example: str = "") -> None:
        self.excluded[reason] = self.excluded.get(reason, 0) + count
        if example:
            self.examples.setdefault(reason, example)


def bad_row(
    bad: pl.Series,
    values: pl.Series,
    where: str,
    must: str,
    advice: str,
    rows: pl.Series | None = None,
) -> str:
    """One sentence about the first row where `bad` is true.

    Example:
        >>> bad = pl.Series([False, True])
        >>> bad_row(bad, pl.Series("age", [3, -1]), "users.csv", "be at least 0", "Mend it.")
        "users.csv: column 'age' must be at least 0; found -1 in row 1 (1 such row of 2). Mend it."
    """
    at = int(bad.arg_max() or 0)
    row = at if rows is None else rows[at]
    count = int(bad.sum())
    such = f"{count} such row{'s' if count > 1 else ''} of {len(values)}"
    return (
        f"{where}: column {values.name!r} must {must}; found {values[at]!r} in row {row} "
        f"({such}). {advice}"
    )


def refuse(bad: pl.Series, values: pl.Series, where: str, must: str, advice: str) -> None:
    """Raise one sentence about the first row where `bad` is true or null, if there is one.

    Raises:
        ValueError: a row is bad.
    """
    mask = bad.fill_null(value=True)
    if mask.any():
        raise ValueError(bad_row(mask, values, where, must, advice))
