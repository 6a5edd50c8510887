"""Policy for bad rows of raw data: refuse the first one, or leave them out and count them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from msrec.data.io.paths import AnyPath

ROW = "row"
"""Column of a raw frame with each row's number in its file, from 0, the header not counted."""
SHOWN_CHARS = 80
"""Length to which an error message cuts a bad value."""


@dataclass
class RowFilter:
    """Applies the policy for bad rows, and counts the rows that are left out.

    The policy `fail` raises an error about the first bad row; `skip` leaves bad rows out.
    `excluded` counts all rows that were left out, by reason; `examples` has a sentence about the
    first bad row of each reason. `replaced` counts the texts with the replacement character U+FFFD,
    by file and column.

    Example:
        >>> users, is_age = pl.DataFrame({"age": [3, -1]}), pl.col("age") >= 0
        >>> row_filter = RowFilter("skip")
        >>> row_filter.keep(users, "age", is_age, "u.csv", "be at least 0").height
        1
        >>> list(row_filter.examples.values())
        ["u.csv: column 'age' must be at least 0; found -1 in row 1 (1 such row of 2 checked). \
Correct it."]
    """

    policy: Literal["fail", "skip"] = "fail"
    excluded: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)

    def keep(
        self,
        frame: pl.DataFrame,
        column: str,
        good: pl.Expr,
        location: AnyPath | str,
        must: str,
        advice: str = "Correct it.",
    ) -> pl.DataFrame:
        """Returns the rows of `frame` where `good` is true; null counts as false.

        Args:
            frame: raw rows.
            column: the checked column; its first bad value is part of the message.
            good: condition on columns of `frame`.
            location: file of the rows.
            must: the condition in words, such as "be 0 or 1".
            advice: what to do, as a sentence.

        Raises:
            ValueError: a row is bad and the policy is `fail`.
        """
        bad = frame.select(~good.fill_null(value=False)).to_series()
        if not bad.any():
            return frame
        first = int(bad.arg_max() or 0)
        row = frame[ROW][first] if ROW in frame.columns else first
        value = repr(frame[column].slice(first, 1).to_list()[0])
        shown = value if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]}..."
        rule = f"{location}: column {column!r} must {must}"
        self._reject(rule, f"found {shown} in row {row}", int(bad.sum()), frame.height, advice)
        return frame.filter(~bad)

    def exclude(self, frame: pl.DataFrame, excluded: pl.Expr, reason: str) -> pl.DataFrame:
        """Returns the rows where `excluded` is false; counts the others under `reason`.

        This is for rows that a source leaves out by a rule, whatever the policy for bad rows.
        """
        kept = frame.filter(~excluded.fill_null(value=True))
        if kept.height < frame.height:
            self._count(reason, frame.height - kept.height)
        return kept

    def reject(self, rule: str, problems: Sequence[str], num_rows: int, advice: str) -> None:
        """Applies the policy to rows that cannot be parsed.

        Args:
            rule: what each row of the file must be, with the name of the file.
            problems: one for each bad row, in their order; may be empty.
            num_rows: number of rows that were parsed, good or bad.
            advice: what to do, as a sentence.

        Raises:
            ValueError: a row is bad and the policy is `fail`.
        """
        if problems:
            self._reject(rule, problems[0], len(problems), num_rows, advice)

    def count_replaced(self, frame: pl.DataFrame, location: AnyPath | str) -> None:
        """Counts the texts in which U+FFFD stands for bytes or surrogates that are no character."""
        for column in frame.select(pl.col(pl.String)):
            count = int(column.str.contains("\ufffd", literal=True).sum())
            if count:
                name = f"{location}: {column.name}"
                self.replaced[name] = self.replaced.get(name, 0) + count

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Counts, by the names of the attributes."""
        return {"excluded": self.excluded, "examples": self.examples, "replaced": self.replaced}

    def merge(self, other: "RowFilter") -> None:
        """Adds the counts and the first examples of another filter."""
        for mine, counts in ((self.excluded, other.excluded), (self.replaced, other.replaced)):
            for name, count in counts.items():
                mine[name] = mine.get(name, 0) + count
        for rule, sentence in other.examples.items():
            self.examples.setdefault(rule, sentence)

    def _reject(self, rule: str, problem: str, count: int, num_rows: int, advice: str) -> None:
        such = f"{count} such row{'s' if count > 1 else ''} of {num_rows} checked"
        sentence = f"{rule}; {problem} ({such}). {advice}"
        if self.policy == "fail":
            raise ValueError(sentence)
        self._count(rule, count)
        self.examples.setdefault(rule, sentence)

    def _count(self, reason: str, count: int) -> None:
        self.excluded[reason] = self.excluded.get(reason, 0) + count


STRICT = RowFilter("fail")
"""Refuses every bad row."""
