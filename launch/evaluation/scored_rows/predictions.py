"""The rows of a folder of predictions in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msrec.data.features.hashed_values import text_hashes
from msrec.launch.evaluation.scored_rows.commit import COMBINED, IMPRESSION, Commit, load_commit
from msrec.launch.evaluation.scored_rows.parts import Parts, RowCheck

ROWS_IN_MEMORY = 1 << 23
"""Predictions up to which all are read into memory, in about 130 bytes per row with the metrics."""
PIECE_ROWS = 1 << 20


class LabelRows(NamedTuple):
    """Rows of a label.

    Shape:
        label: (N,), float32, NaN where it is missing.
        weight: (N,), float32, the row's weight times that of the label in the row.
        score: (N,), float32; a probability, or a value in the unit of a regression label.
        truth: (N,), float32, the best possible score; None if it is unknown.
    """

    label: NDArray[np.float32]
    weight: NDArray[np.float32]
    score: NDArray[np.float32]
    truth: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Predictions:
    """The rows of all parts, sorted by row_id: their distribution over parts does not matter.

    Shape:
        row_id: (N,), int64, each of 0..N-1 once, except excluded rows.
        scenario: (N,), int64.
        user: (N,), int64, a code per user in the order of first appearance, not the raw key.
        user_ids: (U,), uint64, `key_ids` of the key of each code.
        labels: the rows of each label.
        impression: (N,), int64; None if it is unknown.
        combined: (N,), float32, the combined score; None without a formula.
    """

    commit: Commit
    row_id: NDArray[np.int64]
    scenario: NDArray[np.int64]
    user: NDArray[np.int64]
    user_ids: NDArray[np.uint64]
    labels: tuple[LabelRows, ...]
    impression: NDArray[np.int64] | None = None
    combined: NDArray[np.float32] | None = None

    @property
    def label(self) -> NDArray[np.float32]:
        """First label (N,)."""
        return self.labels[0].label

    @property
    def score(self) -> NDArray[np.float32]:
        """Score of the first label (N,)."""
        return self.labels[0].score


def sampling_step(folder: Path) -> int:
    """Returns the step in row ids by which a sample of `folder` fits into memory; 1 means all."""
    return -(-load_commit(folder).rows // ROWS_IN_MEMORY)


def load_predictions(folder: Path | str, step: int = 1) -> Predictions:
    """Reads every part and checks that together they hold the committed rows.

    Args:
        folder: of the predictions.
        step: keeps the rows whose id is a multiple of it; the others are checked only.

    Raises:
        FileNotFoundError: the folder is not complete or has no parts.
        ValueError: a part cannot be read, lacks a column or holds a null or NaN; rows are missing
            or duplicated. The message names the part and the row_id.
    """
    parts = Parts.open(Path(folder))
    check, tables = RowCheck(parts), []
    for path, part in parts.read(rows_at_once=None if step == 1 else PIECE_ROWS):
        row_id = part["row_id"].to_numpy()
        check.add(path, row_id)
        tables.append(part if step == 1 else part.filter(pa.array(row_id % step == 0)))
    check.finish()
    table = pa.concat_tables(tables, promote_options="permissive")
    row_id = table["row_id"].to_numpy().astype(np.int64, copy=False)
    positions = _sorted_positions(row_id, parts.commit.rows)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return _moved(table[name].to_numpy().astype(dtype, copy=False), positions)

    def optional(name: str | None, dtype: type[np.generic]) -> NDArray[Any] | None:
        return column(name, dtype) if name and name in table.column_names else None

    weight = column("weight", np.float32)

    def label_rows(number: int) -> LabelRows:
        names = parts.column_names(number)
        of_label = optional(names.get("label_weight"), np.float32)
        return LabelRows(
            label=column(names["label"], np.float32),
            weight=weight if of_label is None else weight * of_label,
            score=column(names["score"], np.float32),
            truth=optional(names.get("truth"), np.float32),
        )

    codes, ids = user_codes(table["user"])
    user, code_of = _in_order_of_appearance(_moved(codes, positions))
    return Predictions(
        commit=parts.commit,
        row_id=_moved(row_id, positions),
        scenario=column("scenario", np.int64),
        user=user,
        user_ids=ids[code_of],
        labels=tuple(label_rows(number) for number in range(parts.commit.num_labels)),
        impression=optional(IMPRESSION, np.int64),
        combined=optional(COMBINED, np.float32),
    )


def _sorted_positions(row_id: NDArray[np.int64], num_rows: int) -> NDArray[np.int64] | None:
    """Returns the position of each row after sorting by row_id (N,); None if already sorted."""
    if (row_id[1:] > row_id[:-1]).all():
        return None
    # Row ids are unique and dense, so that counting the smaller ones replaces a sort.
    present = np.zeros(num_rows, np.bool_)
    present[row_id] = True
    positions: NDArray[np.int64] = (np.cumsum(present) - 1)[row_id]
    return positions


def _moved(values: NDArray[Any], positions: NDArray[np.int64] | None) -> NDArray[Any]:
    if positions is None:
        return values
    moved = np.empty_like(values)
    moved[positions] = values
    return moved


def user_codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns a code from 0 for each raw key (integer or string), and the id of each code's key.

    Shape:
        returns: (N,), and (U,), where U may count keys without rows.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.unify_dictionaries().combine_chunks()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    users: NDArray[np.int64] = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return users, key_ids(codes.dictionary)


def key_ids(keys: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Returns a number for each raw key, (n,): an integer is its own, a text has its hash."""
    if pa.types.is_integer(keys.type):
        ids: NDArray[np.uint64] = keys.to_numpy().astype(np.uint64)
        return ids
    return text_hashes(keys, 1)[:, 0]


def _in_order_of_appearance(
    codes: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the same users, numbered by their first row, and the code of each number."""
    num_rows = len(codes)
    first_row = np.full(int(codes.max(initial=-1)) + 1, num_rows)
    first_row[codes[::-1]] = np.arange(num_rows)[::-1]  # the last write, of the first row, stays
    order = np.argsort(first_row, kind="stable")
    number = np.empty_like(first_row)
    number[order] = np.arange(len(first_row))
    return number[codes], order
