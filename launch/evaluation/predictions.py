"""Reads a committed folder of predictions and checks it as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import FolderKind
from msrec.data.io.parquet_files import named_errors
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.schema import Split
from msrec.model.score_head import COMBINED

COMMIT_FILE = "_COMMIT"
PREDICTIONS = FolderKind(
    "a folder of predictions",
    None,
    ("part-*.parquet", COMMIT_FILE, "results.json", "quarantine/*.parquet"),
)
COLUMNS = ("row_id", "scenario", "user", "label", "weight", "score")
"""Columns of every folder of predictions, with those of the first label."""
TRUTH = "p_click"
"""Optional column of the best possible score of the first label, known for simulated data; in a
dataset and in predictions."""
IMPRESSION = "impression"
"""Optional column of the id of the impression."""
INTEGERS = ("row_id", "scenario", IMPRESSION)


def label_column(name: str, number: int) -> str:
    """Returns the column of a label, by its number among the labels of a run.

    Example:
        >>> [label_column("score", number) for number in range(3)]
        ['score', 'score_1', 'score_2']
        >>> label_column("label_weight", 0)
        'label_weight_0'
        >>> label_column("truth", 0), label_column("truth", 1)
        ('p_click', 'truth_1')
    """
    if number == 0 and name != "label_weight":
        return TRUTH if name == "truth" else name
    return f"{name}_{number}"


def truth_name(labels: Sequence[str], label: str) -> str:
    """Returns the column of a dataset with the best possible scores of a label, if it has one.

    A true probability, or the expected value of a regression label; known for simulated data.

    Example:
        >>> truth_name(["click", "like"], "click"), truth_name(["click", "like"], "like")
        ('p_click', 'truth_like')
    """
    return TRUTH if label == labels[0] else f"truth_{label}"


class Commit(StrictModel):
    """Contents of `_COMMIT`, the marker that is written when every part is complete."""

    rows: int
    split: Split
    checkpoint: str
    dataset: str
    left_out: int = 0
    """Number of these rows that broke the schema and were excluded."""
    reasons: dict[str, int] = {}
    """Reason -> number of rows excluded for it."""
    labels: list[str] = []
    """Labels in the order of their columns; empty in folders of an older version: one label."""
    combined: str | None = None
    """Formula of the combined score, if there is one."""
    calibration: str | None = None
    """Method by which the scores of binary labels were calibrated, if they were."""

    @property
    def num_labels(self) -> int:
        """Number of labels with scores."""
        return len(self.labels) or 1


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
        labels: the rows of each label.
        impression: (N,), int64; None if it is unknown.
        combined: (N,), float32, the combined score; None without a formula.
    """

    commit: Commit
    row_id: NDArray[np.int64]
    scenario: NDArray[np.int64]
    user: NDArray[np.int64]
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


def write_commit(folder: Path, commit: Commit) -> Path:
    """Marks a folder of predictions as complete, in one step."""
    return write_text(folder / COMMIT_FILE, commit.model_dump_json())


def load_commit(folder: Path) -> Commit:
    """Reads the marker of a complete folder.

    Raises:
        FileNotFoundError: there is no marker: prediction was killed or never ran.
        ValueError: the file does not hold what `write_commit` writes.
    """
    path = folder / COMMIT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: it marks predictions as complete. Run `msrec evaluate` again."
        )
    try:
        return Commit.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None


def load_predictions(folder: Path | str) -> Predictions:
    """Reads every part and checks that together they hold the committed rows.

    Raises:
        FileNotFoundError: the folder is not complete or has no parts.
        ValueError: a part cannot be read, lacks a column or holds a null or NaN; rows are missing
            or duplicated. The message names the part and the row_id.
    """
    folder = Path(folder)
    commit = load_commit(folder)
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} must hold part-RANK.parquet files; found none.")
    parts = [_read_part(path, commit) for path in paths]
    _check_same_columns(folder, parts)
    table = pa.concat_tables(parts, promote_options="permissive")
    row_id = table["row_id"].to_numpy().astype(np.int64, copy=False)
    _check_rows(folder, commit, row_id, [(p, len(t)) for p, t in zip(paths, parts, strict=True)])
    positions = _sorted_positions(row_id, commit.rows)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return _moved(table[name].to_numpy().astype(dtype, copy=False), positions)

    def optional(name: str, dtype: type[np.generic]) -> NDArray[Any] | None:
        return column(name, dtype) if name in table.column_names else None

    weight = column("weight", np.float32)

    def label_rows(number: int) -> LabelRows:
        of_label = optional(label_column("label_weight", number), np.float32)
        return LabelRows(
            label=column(label_column("label", number), np.float32),
            weight=weight if of_label is None else weight * of_label,
            score=column(label_column("score", number), np.float32),
            truth=optional(label_column("truth", number), np.float32),
        )

    return Predictions(
        commit=commit,
        row_id=_moved(row_id, positions),
        scenario=column("scenario", np.int64),
        user=_in_order_of_appearance(_moved(_user_codes(table["user"]), positions)),
        labels=tuple(label_rows(number) for number in range(commit.num_labels)),
        impression=optional(IMPRESSION, np.int64),
        combined=optional(COMBINED, np.float32),
    )


def _check_same_columns(folder: Path, parts: list[pa.Table]) -> None:
    every = dict.fromkeys(name for part in parts for name in part.column_names)
    for name in every:
        if any(name not in part.column_names for part in parts):
            raise ValueError(f"{folder}: column {name} must be in every part or in none.")


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


def _user_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns a code from 0 for each raw key, integer or string."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.unify_dictionaries().combine_chunks()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    users: NDArray[np.int64] = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return users


def _in_order_of_appearance(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the same users, numbered by their first row."""
    num_rows = len(codes)
    first_row = np.full(int(codes.max(initial=-1)) + 1, num_rows)
    first_row[codes[::-1]] = np.arange(num_rows)[::-1]  # the last write, of the first row, stays
    number = np.empty_like(first_row)
    number[np.argsort(first_row)] = np.arange(len(first_row))
    return number[codes]


def _read_part(path: Path, commit: Commit) -> pa.Table:
    labels = range(1, commit.num_labels)
    required = [*COLUMNS, *(label_column(name, t) for t in labels for name in ("label", "score"))]
    required += [COMBINED] if commit.combined else []
    numbers, names_of_label = range(commit.num_labels), ("label_weight", "truth")
    optional = [label_column(name, number) for name in names_of_label for number in numbers]
    optional.append(IMPRESSION)
    with named_errors(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in required if name not in names]
        if missing:
            raise ValueError(
                f"{path} must have the columns {', '.join(required)}; missing: "
                f"{', '.join(missing)}."
            )
        table = file.read([*required, *(name for name in optional if name in names)])
    labels_with_nan = {label_column("label", number) for number in range(commit.num_labels)}
    for name in table.column_names:
        _check_column(path, name, table, may_be_nan=name in labels_with_nan)
    return table


def _check_column(path: Path, name: str, table: pa.Table, *, may_be_nan: bool) -> None:
    column = table[name]
    is_float = pa.types.is_floating(column.type)
    if name in INTEGERS:
        if not pa.types.is_integer(column.type):
            raise ValueError(f"{path}: {name} must be an integer column; found {column.type}.")
    elif name != "user" and not is_float:
        raise ValueError(f"{path}: {name} must be a float column; found {column.type}.")
    bad = column.is_null(nan_is_null=is_float and not may_be_nan)
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        value = "NaN" if column[row].is_valid else "null"
        raise ValueError(
            f"{path}: {name} must be a value in every row; found {value} at row {row} "
            f"(row_id {table['row_id'][row].as_py()})."
        )


def _check_rows(
    folder: Path, commit: Commit, row_id: NDArray[np.int64], parts: list[tuple[Path, int]]
) -> None:
    """Checks that each of the committed rows exists exactly once."""
    rows = commit.rows

    def part_of(position: int) -> str:
        ends = np.cumsum([count for _, count in parts])
        return parts[int(np.searchsorted(ends, position, side="right"))][0].name

    outside = (row_id < 0) | (row_id >= rows)
    if outside.any():
        position = int(np.argmax(outside))
        raise ValueError(
            f"{folder / part_of(position)}: row_id must be in 0..{rows - 1}, as {COMMIT_FILE} "
            f"says; got {row_id[position]}. Remove parts of other runs and predict again."
        )
    count = np.bincount(row_id, minlength=rows)
    if (count > 1).any():
        duplicate = int(np.argmax(count > 1))
        names = sorted({part_of(int(at)) for at in np.flatnonzero(row_id == duplicate)})
        raise ValueError(
            f"{folder}: each row_id must exist once; {int((count > 1).sum())} exist more than "
            f"once, the first is {duplicate} in {', '.join(names)}. Predict again."
        )
    if len(row_id) != rows - commit.left_out:
        raise ValueError(
            f"{folder}: {COMMIT_FILE} says {rows - commit.left_out} rows; found {len(row_id)}, the "
            f"first missing row_id is {int(np.argmin(count))}. Predict again."
        )
