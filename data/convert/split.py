"""Division of rows into train, valid and test: random, by time, by users' last rows, or given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.staging import StagedRows
from msrec.data.schema import SPLITS, Protocol, SplitRecord

TRAIN, VALID, TEST = range(3)
SplitCodes = npt.NDArray[np.int8]
"""(rows,), the split of each row: 0 train, 1 valid, 2 test."""
Method = Literal["random", "time", "user_last", "given"]
Fractions = tuple[float, float, float]
"""Shares of train, valid and test."""
FRACTIONS: Fractions = (0.8, 0.1, 0.1)
SHARE_ROWS = 1 << 22
"""Rows that are divided or counted at a time, all of a user together."""


@dataclass(frozen=True)
class SplitChoice:
    """Method by which rows are divided, and its options.

    `random`: rows shuffled by `seed`. `time`: the oldest `fractions[0]` of the rows train.
    `user_last`: of each user, the last `last` rows are test and the `last` before them valid;
    without `last`, the last `fractions[2]` and the `fractions[1]` before them. `given`: the column
    `column` of the interactions holds train, valid or test.

    Raises:
        ValueError: the fractions do not sum to 1, `last` is below 1, `given` has no column, or the
            method does not use an option.
    """

    method: Method = "random"
    seed: int = 0
    fractions: Fractions = FRACTIONS
    last: int | None = None
    column: str | None = None
    protocol: Protocol | None = None
    """Name of the protocol that this choice follows, if any."""

    @classmethod
    def of(cls, protocol: Protocol, seed: int = 0) -> "SplitChoice":
        """Returns the split of a protocol.

        `scenario-wise` is that of Scenario-Wise-Rec (arXiv 2412.17374): random 8:1:1. `temporal`
        cuts global time 8:1:1. `per-user-last` tests on each user's last row and validates on the
        row before it.

        Example:
            >>> SplitChoice.of("per-user-last").last
            1
        """
        choices = {
            "scenario-wise": cls("random", seed, protocol=protocol),
            "temporal": cls("time", seed, protocol=protocol),
            "per-user-last": cls("user_last", seed, last=1, protocol=protocol),
        }
        return choices[protocol]

    def __post_init__(self) -> None:
        fractions = self.fractions
        if self.seed < 0:
            raise ValueError(f"split seed must be at least 0; got {self.seed}.")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(
                "split fractions must be 3 numbers (train, valid, test), none below 0, that sum to "
                f"1; got {list(fractions)}. The usual is 0.8 0.1 0.1."
            )
        if self.last is not None and self.last < 1:
            raise ValueError(f"split last must be at least 1 row per user; got {self.last}.")
        if self.method == "given" and self.column is None:
            raise ValueError("a given split needs the column that says train, valid or test.")
        for option, value, method in (
            ("last", self.last, "user_last"),
            ("column", self.column, "given"),
        ):
            if value is not None and self.method != method:
                raise ValueError(
                    f"the option {option} is for the split {method}; got {value!r} with the split "
                    f"{self.method}. Choose that split, or leave the option out."
                )
        if fractions != FRACTIONS and not self.uses_fractions:
            raise ValueError(
                f"fractions are for other splits than {self.method}"
                f"{'' if self.last is None else ' with last'}, which does not use them; got "
                f"{list(fractions)}. Leave them out."
            )

    @property
    def uses_fractions(self) -> bool:
        """Whether the sizes of the splits follow from `fractions`."""
        if self.method == "user_last":
            return self.last is None
        return self.method != "given"


def random_split(rows: int, seed: int, fractions: Fractions) -> SplitCodes:
    """Shuffles the rows by a seed; each split has about `rows * fraction` rows.

    Example:
        >>> np.bincount(random_split(100, seed=7, fractions=(0.8, 0.1, 0.1))).tolist()
        [80, 10, 10]
    """
    kind = np.uint32 if rows < 1 << 32 else np.uint64
    order = np.random.default_rng(seed).permutation(np.arange(rows, dtype=kind))
    first, second = split_cuts(rows, fractions)
    codes = np.empty(rows, dtype=np.int8)
    codes[order[:first]] = TRAIN
    codes[order[first:second]] = VALID
    codes[order[second:]] = TEST
    return codes


def time_split(timestamp: npt.NDArray[np.int64], fractions: Fractions) -> SplitCodes:
    """Cuts global time; rows as old as the first row after a cut all go to the later split.

    Example:
        >>> time_split(np.array([5, 1, 2, 2, 3]), fractions=(0.4, 0.4, 0.2)).tolist()
        [2, 0, 1, 1, 1]
    """
    ordered = np.sort(timestamp)
    cuts = [int(ordered[cut]) for cut in split_cuts(len(ordered), fractions) if cut < len(ordered)]
    return codes_by_time(timestamp, cuts)


def codes_by_time(timestamp: npt.NDArray[np.int64], cuts: Sequence[int]) -> SplitCodes:
    """Returns the split of each row; `cuts` are the first times of valid and test, if they exist.

    Example:
        >>> codes_by_time(np.array([5, 1, 2, 2, 3]), [2, 5]).tolist()
        [2, 0, 1, 1, 1]
    """
    codes = np.full(len(timestamp), TRAIN, dtype=np.int8)
    for code, cut in zip((VALID, TEST), cuts, strict=False):
        codes[timestamp >= cut] = code
    return codes


def user_last_split(
    user: npt.NDArray[np.integer],
    timestamp: npt.NDArray[np.int64] | None,
    last: int | None = None,
    fractions: Fractions = FRACTIONS,
) -> SplitCodes:
    """Makes each user's last rows test and those before them valid.

    With `last`, a user of `2 * last` rows or fewer stays in training as a whole. Without it, a user
    gives `floor(rows * fraction)` rows, so that small users stay in training too. Rows of a user
    with the same time are often one page of candidates. They go to the later split together, unless
    this leaves the user no training row: then all rows of the user train.

    Example:
        >>> user_last_split(np.array([1, 1, 1, 2]), np.array([3, 1, 2, 9]), last=1).tolist()
        [2, 0, 1, 0]
    """
    clock = np.arange(len(user)) if timestamp is None else timestamp
    order = np.lexsort((clock, user))
    sorted_user, sorted_clock = user[order], clock[order]
    _, first, inverse, rows = np.unique(
        sorted_user, return_index=True, return_inverse=True, return_counts=True
    )
    if last is None:
        num_valid, num_test = (np.floor(rows * f + 1e-9).astype(np.int64) for f in fractions[1:])
    else:
        num_valid = num_test = np.where(rows > 2 * last, last, 0)
    # Position among the user's rows of the last row with the same time: it decides for all of them.
    is_end = np.append((np.diff(sorted_user) != 0) | (np.diff(sorted_clock) != 0), True)
    ends = np.flatnonzero(is_end)
    position = np.repeat(ends, np.diff(ends, prepend=-1)) - first[inverse]
    is_test = position >= (rows - num_test)[inverse]
    not_test = rows - np.bincount(inverse, is_test, minlength=len(rows)).astype(np.int64)
    is_valid = ~is_test & (position >= (not_test - num_valid)[inverse])
    num_train = not_test - np.bincount(inverse, is_valid, minlength=len(rows)).astype(np.int64)
    sorted_codes = np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN))
    codes = np.empty(len(user), dtype=np.int8)
    codes[order] = np.where((num_train == 0)[inverse], TRAIN, sorted_codes)
    return codes


def given_split(stage: StagedRows, column: str) -> SplitCodes:
    """Reads the split from a column of `train`, `valid` and `test`.

    Raises:
        ValueError: a value is another word or null; names file, row and column.
    """
    codes = np.empty(len(stage), dtype=np.int8)
    for rows, frame in stage.chunks([column]):
        codes[rows] = codes_by_name(frame[column], partial(_location, stage, rows.start))
    return codes


def codes_by_name(values: pl.Series, location: Callable[[int], str]) -> SplitCodes:
    """Returns the split that each row names; `location` says where the row of a position is.

    Raises:
        ValueError: a value is another word or null; names file, row and column.
    """
    code_of = {split: code for code, split in enumerate(SPLITS)}
    names = values.cast(pl.String)
    codes = names.replace_strict(code_of, default=None, return_dtype=pl.Int8)
    if codes.null_count():
        row = int(codes.is_null().arg_max() or 0)
        raise ValueError(
            f"{location(row)}: column {values.name!r} must hold train, valid or test; found "
            f"{names[row]!r}. Correct it or choose another split."
        )
    return codes.to_numpy()


def _location(stage: StagedRows, start: int, row: int) -> str:
    return stage.location(start + row)


def split_rows(
    stage: StagedRows, choice: SplitChoice, location: str
) -> tuple[SplitCodes, SplitRecord]:
    """Returns the split of each row, and the record of how they were divided.

    Raises:
        ValueError: the method needs a timestamp or a column that does not exist, or a split is
            empty.
    """
    codes = _split_codes(stage, choice, location)
    counts = np.bincount(codes, minlength=len(SPLITS))
    clock = stage.timestamp
    until = None if clock is None else int(clock.max(where=codes == TRAIN, initial=clock.min()))
    return codes, split_record(choice, counts.tolist(), until, location)


def split_record(
    choice: SplitChoice, counts: Sequence[int], until: int | None, location: str
) -> SplitRecord:
    """Returns the record of a division; `until` is the newest time of a training row.

    Raises:
        ValueError: a split is empty.
    """
    for split, count in zip(SPLITS, counts, strict=True):
        if not count:
            raise ValueError(
                f"{location}: every split must have rows; {split} has none of the {sum(counts)} "
                f"rows with method {choice.method!r}. Choose other fractions or another method."
            )
    return SplitRecord(
        protocol=choice.protocol,
        method=choice.method,
        seed=choice.seed if choice.method == "random" else None,
        fractions=list(choice.fractions) if choice.uses_fractions else [],
        last=choice.last if choice.method == "user_last" else None,
        train_until=until,
    )


def _split_codes(stage: StagedRows, choice: SplitChoice, location: str) -> SplitCodes:
    if choice.method == "random":
        return random_split(len(stage), choice.seed, choice.fractions)
    if choice.method == "user_last":
        codes = np.empty(len(stage), dtype=np.int8)
        for rows in user_shares(stage):
            clock = rows if stage.timestamp is None else stage.timestamp[rows]
            codes[rows] = user_last_split(stage.user[rows], clock, choice.last, choice.fractions)
        return codes
    if choice.method == "time":
        require_time(stage.timestamp is not None, location)
        assert stage.timestamp is not None
        return time_split(stage.timestamp, choice.fractions)
    assert choice.column is not None
    return given_split(stage, choice.column)


def user_shares(stage: StagedRows, rows: int = SHARE_ROWS) -> Iterator[npt.NDArray[np.int64]]:
    """Yields row numbers, ascending, in shares of about `rows` that hold whole users."""
    num_shares = -(-len(stage) // rows)
    for share in range(num_shares):
        yield np.flatnonzero(stage.user % num_shares == share)


def require_time(has_time: bool, location: str) -> None:
    """Refuses a split by time of rows without timestamps.

    Raises:
        ValueError: there are none.
    """
    if not has_time:
        raise ValueError(
            f"{location}: a split by time needs a timestamp column; found none. Use random."
        )


def split_cuts(rows: int, fractions: Fractions) -> tuple[int, int]:
    """Returns the first row of valid and of test."""
    first = round(rows * fractions[0])
    return first, max(first, rows - round(rows * fractions[2]))
