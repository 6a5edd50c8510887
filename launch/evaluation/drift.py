"""Measures how far the columns of new rows have moved: the population stability index (PSI)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import chi2

from msrec.data.io.parquet_files import named_parquet_files, read_parquet, scan_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import SCHEMA_FILE, load_schema
from msrec.launch.evaluation.scored_rows.commit import IMPRESSION, TRUTH, truth_name

MAX_VALUE_BINS = 20
"""The most frequent values of a categorical column have a bin each; all others share one."""
QUANTILE_BINS = 10
"""Bins of a continuous column, each with the same share of the reference."""
SMALL, LARGE = 0.1, 0.25
"""Customary bounds of a small and of a large shift (Siddiqi, Credit Risk Scorecards, 2006)."""
NOISE_QUANTILE = 0.95
VALUE, ROWS = "value", "rows"
MAX_WAITING = 4_000_000
"""Distinct values of files, beyond twice those of all files before, that wait to be merged."""
IGNORED_COLUMNS = ("row_id", "timestamp", "weight", TRUTH, IMPRESSION)


@dataclass(frozen=True)
class Drift:
    """Drift of one column.

    Attributes:
        column: name of the column.
        kind: `values` if binned by value, `numbers` if binned by quantiles of the reference.
        bins: number of bins compared.
        psi: sum over bins of (q - p) ln(q / p), with the shares p of the reference and q of the new
            rows. Half a row is added to each bin, so that an empty bin stays finite.
        noise: PSI that 95 % of columns without any drift stay below, with this many rows:
            (1/n + 1/m) times the quantile of chi-square (Yurdakul and Naranjo, Journal of Risk
            Model Validation 14(4), 2020). Rows are taken as independent.
        unseen: share of the new rows (for lists, of their values) whose value the reference does
            not have; None for numbers.
        empty: shares of null or NaN (for lists, of empty lists) in the reference and the new rows.
    """

    column: str
    kind: str
    bins: int
    psi: float
    noise: float
    unseen: float | None
    empty: tuple[float, float]

    @property
    def verdict(self) -> str:
        """`none` if the PSI may be noise, else `small`, `moderate` or `large`."""
        if self.psi <= self.noise:
            return "none"
        return "small" if self.psi < SMALL else "moderate" if self.psi < LARGE else "large"


def measure_drift(reference: AnyPath, current: AnyPath) -> tuple[list[Drift], list[str]]:
    """Measures the drift of every column that both sets of rows have.

    Args:
        reference: a Parquet file or folder with earlier rows, such as app/train.
        current: the same for new rows, such as new/test, or predictions with their scores.

    Returns:
        The drifts, largest first, and a sentence about each column that cannot be compared.

    Raises:
        FileNotFoundError: there are no files.
        ValueError: the rows share no column of the same type, or one side has no rows.
    """
    before, now = _scan(reference), _scan(current)
    types, new_types = before.collect_schema(), now.collect_schema()
    ignored = {*IGNORED_COLUMNS, *_columns_without_drift(reference)}
    common = [name for name in types if name in new_types and name not in ignored]
    comparable = [name for name in common if types[name] == new_types[name]]
    if not comparable:
        raise ValueError(
            f"{reference} and {current} must share columns of one type; they have "
            f"{_names_and_types(types)} and {_names_and_types(new_types)}."
        )
    skipped = [
        f"{name} is not compared: it is {types[name]} before and {new_types[name]} now"
        for name in common
        if name not in comparable
    ]
    drifts = []
    for name in comparable:
        measure = _drift_of_numbers if types[name].is_float() else _drift_of_values
        drifts.append(measure(name, *(_files_of(path, name) for path in (reference, current))))
    return sorted(drifts, key=lambda drift: -drift.psi), skipped


def _columns_without_drift(rows: AnyPath) -> list[str]:
    """Returns the columns of a dataset's split whose values are new in any later rows."""
    if not is_file(rows.parent / SCHEMA_FILE):
        return []
    schema = load_schema(rows.parent)
    truths = [truth_name(schema.labels, label) for label in schema.labels]
    return [name for name in (schema.timestamp, schema.impression, *truths) if name]


def _files_of(path: AnyPath, name: str) -> Iterator[pl.Series]:
    """Yields a column file by file.

    Raises:
        ValueError: there are no rows.
    """
    rows = 0
    for file in named_parquet_files(path):
        # Not by polars: it panics on some damaged files.
        column = pl.Series(name, pl.from_arrow(read_parquet(file, [name])[name]))
        rows += len(column)
        yield column
    if not rows:
        raise ValueError(f"{path} must have rows; it has none.")


def _scan(path: AnyPath) -> pl.LazyFrame:
    return scan_parquet(named_parquet_files(path))


def _names_and_types(types: pl.Schema) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _drift_of_numbers(name: str, before: Iterator[pl.Series], now: Iterator[pl.Series]) -> Drift:
    columns = [pl.concat(files) for files in (before, now)]
    clean = [rows.fill_nan(None).drop_nulls().to_numpy() for rows in columns]
    edges = _edges(np.sort(clean[0]))
    counts = [
        np.bincount(np.searchsorted(edges, numbers, "right"), minlength=len(edges) + 1)
        for numbers in clean
    ]
    sizes = [len(rows) for rows in columns]
    empty = [size - len(kept) for size, kept in zip(sizes, clean, strict=True)]
    return _drift_of_bins(name, "numbers", counts, sizes, empty, unseen=None)


def _edges(ordered: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the first number of each bin but the lowest.

    A number that is several quantiles has a bin of its own: most rows of a rare label are 0.
    """
    quantiles = np.quantile(ordered, np.arange(1, QUANTILE_BINS) / QUANTILE_BINS)
    edges, times = np.unique(quantiles, return_counts=True)
    above = np.searchsorted(ordered, edges[times > 1], "right")
    return np.union1d(edges, ordered[above[above < len(ordered)]])


def _drift_of_values(name: str, before: Iterator[pl.Series], now: Iterator[pl.Series]) -> Drift:
    reference, new = _count_values(before), _count_values(now)
    frequent = reference.of_value.sort([ROWS, VALUE], descending=[True, False])[VALUE]
    frequent = frequent.head(MAX_VALUE_BINS)
    bins = []
    for counts in (reference, new):
        is_frequent = pl.col(VALUE).is_in(frequent.implode())
        rows = dict(counts.of_value.filter(is_frequent).iter_rows())
        in_bins = [rows.get(value, 0) for value in frequent]
        bins.append(np.array([*in_bins, counts.num_values - sum(in_bins)]))
    known = new.of_value.join(reference.of_value, on=VALUE, how="semi")[ROWS].sum()
    unseen = 1 - int(known) / new.num_values if new.num_values else 0.0
    sizes, empty = ([getattr(c, of) for c in (reference, new)] for of in ("rows", "empty"))
    return _drift_of_bins(name, "values", bins, sizes, empty, unseen)


class _ValueCounts(NamedTuple):
    """Numbers of rows, of rows without a value, and of each value: `VALUE` and `ROWS`."""

    rows: int
    empty: int
    of_value: pl.DataFrame

    @property
    def num_values(self) -> int:
        """Number of all values: those of a list each count."""
        return int(self.of_value[ROWS].sum())


def _count_values(files: Iterator[pl.Series]) -> _ValueCounts:
    """Counts the values file by file, so that memory grows with the distinct values only."""
    rows, empty, merged, waiting = 0, 0, 0, list[pl.DataFrame]()
    for column in files:
        rows += len(column)
        if column.dtype.base_type() is pl.List:
            empty += int((column.list.len().fill_null(0) == 0).sum())
            column = column.explode(keep_nulls=False, empty_as_null=False)
        else:
            empty += column.null_count()
        counts = column.drop_nulls().rename(VALUE).value_counts(name=ROWS)
        waiting.append(counts.cast({ROWS: pl.Int64}))
        if sum(map(len, waiting)) > 2 * merged + MAX_WAITING:
            waiting = [_merged(waiting)]
            merged = len(waiting[0])
    return _ValueCounts(rows, empty, _merged(waiting))


def _merged(counts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counts).group_by(VALUE).agg(pl.col(ROWS).sum())


def _drift_of_bins(
    name: str,
    kind: str,
    bins: list[npt.NDArray[np.int64]],
    sizes: list[int],
    empty: list[int],
    unseen: float | None,
) -> Drift:
    """Returns the drift from the rows in each bin; empty values are one more bin, if any.

    Args:
        name: of the column.
        kind: see `Drift`.
        bins: rows (of lists: values) in each bin, before and now.
        sizes: all rows, before and now.
        empty: rows without a value, before and now.
        unseen: see `Drift`.
    """
    counts = np.stack([np.append(*pair) for pair in zip(bins, empty, strict=True)])
    counts = counts[:, counts.sum(axis=0) > 0]
    num_bins = counts.shape[1]
    total = counts.sum(axis=1, keepdims=True)
    p, q = (counts + 0.5) / (total + 0.5 * num_bins)
    noise = 0.0
    if num_bins > 1:
        noise = float((1 / total).sum() * chi2.ppf(NOISE_QUANTILE, num_bins - 1))
    return Drift(
        column=name,
        kind=kind,
        bins=num_bins,
        psi=float(((q - p) * np.log(q / p)).sum()),
        noise=noise,
        unseen=unseen,
        empty=(empty[0] / sizes[0], empty[1] / sizes[1]),
    )
