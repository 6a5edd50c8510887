"""Counts by position that all parts wrote, merged by ranges of the positions.

A part writes the entries that are not zero in ascending order, so that those of a range are one
slice of its file. A process adds up one range at a time.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from msrec.data.convert.chunk_counts import Bools, Ints, Sparse
from msrec.data.convert.parts.job import ENCODE, Job, encoded_features
from msrec.data.convert.parts.stages import Stages
from msrec.data.convert.position_counts import SideCounts, side_columns
from msrec.data.convert.raw_tables import SIDES, RawTables, Side
from msrec.data.schema import SPLITS

ENTRIES = 1 << 24
"""Entries of a range, 8 bytes each."""
SUMS_FILE = "sums.npy"


class Range(NamedTuple):
    """Positions [first, stop) of the counts that each part of a stage wrote to a file."""

    stage: str
    file: str
    first: int
    stop: int


def write_sparse(path: Path, counts: Sparse) -> None:
    """Writes the counts of a part."""
    np.save(path, np.stack(counts))


def merged_counts(
    job: Job, stages: Stages, stage: str, source: str, sizes: Mapping[str, int]
) -> list[Ints]:
    """Returns the sums of the counts of all parts, for each file of a part.

    Args:
        job: names the parts.
        stages: runs the ranges.
        stage: name of the stage that merges.
        source: stage whose parts wrote the counts.
        sizes: file of a part -> number of positions.
    """
    of_files = [list(_ranges(source, file, size)) for file, size in sizes.items()]
    tasks = [entries for ranges in of_files for entries in ranges]
    stages.run(stage, partial(_sums_part, job), tasks)
    for file in sizes:
        stages.discard(source, file)
    sums = map(np.load, stages.files(stage, SUMS_FILE, len(tasks)))
    return [np.concatenate([next(sums) for _ in ranges]) for ranges in of_files]


def merged_sides(job: Job, raw: RawTables, stages: Stages) -> dict[Side, SideCounts]:
    """Returns the counts of users and items over all parts."""
    width = len(raw.scenarios) * len(SPLITS)
    tasks = [
        (side, entries)
        for side in SIDES
        for entries in _ranges(ENCODE, counts_file(side), raw.table(side).height, width)
    ]
    results = stages.run("sides", partial(_side_part, job), tasks)
    for side in SIDES:
        stages.discard(ENCODE, counts_file(side))
    return {
        side: SideCounts.merged(
            [result for result, (of, _) in zip(results, tasks, strict=True) if of == side]
        )
        for side in SIDES
    }


def counts_file(name: str | int) -> str:
    """Returns the name of a file with counts: of a side, or of a feature by its number."""
    return f"counts-{name}.npy"


def _ranges(stage: str, file: str, size: int, width: int = 1) -> Iterator[Range]:
    """Yields all positions in ranges; `width` is the number of entries of a position."""
    step = max(ENTRIES // width, 1)
    for first in range(0, size, step):
        yield Range(stage, file, first, min(first + step, size))


def _range_sums(job: Job, entries: Range, width: int = 1) -> Ints:
    """Returns the sums of a range over all parts, (positions, width)."""
    first, stop = entries.first * width, entries.stop * width
    sums = np.zeros(stop - first, np.int64)
    for number in range(len(job.parts)):
        at, counts = np.load(job.file(entries.stage, number, entries.file), mmap_mode="r")
        low, high = np.searchsorted(at, [first, stop])
        sums[at[low:high] - first] += counts[low:high]
    return sums.reshape(-1, width)


def _sums_part(job: Job, entries: Range, out: Path) -> dict[str, Any]:
    """Writes the sums of a range."""
    np.save(out / SUMS_FILE, _range_sums(job, entries)[:, 0])
    return {}


def _side_part(job: Job, task: tuple[Side, Range], out: Path) -> dict[str, Any]:
    """Counts the users (items) of a range."""
    side, entries = task
    shape = (-1, len(job.raw.scenarios), len(SPLITS))
    rows = _range_sums(job, entries, shape[1] * shape[2]).reshape(shape)
    some = slice(entries.first, entries.stop)
    columns = side_columns(job.raw, encoded_features(job), side)
    columns = {name: (is_missing[some], ids[some]) for name, (is_missing, ids) in columns.items()}
    is_in: Bools = np.any(rows, axis=2)
    return SideCounts.of(rows.sum(axis=1).T, is_in.T, columns).to_json()
