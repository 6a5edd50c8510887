"""How far rows have moved from those of before: the population stability index of each column."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.table import Table
from scipy.stats import chi2

from msrec.data.io.parquet_files import named_parquet_files, scan_parquet
from msrec.data.io.paths import AnyPath
from msrec.launch.console import wide_console
from msrec.launch.evaluation.predictions import TRUTH

MOST_VALUES = 20
"""Values of a categorical column with a bin of their own; all others share one."""
QUANTILES = 10
"""Bins of a continuous column, with equal shares of the reference."""
SMALL, LARGE = 0.1, 0.25
"""The customary bounds of a small and of a large shift (Siddiqi, Credit Risk Scorecards, 2006)."""
LEVEL = 0.95
NOT_COMPARED = ("row_id", "timestamp", "weight", TRUTH)


@dataclass(frozen=True)
class Drift:
    """How a column moved.

    Attributes:
        column: its name.
        kind: `values`, by value, or `numbers`, by quantiles of the reference.
        bins: that were compared.
        psi: sum over bins of (q - p) ln(q / p); shares p of the reference and q now, with half a
            row added to each bin, so that an empty one has no infinite weight.
        noise: the psi below which 95 % of columns stay that did not move at all, given so many
            rows: (1/n + 1/m) times the quantile of chi-square (Yurdakul and Naranjo, Journal of
            Risk Model Validation 14(4), 2020). It counts rows as independent.
        unseen: share of the rows (values of a list) now that the reference has not at all; None
            for numbers.
        empty: share of null or NaN (of empty lists), in the reference and now.
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
        """`none` where it could be noise, else by the customary bounds."""
        if self.psi <= self.noise:
            return "none"
        return "small" if self.psi < SMALL else "moderate" if self.psi < LARGE else "large"


def measure_drift(reference: AnyPath, current: AnyPath) -> tuple[list[Drift], list[str]]:
    """The drift of every column that both have, the largest first.

    Args:
        reference: a Parquet file or a folder of some: the rows of before, such as app/train.
        current: the rows of now, such as new/test, or predictions with their scores.

    Returns:
        The drifts, and a sentence on each column that cannot be compared.

    Raises:
        FileNotFoundError: there are no files.
        ValueError: no column of one type is in both, or there are no rows.
    """
    before, now = _scan(reference), _scan(current)
    types, types_now = before.collect_schema(), now.collect_schema()
    both = [name for name in types if name in types_now and name not in NOT_COMPARED]
    shared = [name for name in both if types[name] == types_now[name]]
    if not shared:
        raise ValueError(
            f"{reference} and {current} must share columns of one type; they have "
            f"{_named(types)} and {_named(types_now)}."
        )
    left_out = [
        f"{name} is not compared: it is {types[name]} before and {types_now[name]} now"
        for name in both
        if name not in shared
    ]
    found = []
    for name in shared:
        pair = tuple(rows.select(name).collect(engine="streaming")[name] for rows in (before, now))
        for rows, where in zip(pair, (reference, current), strict=True):
            if rows.is_empty():
                raise ValueError(f"{where} must have rows; it has none.")
        found.append((_of_numbers if types[name].is_float() else _of_values)(*pair))
    return sorted(found, key=lambda drift: -drift.psi), left_out


def _named(types: pl.Schema) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def tell_drift(
    reference: AnyPath, current: AnyPath, fail_above: float | None, *, as_json: bool
) -> int:
    """Print the drift of every column.

    Returns:
        The exit status: 1 where a column's psi is above `fail_above`.
    """
    found, left_out = measure_drift(reference, current)
    if as_json:
        print(json.dumps([asdict(drift) | {"shift": drift.verdict} for drift in found], indent=1))
    else:
        console = wide_console()
        console.print(_table(found, f"{reference} -> {current}"))
        for sentence in left_out:
            console.print(sentence, highlight=False)
    return int(fail_above is not None and found[0].psi > fail_above)


def _table(found: Sequence[Drift], title: str) -> Table:
    table = Table(title=title)
    for head in ("column", "psi", "noise", "shift", "bins", "unseen", "empty before", "empty now"):
        table.add_column(head, justify="left" if head in ("column", "shift") else "right")
    for drift in found:
        unseen = "" if drift.unseen is None else f"{drift.unseen:.2%}"
        numbers = (f"{drift.psi:.4f}", f"{drift.noise:.4f}", drift.verdict, str(drift.bins))
        table.add_row(drift.column, *numbers, unseen, *(f"{share:.2%}" for share in drift.empty))
    return table


def _scan(path: AnyPath) -> pl.LazyFrame:
    return scan_parquet(named_parquet_files(path))


def _of_numbers(before: pl.Series, now: pl.Series) -> Drift:
    clean = [rows.fill_nan(None).drop_nulls().to_numpy() for rows in (before, now)]
    edges = np.unique(np.quantile(clean[0], np.arange(1, QUANTILES) / QUANTILES))
    bins = [
        np.bincount(np.searchsorted(edges, kept, "right"), minlength=len(edges) + 1)
        for kept in clean
    ]
    empty = [len(rows) - len(kept) for kept, rows in zip(clean, (before, now), strict=True)]
    return _compared(before, now, "numbers", bins, empty, unseen=None)


def _of_values(before: pl.Series, now: pl.Series) -> Drift:
    is_list = before.dtype.base_type() is pl.List
    if is_list:
        flat = [rows.explode(keep_nulls=False, empty_as_null=False) for rows in (before, now)]
        empty = [int((rows.list.len().fill_null(0) == 0).sum()) for rows in (before, now)]
    else:
        flat, empty = [before, now], [rows.null_count() for rows in (before, now)]
    flat = [values.drop_nulls() for values in flat]
    counted = flat[0].value_counts(sort=True, name="rows")
    most = counted[before.name].head(MOST_VALUES)
    bins = []
    for values in flat:
        own = values.value_counts(name="rows").filter(pl.col(before.name).is_in(most.implode()))
        rows = dict(own.iter_rows())
        of_most = [rows.get(value, 0) for value in most]
        bins.append(np.array([*of_most, len(values) - sum(of_most)]))
    known = flat[1].is_in(counted[before.name].implode())
    unseen = 1 - float(known.mean() or 0.0) if len(known) else 0.0  # type: ignore[arg-type]
    return _compared(before, now, "values", bins, empty, unseen)


def _compared(
    before: pl.Series,
    now: pl.Series,
    kind: str,
    bins: list[npt.NDArray[np.int64]],
    empty: list[int],
    unseen: float | None,
) -> Drift:
    """The drift of rows counted in bins; empty ones are a bin too, if there are any."""
    counts = np.stack([np.append(own, none) for own, none in zip(bins, empty, strict=True)])
    counts = counts[:, counts.sum(axis=0) > 0]
    number = counts.shape[1]
    total = counts.sum(axis=1, keepdims=True)
    p, q = (counts + 0.5) / (total + 0.5 * number)
    noise = float((1 / total).sum() * chi2.ppf(LEVEL, number - 1)) if number > 1 else 0.0
    return Drift(
        column=before.name,
        kind=kind,
        bins=number,
        psi=float(((q - p) * np.log(q / p)).sum()),
        noise=noise,
        unseen=unseen,
        empty=(empty[0] / len(before), empty[1] / len(now)),
    )
