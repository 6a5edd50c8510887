"""Whether two folders of predictions hold the same rows, in any order and any number of parts."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msrec.data.features.splitmix import splitmix64
from msrec.launch.evaluation.scored_rows.parts import Parts
from msrec.launch.evaluation.scored_rows.predictions import PIECE_ROWS, key_ids

Pair = tuple[Parts, Parts]
Labels = Mapping[str, tuple[int, int]]
"""Label -> its number in each of two folders."""


def check_same_rows(names: tuple[str, str], pair: Pair, labels: Labels) -> None:
    """Compares row ids, users, scenarios, labels and weights, without the rows in memory.

    Each column of a folder gives a sum of hashes of row id and value, which differs if a value
    does, but for one case in 2^64.

    Args:
        names: of the runs, for the error.
        pair: the folders.
        labels: those that are compared.

    Raises:
        ValueError: a value differs. The message has the column and the first row.
    """
    sums = [_sums(parts, _numbers(labels, side)) for side, parts in enumerate(pair)]
    for column in sums[0]:
        if sums[0][column] != sums[1][column]:
            raise ValueError(
                f"{names[0]} and {names[1]} must have scored the same rows; column "
                f"{_difference(pair, labels, column)}. Evaluate both on the same data and split."
            )


def _numbers(labels: Labels, side: int) -> dict[str, int]:
    return {name: numbers[side] for name, numbers in labels.items()}


def _pieces(parts: Parts, labels: Mapping[str, int]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the compared columns of some rows at a time."""
    columns = {name: parts.column_names(number) for name, number in labels.items()}
    names = {column for c in columns.values() for n, column in c.items() if "label" in n}
    for _, piece in parts.read(["row_id", "user", "scenario", "weight", *names], PIECE_ROWS):
        values = {
            "row_id": piece["row_id"].to_numpy(),
            "user": key_ids(piece["user"].combine_chunks()),
            "scenario": piece["scenario"].to_numpy(),
        }
        for name, of_label in columns.items():
            weight = piece["weight"].to_numpy().astype(np.float32)
            if "label_weight" in of_label:
                weight = weight * piece[of_label["label_weight"]].to_numpy().astype(np.float32)
            suffix = f" of {name}" if len(labels) > 1 else ""
            values[f"label{suffix}"] = piece[of_label["label"]].to_numpy().astype(np.float32)
            values[f"weight{suffix}"] = weight
        yield values


def _sums(parts: Parts, labels: Mapping[str, int]) -> dict[str, int]:
    """Returns the sum of hashes of each column."""
    sums: dict[str, int] = {}
    for values in _pieces(parts, labels):
        for name, column in values.items():
            rows = splitmix64(values["row_id"], zlib.crc32(name.encode()))
            hashes = splitmix64((rows ^ _bits(column)).view(np.int64), 0)
            sums[name] = (sums.get(name, 0) + int(hashes.sum(dtype=np.uint64))) % 2**64
    return sums


def _bits(column: NDArray[Any]) -> NDArray[np.uint64]:
    """Returns 64 bits of each value, the same for all NaN and for both zeros."""
    if column.dtype.kind == "f":
        column = np.where(np.isnan(column), np.float32(np.nan), column + np.float32(0))
        column = column.astype(np.float32).view(np.uint32)
    return column.astype(np.uint64)


def _difference(pair: Pair, labels: Labels, column: str) -> str:
    """Describes how a column differs; reads it of both folders into memory."""
    (ids, values), (other_ids, others) = (
        _column(parts, _numbers(labels, side), column) for side, parts in enumerate(pair)
    )
    if not np.array_equal(ids, other_ids):
        row = int(np.setxor1d(ids, other_ids)[0])
        return f"row_id differs: only one of them has row_id {row}"
    differs = _bits(values) != _bits(others)
    at = int(np.argmax(differs))
    both = "" if column == "user" else f": {values[at]} and {others[at]}"
    return f"{column} differs in {int(differs.sum()):,} rows, first in row_id {ids[at]}{both}"


def _column(
    parts: Parts, labels: Mapping[str, int], name: str
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Returns the row ids of a folder in rising order, and a column."""
    pieces = [(values["row_id"], values[name]) for values in _pieces(parts, labels)]
    ids, values = (np.concatenate(each) for each in zip(*pieces, strict=True))
    order = np.argsort(ids)
    return ids[order], values[order]
