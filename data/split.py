"""Which split each row belongs to: random, by global time, by each user's last rows, or given."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.schema import SPLITS, SplitRecord

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


def random_split(rows: int, seed: int, fractions: tuple[float, float, float]) -> Parts:
    """Shuffle the rows; the parts have `round(rows * fraction)` rows, the same for the same seed.

    Example:
        >>> np.bincount(random_split(100, seed=7, fractions=(0.8, 0.1, 0.1))).tolist()
        [80, 10, 10]
    """
    order = np.random.default_rng(seed).permutation(rows)
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


def given_split(names: pl.Series, where: str) -> Parts:
    """Read the part from a column of `train`, `valid` and `test`.

    Raises:
        ValueError: another word or a null; names file, column and row.
    """
    known = names.cast(pl.String).is_in(list(SPLITS)).fill_null(value=False).to_numpy()
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"{where}: column {names.name!r} must hold train, valid or test; found "
            f"{names[row]!r} in row {row}. Correct it or choose another split."
        )
    codes = names.cast(pl.String).replace_strict(list(SPLITS), [TRAIN, VALID, TEST])
    return codes.cast(pl.Int8).to_numpy()


def split_rows(
    interactions: pl.DataFrame, choice: SplitChoice, timestamp: str | None, where: str
) -> tuple[Parts, SplitRecord]:
    """Divide the rows of an interactions frame (column `user_key`) and record how.

    Raises:
        ValueError: the method needs a clock or a column that is not there, or a part is empty.
    """
    clock = interactions[timestamp].to_numpy() if timestamp else None
    parts = _parts(interactions, choice, clock, where)
    for part, name in enumerate(SPLITS):
        if not (parts == part).any():
            raise ValueError(
                f"{where}: every split must have rows; {name} has none of the {len(parts)} rows "
                f"with method {choice.method!r}. Choose other fractions or another method."
            )
    until = None if clock is None else int(clock[parts == TRAIN].max())
    by_share = choice.method in ("random", "time") or (
        choice.method == "user_last" and choice.last is None
    )
    return parts, SplitRecord(
        method=choice.method,
        seed=choice.seed if choice.method == "random" else None,
        fractions=list(choice.fractions) if by_share else [],
        train_until=until,
    )


def _parts(
    interactions: pl.DataFrame,
    choice: SplitChoice,
    clock: npt.NDArray[np.int64] | None,
    where: str,
) -> Parts:
    if choice.method == "random":
        return random_split(len(interactions), choice.seed, choice.fractions)
    if choice.method == "user_last":
        user = interactions["user_key"].rank("dense").to_numpy()
        return user_last_split(user, clock, choice.last, choice.fractions)
    if choice.method == "time":
        if clock is None:
            raise ValueError(
                f"{where}: a split by time needs a timestamp column; found none. Use random."
            )
        return time_split(clock, choice.fractions)
    if choice.column is None or choice.column not in interactions.columns:
        raise ValueError(
            f"{where}: a given split needs a column that says train, valid or test; got "
            f"{choice.column!r}, found columns {', '.join(interactions.columns)}."
        )
    return given_split(interactions[choice.column], where)


def _cuts(rows: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    first = round(rows * fractions[0])
    return first, max(first, rows - round(rows * fractions[2]))
