"""A committed folder of predictions, read and checked as a whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import first_error
from msrec.data.schema import Split

COMMIT_FILE = "_COMMIT"
INTEGERS = ("row_id", "scenario")
FLOATS = ("label", "weight", "score")
COLUMNS = (*INTEGERS, "user", *FLOATS)
TRUTH = "p_click"


class Commit(BaseModel):
    """What the `_COMMIT` file says; it is written last, when every part is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    split: Split
    checkpoint: str
    dataset: str
    left_out: int = 0
    """Of the rows, those that broke the schema and were left out."""
    reasons: dict[str, int] = {}
    """Why, and how many rows for each reason."""


@dataclass(frozen=True)
class Predictions:
    """The rows of all parts by rising row_id, so that it does not matter how many parts there are.

    Shape:
        row_id: (N,), int64, each of 0..N-1 once; without those that were left out.
        scenario: (N,), int64.
        user: (N,), int64, equal for the rows of a user; a code, not the raw key: users are numbered
            as they appear.
        label, weight, score: (N,), float32.
        p_click: (N,), float32, the true click probability; None where nobody knows it.
    """

    commit: Commit
    row_id: NDArray[np.int64]
    scenario: NDArray[np.int64]
    user: NDArray[np.int64]
    label: NDArray[np.float32]
    weight: NDArray[np.float32]
    score: NDArray[np.float32]
    p_click: NDArray[np.float32] | None


def write_commit(folder: Path, commit: Commit) -> Path:
    """Declare a folder of predictions complete, in one step."""
    return write_text(folder / COMMIT_FILE, commit.model_dump_json())


def load_commit(folder: Path) -> Commit:
    """Read the marker of a complete folder.

    Raises:
        FileNotFoundError: it is not there: prediction was killed, or never ran.
        ValueError: it is not what `write_commit` writes.
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
    """Read every part and check that the whole is what was committed.

    Raises:
        FileNotFoundError: the folder is not complete or has no parts.
        ValueError: a part cannot be read, lacks a column or holds a null or NaN; rows are missing
            or there twice. Names the part and the row_id.
    """
    folder = Path(folder)
    commit = load_commit(folder)
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} must hold part-RANK.parquet files; found none.")
    parts = [_read(path) for path in paths]
    known = {TRUTH in part.column_names for part in parts}
    if len(known) > 1:
        raise ValueError(f"{folder}: column {TRUTH} must be in every part or in none.")
    table = pa.concat_tables(parts, promote_options="permissive")
    row_id = _array(table, "row_id", np.int64)
    _check_rows(folder, commit, row_id, [(p, len(t)) for p, t in zip(paths, parts, strict=True)])
    place = _places(row_id, commit.rows)

    def column(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return _placed(_array(table, name, dtype), place)

    return Predictions(
        commit=commit,
        row_id=_placed(row_id, place),
        scenario=column("scenario", np.int64),
        user=_numbered(_placed(_user_codes(table["user"]), place)),
        label=column("label", np.float32),
        weight=column("weight", np.float32),
        score=column("score", np.float32),
        p_click=column(TRUTH, np.float32) if known == {True} else None,
    )


def _places(row_id: NDArray[np.int64], rows: int) -> NDArray[np.int64] | None:
    """The place of each row by rising row_id (N,); None where they stand so."""
    if (row_id[1:] > row_id[:-1]).all():
        return None
    present = np.zeros(rows, np.bool_)
    present[row_id] = True
    places: NDArray[np.int64] = (np.cumsum(present) - 1)[row_id]
    return places


def _placed(values: NDArray[Any], place: NDArray[np.int64] | None) -> NDArray[Any]:
    if place is None:
        return values
    placed = np.empty_like(values)
    placed[place] = values
    return placed


def _numbered(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same users, numbered by their first row."""
    first = np.full(int(codes.max(initial=-1)) + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    number = np.empty_like(first)
    number[np.argsort(first)] = np.arange(len(first))
    return number[codes]


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{path} must have the columns {', '.join(COLUMNS)}; "
                    f"missing: {', '.join(missing)}."
                )
            truth = [TRUTH] if TRUTH in file.schema_arrow.names else []
            table = file.read([*COLUMNS, *truth])
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} must be a whole Parquet file; {reason}.") from None
    _check_types(path, table.schema)
    _check_values(path, table)
    return table


def _check_types(path: Path, schema: pa.Schema) -> None:
    for name in schema.names:
        found = schema.field(name).type
        must = "an integer" if name in INTEGERS else "a float"
        good = pa.types.is_integer(found) if name in INTEGERS else pa.types.is_floating(found)
        if name != "user" and not good:
            raise ValueError(f"{path}: {name} must be {must} column; found {found}.")


def _check_values(path: Path, table: pa.Table) -> None:
    for name in table.column_names:
        column = table[name]
        bad = column.is_null(nan_is_null=pa.types.is_floating(column.type))
        if not pc.any(bad).as_py():
            continue
        row = pc.index(bad, True).as_py()
        found = "NaN" if column[row].is_valid else "null"
        raise ValueError(
            f"{path}: {name} must be a value in every row; found {found} at row {row} "
            f"(row_id {table['row_id'][row].as_py()})."
        )


def _check_rows(
    folder: Path, commit: Commit, row_id: NDArray[np.int64], parts: list[tuple[Path, int]]
) -> None:
    """Each of the committed rows must be there, once."""
    rows = commit.rows

    def part_of(position: int) -> str:
        ends = np.cumsum([count for _, count in parts])
        return parts[int(np.searchsorted(ends, position, side="right"))][0].name

    outside = (row_id < 0) | (row_id >= rows)
    if outside.any():
        at = int(np.argmax(outside))
        raise ValueError(
            f"{folder / part_of(at)}: row_id must be in 0..{rows - 1}, as {COMMIT_FILE} says; "
            f"got {row_id[at]}. Remove parts of other runs and predict again."
        )
    count = np.bincount(row_id, minlength=rows)
    if (count > 1).any():
        twice = int(np.argmax(count > 1))
        names = sorted({part_of(int(at)) for at in np.flatnonzero(row_id == twice)})
        raise ValueError(
            f"{folder}: each row_id must be there once; {int((count > 1).sum())} are there more "
            f"than once, the first is {twice} in {', '.join(names)}. Predict again."
        )
    if len(row_id) != rows - commit.left_out:
        raise ValueError(
            f"{folder}: {COMMIT_FILE} says {rows - commit.left_out} rows; found {len(row_id)}, the "
            f"first missing row_id is {int(np.argmin(count))}. Predict again."
        )


def _array(table: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    values: NDArray[Any] = table[name].to_numpy().astype(dtype, copy=False)
    return values


def _user_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Raw keys, integers or strings, as codes from 0."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.unify_dictionaries().combine_chunks()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    users: NDArray[np.int64] = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return users
