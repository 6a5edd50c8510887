"""Rows of one label on disk, in files of rows with near scores and in files of whole users."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msrec.launch.evaluation.scored_rows.commit import IMPRESSION
from msrec.launch.evaluation.scored_rows.parts import Parts, RowCheck
from msrec.launch.evaluation.scored_rows.predictions import key_ids
from msrec.launch.evaluation.scored_rows.row_groups import RowGroups
from msrec.model.metrics.bootstrap import MAX_BLOCKS, user_hashes
from msrec.model.metrics.exact import ScoreKind, check_rows, group_numbers

Records = NDArray[np.void]
"""(n,), with the fields of `record_type`."""
SAMPLED_PIECES = 64
"""Pieces of the parts whose scores decide the edges between files."""


def record_type(num_groupings: int, *, impression: bool) -> np.dtype[Any]:
    """Returns the fields of a row: user is the hash of its key, group its group by grouping."""
    fields: list[Any] = [("score", "f4"), ("label", "?"), ("weight", "f4"), ("user", "u8")]
    fields += [("group", "u2", (num_groupings,))]
    return np.dtype([*fields, ("impression", "i8")] if impression else fields)


@dataclass
class ScratchRows:
    """Rows of a label with a weight above 0, and what is counted while they are written.

    Attributes:
        folder: of the files.
        dtype: of a row.
        num_files: files of each kind.
        class_weights: per grouping (groups, 2): weights of the rows with label 0 and 1.
        missing: per grouping (groups,): rows without the label.
        is_weighted: whether a weight differs from 1.
        users: sorted hashes of the users, as long as there are at most `MAX_BLOCKS`; else None.
    """

    folder: Path
    dtype: np.dtype[Any]
    num_files: int
    class_weights: list[NDArray[np.float64]]
    missing: list[NDArray[np.int64]]
    is_weighted: bool = False
    users: NDArray[np.uint64] | None = field(default_factory=lambda: np.empty(0, np.uint64))

    def by_score(self) -> Iterator[Records]:
        """Yields the rows of each file, whose scores are above those of the files before."""
        for number in range(self.num_files):
            yield self._read("score", number)

    def by_user(self) -> Iterator[Records]:
        """Yields the rows of each file, all rows of some users."""
        for number in range(self.num_files):
            yield self._read("user", number)

    def add(self, records: Records, edges: NDArray[np.float32]) -> None:
        """Adds rows to the files."""
        score_file = np.searchsorted(edges, records["score"], side="right")
        user_file = records["user"] % np.uint64(self.num_files)
        for kind, numbers in (("score", score_file), ("user", user_file.astype(np.int64))):
            order = np.argsort(numbers, kind="stable")
            cuts = np.searchsorted(numbers[order], np.arange(1, self.num_files))
            for number, rows in enumerate(np.split(order, cuts)):
                with self._path(kind, number).open("ab") as file:
                    taken(records, rows).tofile(file)
        weight = records["weight"].astype(np.float64)
        self.is_weighted |= bool((weight != 1).any())
        for grouping, weights in enumerate(self.class_weights):
            group = records["group"][:, grouping].astype(np.int64)
            by_label = np.bincount(2 * group + records["label"], weight, weights.size)
            weights += by_label.reshape(weights.shape)
        if self.users is not None:
            self.users = np.union1d(self.users, records["user"])
            if len(self.users) > MAX_BLOCKS:
                self.users = None

    def _read(self, kind: str, number: int) -> Records:
        path = self._path(kind, number)
        return np.fromfile(path, self.dtype) if path.is_file() else np.empty(0, self.dtype)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number}"


def taken(records: Records, rows: NDArray[Any]) -> Records:
    """Returns some rows; several times as fast as NumPy, which copies field by field."""
    whole = records.view(np.dtype((np.void, records.dtype.itemsize)))
    return np.take(whole, rows).view(records.dtype)


def write_scratch(
    parts: Parts,
    folder: Path,
    columns: dict[str, str],
    kind: ScoreKind,
    num_scenarios: int,
    slices: Sequence[RowGroups],
    rows_per_file: int,
    seed: int,
) -> ScratchRows:
    """Writes the rows of a label to files of about `rows_per_file` rows, in an empty folder.

    Args:
        parts: the predictions.
        folder: for the files.
        columns: columns of `label`, `score` and, if there is one, `label_weight`.
        kind: of the score.
        num_scenarios: the first grouping of the rows.
        slices: further groupings.
        rows_per_file: rows that fit into memory several times; tied scores are in one file.
        seed: of the hashes of the users.

    Raises:
        ValueError: a part cannot be read, or a value is out of its range.
    """
    names = ["row_id", "scenario", "user", "weight", *columns.values()]
    has_impression = IMPRESSION in parts.columns
    names += [IMPRESSION] if has_impression else []
    sizes = [num_scenarios, *(len(each.names) for each in slices)]
    scratch = ScratchRows(
        folder,
        record_type(len(sizes), impression=has_impression),
        num_files=-(-parts.commit.rows // rows_per_file),
        class_weights=[np.zeros((size, 2)) for size in sizes],
        missing=[np.zeros(size, np.int64) for size in sizes],
    )
    edges = _score_edges(parts, columns["score"], scratch.num_files, rows_per_file)
    check = RowCheck(parts)
    for path, piece in parts.read(names, rows_per_file // 4):
        check.add(path, piece["row_id"].to_numpy())
        records, has_label = _records(piece, scratch.dtype, columns, kind, seed)
        ids = [
            piece["scenario"].to_numpy(),
            *(s.of_rows(piece["row_id"].to_numpy()) for s in slices),
        ]
        for grouping, (of_rows, size) in enumerate(zip(ids, sizes, strict=True)):
            records["group"][:, grouping] = group_numbers(of_rows, size)
        counts = records["weight"] > 0
        scratch.add(taken(records, np.flatnonzero(counts & has_label)), edges)
        for missing, group in zip(scratch.missing, records["group"].T, strict=True):
            missing += np.bincount(group[counts & ~has_label], minlength=len(missing))
    check.finish()
    return scratch


def _records(
    piece: pa.Table,
    dtype: np.dtype[Any],
    columns: dict[str, str],
    kind: ScoreKind,
    seed: int,
) -> tuple[Records, NDArray[np.bool_]]:
    """Returns the rows of a piece without their groups, and whether each has the label."""
    records = np.empty(len(piece), dtype)
    label = piece[columns["label"]].to_numpy()
    records["score"] = piece[columns["score"]].to_numpy()
    records["weight"] = piece["weight"].to_numpy()
    if "label_weight" in columns:
        records["weight"] *= piece[columns["label_weight"]].to_numpy().astype(np.float32)
    check_rows(kind, records["score"], label, records["weight"])
    records["label"] = label == 1
    records["user"] = user_hashes(key_ids(piece["user"].combine_chunks()), seed)
    if IMPRESSION in (dtype.names or ()):
        records["impression"] = piece[IMPRESSION].to_numpy()
    return records, ~np.isnan(label)


def _score_edges(
    parts: Parts, column: str, num_files: int, rows_at_once: int
) -> NDArray[np.float32]:
    """Returns scores between which about equally many rows lie, from a part of the rows."""
    num_pieces = -(-parts.commit.rows // rows_at_once)
    step = max(num_pieces // SAMPLED_PIECES, 1)
    samples = [
        piece[column].to_numpy()[::16]
        for number, (_, piece) in enumerate(parts.read(["row_id", column], rows_at_once))
        if number % step == 0
    ]
    scores = np.concatenate(samples).astype(np.float32)
    return np.unique(np.quantile(scores, np.arange(1, num_files) / num_files, method="lower"))
