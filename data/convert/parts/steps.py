"""Steps of a conversion in parts: each runs stages and merges the results of their parts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.chunk_counts import ChunkCounts
from msrec.data.convert.conversion import scaled_labels
from msrec.data.convert.parts.job import (
    CODES_FILE,
    ENCODE,
    INDEX,
    ROWS_FILE,
    SHARES,
    STAGE,
    USERS_FILE,
    VALUES,
    Job,
    index_shares,
    keep_mapped,
    write_vocabularies,
)
from msrec.data.convert.parts.merged_counts import counts_file, merged_counts, merged_sides
from msrec.data.convert.parts.part_functions import (
    BINS,
    VALUE_SHARES,
    ValueShare,
    encode_part,
    index_part,
    share_part,
    stage_part,
    time_part,
    values_part,
    vocabulary_part,
)
from msrec.data.convert.parts.raw_files import merge_filtered
from msrec.data.convert.parts.stages import Stages
from msrec.data.convert.position_counts import hottest_ranks, lookup_sizes
from msrec.data.convert.raw_tables import SIDES, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.split import (
    random_split,
    require_time,
    split_cuts,
    split_record,
)
from msrec.data.convert.staging import require_interactions
from msrec.data.convert.statistics import ConversionCounts
from msrec.data.convert.vocabulary_encoding import (
    EncodedFeatures,
    encode_features,
    training_columns,
)
from msrec.data.labels import LabelOptions
from msrec.data.schema import SplitRecord


def index_columns(stages: Stages, stage: str, columns: Sequence[Path]) -> None:
    """Indexes the distinct values of columns, for the workers that look them up."""
    stages.run(stage, index_part, [share for column in columns for share in index_shares(column)])


def stage_rows(job: Job, raw: RawTables, stages: Stages, row_filter: RowFilter) -> tuple[Job, int]:
    """Stages all rows; returns the job with what it has learnt, and the number of duplicates."""
    numbers = range(len(job.parts))
    staged = stages.run(STAGE, partial(stage_part, job), numbers)
    merge_filtered(row_filter, staged)
    starts = np.concatenate([[0], np.cumsum([result["rows"] for result in staged])])
    num_rows = int(starts[-1])
    require_interactions(num_rows, raw.location("interaction"))
    job = replace(job, starts=tuple(starts.tolist()))
    shares = stages.run(SHARES, partial(share_part, job), range(job.num_shares))
    stages.discard(STAGE, USERS_FILE)
    if job.choice.method == "random":
        codes = random_split(num_rows, job.choice.seed, job.choice.fractions)
        np.save(job.folder / CODES_FILE, codes)
    elif job.choice.method == "time":
        require_time(raw.timestamp is not None, raw.location("interaction"))
        spans = [result["time"] for result in staged if result["time"]]
        ranks = [cut for cut in split_cuts(num_rows, job.choice.fractions) if cut < num_rows]
        first, last = min(low for low, _ in spans), max(high for _, high in spans)
        job = replace(job, cuts=_times_at(ranks, job, stages, first, last))
    return job, sum(result["duplicates"] for result in shares)


def _times_at(
    ranks: Sequence[int], job: Job, stages: Stages, first: int, last: int
) -> tuple[int, ...]:
    """Returns the times at some positions of the sorted times, by histograms that get finer."""
    lows, below = [first] * len(ranks), [0] * len(ranks)
    span, level = last - first + 1, 0
    while ranks and span > 1:
        width = -(-span // BINS)
        tasks = [(number, [(low, width) for low in lows]) for number in range(len(job.parts))]
        stage = f"times-{level}"
        stages.run(stage, partial(time_part, job), tasks)
        paths = stages.files(stage, "counts.npy", len(tasks))
        counts = sum(np.load(path) for path in paths)
        for at, rank in enumerate(ranks):
            ends = below[at] + np.cumsum(counts[at])
            found = int(np.searchsorted(ends, rank, side="right"))
            below[at] = int(ends[found] - counts[at][found])
            lows[at] += found * width
        span, level = width, level + 1
    return tuple(lows)


def divide_rows(
    job: Job, raw: RawTables, stages: Stages
) -> tuple[npt.NDArray[np.int64], SplitRecord]:
    """Divides all rows; returns the rows of each part and split, and the record of the split."""
    results = stages.run(VALUES, partial(values_part, job), range(len(job.parts)))
    rows = np.array([result["splits"] for result in results])
    times = [result["until"] for result in results if result["until"] is not None]
    location = raw.location("interaction")
    record = split_record(job.choice, rows.sum(axis=0).tolist(), max(times, default=None), location)
    return rows, record


def fit_vocabularies(
    job: Job, raw: RawTables, stages: Stages, known: Mapping[str, pl.Series] | None
) -> tuple[EncodedFeatures, dict[str, LabelOptions]]:
    """Merges the values of the parts, fits the vocabularies and writes them for the workers.

    Returns:
        The encoded features, and the options of the labels with their scales.
    """
    sizes = {counts_file(side): raw.table(side).height for side in SIDES}
    trained = dict(zip(SIDES, merged_counts(job, stages, "trained", VALUES, sizes), strict=True))
    columns = training_columns(raw, job.table_kinds)
    tasks = [ValueShare(n, share) for n in range(len(columns)) for share in range(VALUE_SHARES)]
    stages.run("vocabulary", partial(vocabulary_part, job), tasks)
    paths = stages.files("vocabulary", "values.parquet", len(tasks))
    in_training = {
        column.name: pl.concat(
            [pl.read_parquet(p) for p in paths[n * VALUE_SHARES : (n + 1) * VALUE_SHARES]]
        )
        for n, column in enumerate(columns)
    }
    keep = partial(keep_mapped, job.folder)
    encoded = encode_features(raw, trained, in_training, known, job.table_kinds, keep)
    index_columns(stages, INDEX, write_vocabularies(encoded, job.folder))
    return encoded, scaled_labels(raw, in_training)


def encode_rows(
    job: Job, raw: RawTables, encoded: EncodedFeatures, stages: Stages
) -> dict[str, Any]:
    """Encodes all rows; returns their counts."""
    results = stages.run(ENCODE, partial(encode_part, job), range(len(job.parts)))
    stages.discard(STAGE, ROWS_FILE)
    counts = ConversionCounts(raw)
    for result in results:
        counts.add(ChunkCounts.of_totals(result))
    sides = merged_sides(job, raw, stages)
    sizes = lookup_sizes(raw, encoded)
    files = {counts_file(number): size for number, size in enumerate(sizes.values())}
    lookups = merged_counts(job, stages, "lookups", ENCODE, files)
    ranks = hottest_ranks(raw, encoded, dict(zip(sizes, lookups, strict=True)))
    return counts.to_dict(sides, ranks)
