"""Measures how far the columns of new rows have moved: the population stability index (PSI)."""

from dataclasses import dataclass
from typing import Any

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
        pair = (_column(reference, name), _column(current, name))
        drifts.append((_drift_of_numbers if types[name].is_float() else _drift_of_values)(*pair))
    return sorted(drifts, key=lambda drift: -drift.psi), skipped


def _columns_without_drift(rows: AnyPath) -> list[str]:
    """Returns the columns of a dataset's split whose values are new in any later rows."""
    if not is_file(rows.parent / SCHEMA_FILE):
        return []
    schema = load_schema(rows.parent)
    truths = [truth_name(schema.labels, label) for label in schema.labels]
    return [name for name in (schema.timestamp, schema.impression, *truths) if name]


def _column(path: AnyPath, name: str) -> pl.Series:
    # Not by polars: it panics on some damaged files.
    parts = [read_parquet(file, [name])[name] for file in named_parquet_files(path)]
    column = pl.Series(name, pl.concat([pl.Series(pl.from_arrow(part)) for part in parts]))
    if column.is_empty():
        raise ValueError(f"{path} must have rows; it has none.")
    return column


def _scan(path: AnyPath) -> pl.LazyFrame:
    return scan_parquet(named_parquet_files(path))


def _names_and_types(types: pl.Schema) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _drift_of_numbers(before: pl.Series, now: pl.Series) -> Drift:
    clean = [rows.fill_nan(None).drop_nulls().to_numpy() for rows in (before, now)]
    edges = _edges(np.sort(clean[0]))
    counts = [
        np.bincount(np.searchsorted(edges, numbers, "right"), minlength=len(edges) + 1)
        for numbers in clean
    ]
    empty = [len(rows) - len(kept) for rows, kept in zip((before, now), clean, strict=True)]
    return _drift_of_bins(before, now, "numbers", counts, empty, unseen=None)


def _edges(ordered: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the first number of each bin but the lowest.

    A number that is several quantiles has a bin of its own: most rows of a rare label are 0.
    """
    quantiles = np.quantile(ordered, np.arange(1, QUANTILE_BINS) / QUANTILE_BINS)
    edges, times = np.unique(quantiles, return_counts=True)
    above = np.searchsorted(ordered, edges[times > 1], "right")
    return np.union1d(edges, ordered[above[above < len(ordered)]])


def _drift_of_values(before: pl.Series, now: pl.Series) -> Drift:
    if before.dtype.base_type() is pl.List:
        flat = [rows.explode(keep_nulls=False, empty_as_null=False) for rows in (before, now)]
        empty = [int((rows.list.len().fill_null(0) == 0).sum()) for rows in (before, now)]
    else:
        flat, empty = [before, now], [rows.null_count() for rows in (before, now)]
    flat = [values.drop_nulls() for values in flat]
    reference_counts = flat[0].value_counts(sort=True, name="rows")
    frequent = reference_counts[before.name].head(MAX_VALUE_BINS)
    counts = []
    for values in flat:
        own_counts = values.value_counts(name="rows")
        rows = dict(own_counts.filter(pl.col(before.name).is_in(frequent.implode())).iter_rows())
        in_bins = [rows.get(value, 0) for value in frequent]
        counts.append(np.array([*in_bins, len(values) - sum(in_bins)]))
    known = flat[1].is_in(reference_counts[before.name].implode())
    unseen = 1 - float(known.mean() or 0.0) if len(known) else 0.0  # type: ignore[arg-type]
    return _drift_of_bins(before, now, "values", counts, empty, unseen)


def _drift_of_bins(
    before: pl.Series,
    now: pl.Series,
    kind: str,
    bins: list[npt.NDArray[np.int64]],
    empty: list[int],
    unseen: float | None,
) -> Drift:
    """Returns the drift from the rows in each bin; empty values are one more bin, if any."""
    counts = np.stack([np.append(*pair) for pair in zip(bins, empty, strict=True)])
    counts = counts[:, counts.sum(axis=0) > 0]
    num_bins = counts.shape[1]
    total = counts.sum(axis=1, keepdims=True)
    p, q = (counts + 0.5) / (total + 0.5 * num_bins)
    noise = 0.0
    if num_bins > 1:
        noise = float((1 / total).sum() * chi2.ppf(NOISE_QUANTILE, num_bins - 1))
    return Drift(
        column=before.name,
        kind=kind,
        bins=num_bins,
        psi=float(((q - p) * np.log(q / p)).sum()),
        noise=noise,
        unseen=unseen,
        empty=(empty[0] / len(before), empty[1] / len(now)),
    )
