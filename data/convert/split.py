"""Which split each row belongs to: random, by global time, by each user's last rows, or given."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.staging import StagedRows
from msrec.data.schema import SPLITS, Protocol, SplitRecord

TRAIN, VALID, TEST = range(3)
Parts = npt.NDArray[np.int8]
"""(rows,), 0 train, 1 valid, 2 test."""


@dataclass(frozen=True)
class SplitChoice:
    """How to divide the rows.

    `random`: whole rows, shuffled by `seed`. `time`: the oldest `fractions[0]` of the rows train.
    `user_last`: each user's last `last` rows are test and the `last` before them valid, or, without
    `last`, the last `fractions[2]` and the `fractions[1]` before. `given`: the column `column` of
    the interactions holds train, valid or test.
    """

    method: Literal["random", "time", "user_last", "given"] = "random"
    seed: int = 0
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    last: int | None = None
    column: str | None = None
    protocol: Protocol | None = None
    """Name of the protocol that this choice is, where it is one."""

    @classmethod
    def of(cls, protocol: Protocol, seed: int = 0) -> "SplitChoice":
        """The split of a protocol.

        `scenario-wise` is Scenario-Wise-Rec's (arXiv 2412.17374): random 8:1:1. `temporal` cuts
        global time 8:1:1. `per-user-last` tests on each user's last row and validates on the one
        before.

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
        """Refuse fractions that do not sum to 1."""
        if (
            len(self.fractions) != 3
            or min(self.fractions) < 0
            or abs(sum(self.fractions) - 1) > 1e-9
        ):
            raise ValueError(
                f"split fractions must be 3 numbers (train, valid, test) from 0 that sum to 1; "
                f"got {list(self.fractions)}. The usual is 0.8 0.1 0.1."
            )
        if self.last is not None and self.last < 1:
            raise ValueError(f"split last must be at least 1 row per user; got {self.last}.")
        if self.method == "given" and self.column is None:
            raise ValueError("a given split needs the column that says train, valid or test.")


def random_split(rows: int, seed: int, fractions: tuple[float, float, float]) -> Parts:
    """Shuffle the rows; the parts have `round(rows * fraction)` rows, the same for the same seed.

    Example:
        >>> np.bincount(random_split(100, seed=7, fractions=(0.8, 0.1, 0.1))).tolist()
        [80, 10, 10]
    """
    kind = np.uint32 if rows < 1 << 32 else np.uint64
    order = np.random.default_rng(seed).permutation(np.arange(rows, dtype=kind))
    first, second = _cuts(rows, fractions)
    parts = np.empty(rows, dtype=np.int8)
    parts[order[:first]] = TRAIN
    parts[order[first:second]] = VALID
    parts[order[second:]] = TEST
    return parts


def time_split(timestamp: npt.NDArray[np.int64], fractions: tuple[float, float, float]) -> Parts:
    """Cut global time; rows tied with the first row after a cut all go to the later side.

    Example:
        >>> time_split(np.array([5, 1, 2, 2, 3]), fractions=(0.4, 0.4, 0.2)).tolist()
        [2, 0, 1, 1, 1]
    """
    ordered = np.sort(timestamp)
    parts = np.zeros(len(timestamp), dtype=np.int8)
    for part, cut in zip((VALID, TEST), _cuts(len(ordered), fractions), strict=True):
        if cut < len(ordered):
            parts[timestamp >= ordered[cut]] = part
    return parts


def user_last_split(
    user: npt.NDArray[np.integer],
    timestamp: npt.NDArray[np.int64] | None,
    last: int | None = None,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Parts:
    """Each user's last rows are test, those before valid; a user's tied rows stay together.

    With `last`, a user of `2 * last` rows or fewer stays in training as a whole; without it a user
    gives `floor(rows * fraction)` rows, so that small users stay in training too. Rows of one user
    at one time go to the later side as a group (they are often one page of candidates), unless
    that leaves the user no training row: then all of the user's rows train.

    Example:
        >>> user_last_split(np.array([1, 1, 1, 2]), np.array([3, 1, 2, 9]), last=1).tolist()
        [2, 0, 1, 0]
    """
    clock = np.arange(len(user)) if timestamp is None else timestamp
    order = np.lexsort((clock, user))
    who, when = user[order], clock[order]
    _, first, inverse, rows = np.unique(
        who, return_index=True, return_inverse=True, return_counts=True
    )
    if last is None:
        num_test, num_valid = (np.floor(rows * f + 1e-9).astype(np.int64) for f in fractions[:0:-1])
    else:
        num_test = num_valid = np.where(rows > 2 * last, last, 0)
    tie_end = _last_of_ties(who, when) - first[inverse]
    is_test = tie_end >= (rows - num_test)[inverse]
    left = rows - np.bincount(inverse, weights=is_test, minlength=len(rows)).astype(np.int64)
    is_valid = ~is_test & (tie_end >= (left - num_valid)[inverse])
    train = left - np.bincount(inverse, weights=is_valid, minlength=len(rows)).astype(np.int64)
    ordered = np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN))
    parts = np.empty(len(user), dtype=np.int8)
    parts[order] = np.where((train == 0)[inverse], TRAIN, ordered)
    return parts


def _last_of_ties(
    who: npt.NDArray[np.integer], when: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Position of the last row with the same user and time; rows are sorted by both."""
    ends = np.flatnonzero(np.append((np.diff(who) != 0) | (np.diff(when) != 0), True))
    return np.repeat(ends, np.diff(ends, prepend=-1))


def given_split(stage: StagedRows, column: str) -> Parts:
    """Read the part from a column of `train`, `valid` and `test`.

    Raises:
        ValueError: another word or a null; names file, row and column.
    """
    codes = dict(zip(SPLITS, (TRAIN, VALID, TEST), strict=True))
    parts = np.empty(len(stage), dtype=np.int8)
    for rows, frame in stage.chunks([column]):
        names = frame[column].cast(pl.String)
        found = names.replace_strict(codes, default=None, return_dtype=pl.Int8)
        if found.null_count():
            row = int(found.is_null().arg_max() or 0)
            raise ValueError(
                f"{stage.place(rows.start + row)}: column {column!r} must hold train, valid or "
                f"test; found {names[row]!r}. Correct it or choose another split."
            )
        parts[rows] = found.to_numpy()
    return parts


def split_rows(
    stage: StagedRows, choice: SplitChoice, where: str, parts: Parts | None = None
) -> tuple[Parts, SplitRecord]:
    """Divide the rows of a stage and record how.

    Args:
        stage: the rows.
        choice: how to divide them.
        where: the interactions file, for error messages.
        parts: (rows,), filled and returned; a new array if None.

    Raises:
        ValueError: the method needs a clock or a column that is not there, or a part is empty.
    """
    found = _parts(stage, choice, where)
    if parts is None:
        parts = found
    parts[:] = found
    counts = np.bincount(parts, minlength=len(SPLITS))
    for name, count in zip(SPLITS, counts, strict=True):
        if not count:
            raise ValueError(
                f"{where}: every split must have rows; {name} has none of the {len(parts)} rows "
                f"with method {choice.method!r}. Choose other fractions or another method."
            )
    clock = stage.timestamp
    until = None if clock is None else int(clock.max(where=parts == TRAIN, initial=clock.min()))
    by_share = choice.method in ("random", "time") or (
        choice.method == "user_last" and choice.last is None
    )
    return parts, SplitRecord(
        protocol=choice.protocol,
        method=choice.method,
        seed=choice.seed if choice.method == "random" else None,
        fractions=list(choice.fractions) if by_share else [],
        last=choice.last if choice.method == "user_last" else None,
        train_until=until,
    )


def _parts(stage: StagedRows, choice: SplitChoice, where: str) -> Parts:
    if choice.method == "random":
        return random_split(len(stage), choice.seed, choice.fractions)
    if choice.method == "user_last":
        return _user_last_parts(stage, choice)
    if choice.method == "time":
        if stage.timestamp is None:
            raise ValueError(
                f"{where}: a split by time needs a timestamp column; found none. Use random."
            )
        return time_split(stage.timestamp, choice.fractions)
    assert choice.column is not None
    return given_split(stage, choice.column)


def user_shares(stage: StagedRows, rows: int = 1 << 22) -> Iterator[npt.NDArray[np.int64]]:
    """Rows in shares of about so many, all rows of a user in one share; ascending in each."""
    count = -(-len(stage) // rows)
    for number in range(count):
        yield np.flatnonzero(stage.user % count == number)


def _user_last_parts(stage: StagedRows, choice: SplitChoice) -> Parts:
    parts = np.empty(len(stage), dtype=np.int8)
    for rows in user_shares(stage):
        clock = rows if stage.timestamp is None else stage.timestamp[rows]
        parts[rows] = user_last_split(stage.user[rows], clock, choice.last, choice.fractions)
    return parts


def _cuts(rows: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    first = round(rows * fractions[0])
    return first, max(first, rows - round(rows * fractions[2]))
