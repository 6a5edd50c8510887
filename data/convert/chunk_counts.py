"""Counts of the rows of a chunk, which may be added up in any order."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import SIDES, RawTables, Side
from msrec.data.convert.split import TRAIN, SplitCodes
from msrec.data.convert.vocabulary_encoding import EncodedFeatures
from msrec.data.features.hashed_values import Managed
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.labels import LabelOptions
from msrec.data.schema import SPLITS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
POSITIONS = ("user", "item", "scenario")
"""Columns with the positions of a row's user, item and scenario."""
MANY = 8
"""Times the values of a chunk up to which an array of all table rows is counted at once."""


class Sparse(NamedTuple):
    """The entries of a large array of counts that are not zero, in ascending order of `at`."""

    at: Ints
    counts: Ints

    @classmethod
    def of(cls, values: Ints, size: int) -> Self:
        """Counts values in [0, size)."""
        if size <= MANY * len(values):
            counts = np.bincount(values, minlength=size)
            at = np.flatnonzero(counts)
            return cls(at, counts[at])
        return cls(*np.unique(values, return_counts=True))


class ChunkCounts(NamedTuple):
    """Counts of some rows, to be added up in any order; see `ConversionCounts`.

    All are integers, so that sums do not depend on how the rows were divided into chunks.

    Shape:
        rows, positives: (splits, scenarios).
        time: (2, splits), first and last time; the first is above the last in an empty split.
        labels: label -> (4, splits), see `LabelCounts`.
        sides: user or item -> rows by (position, scenario, split), as a flat index.
        flaws: feature of the interactions -> (2, splits), missing values and unknown ids.
        lookups: feature of the interactions -> lookups of its table rows in training.
    """

    rows: Ints
    positives: Ints
    time: Ints
    labels: dict[str, list[list[int]]]
    sides: dict[Side, Sparse]
    flaws: dict[str, Ints]
    lookups: dict[str, Sparse]

    @classmethod
    def of(
        cls,
        raw: RawTables,
        encoded: EncodedFeatures,
        codes: SplitCodes,
        columns: Mapping[str, pl.Series],
        is_missing: Mapping[str, Bools],
    ) -> Self:
        """Counts some rows.

        Args:
            raw: names the columns.
            encoded: has the vocabularies.
            codes: the splits of the rows.
            columns: their users, items, scenarios, labels, timestamps and encoded features.
            is_missing: for each feature of side interaction, whether the raw value is null.
        """
        scenario = columns["scenario"].cast(pl.Int64).to_numpy()
        num_scenarios, split = len(raw.scenarios), codes.astype(np.int64)
        cell, shape = split * num_scenarios + scenario, (len(SPLITS), num_scenarios)
        label = columns[raw.labels[0]].to_numpy()
        rows, positives = (
            np.bincount(cell, weights, minlength=shape[0] * shape[1]) for weights in (None, label)
        )
        sides: dict[Side, Sparse] = {}
        for side in SIDES:
            position = columns[side].cast(pl.Int64).to_numpy()
            index = (position * num_scenarios + scenario) * len(SPLITS) + split
            sides[side] = Sparse.of(index, encoded.heights[side] * num_scenarios * len(SPLITS))
        features = [f for f in raw.interaction_features if f.kind != "dense"]
        flaws = {
            f.name: np.stack(
                [
                    np.bincount(codes, flaw, minlength=len(SPLITS)).astype(np.int64)
                    for flaw in flaws_of(is_missing[f.name], columns[f.name])
                ]
            )
            for f in features
        }
        is_training = codes == TRAIN
        lookups = {
            f.name: _lookups(columns[f.name].filter(pl.Series(is_training)), encoded, f.name)
            for f in features
            if not isinstance(encoded.vocabularies[f.name], Managed)
        }
        return cls(
            rows.astype(np.int64).reshape(shape),
            positives.astype(np.int64).reshape(shape),
            time_span(columns[raw.timestamp].to_numpy() if raw.timestamp else None, codes),
            {n: label_counts(columns[n].to_numpy(), codes, raw.label(n)) for n in raw.labels[1:]},
            sides,
            flaws,
            lookups,
        )

    def totals(self) -> dict[str, Any]:
        """Returns the counts that are a few numbers, as JSON."""
        few = {name: getattr(self, name).tolist() for name in ("rows", "positives", "time")}
        flaws = {name: flaws.tolist() for name, flaws in self.flaws.items()}
        return {**few, "labels": self.labels, "flaws": flaws}

    @classmethod
    def of_totals(cls, totals: Mapping[str, Any]) -> Self:
        """Returns the counts of `totals`, without those by position."""
        rows, positives, time = (np.array(totals[n]) for n in ("rows", "positives", "time"))
        flaws = {name: np.array(flaws) for name, flaws in totals["flaws"].items()}
        return cls(rows, positives, time, totals["labels"], {}, flaws, {})


def label_counts(
    values: npt.NDArray[np.float32], codes: SplitCodes, options: LabelOptions
) -> list[list[int]]:
    """Counts the rows of each split that have a label, lack it, and exceed its `clip`; (N,) rows.

    Returns:
        Four lists with a number for each split; the last one is the sum in units of 2^-172.
    """
    is_missing = np.isnan(values)
    low, high = options.clip or (-np.inf, np.inf)
    rows = [
        np.bincount(codes, weights, minlength=len(SPLITS)).astype(np.int64).tolist()
        for weights in (~is_missing, is_missing, (values < low) | (values > high))
    ]
    return [*rows, [_exact_sum(values[(codes == c) & ~is_missing]) for c in range(len(SPLITS))]]


def _exact_sum(values: npt.NDArray[np.float32]) -> int:
    """Returns the sum in units of 2^-172, so that it does not depend on the order of the values.

    A float32 is an integer of 24 bits times a power of two of at least 2^-172.
    """
    mantissa, exponent = np.frexp(values.astype(np.float64))
    sums = np.bincount(exponent + 148, mantissa * 2**24)  # below 2^53 for 2^29 values: exact
    return sum(int(total) << shift for shift, total in enumerate(sums))


def flaws_of(is_missing: Bools, values: pl.Series) -> Ints:
    """(2, values): 1 if a value is missing, and the number of its ids that are unknown."""
    missing = is_missing.astype(np.int64)
    if values.dtype.base_type() is pl.List:
        unknown = values.list.eval(pl.element() == UNKNOWN).list.sum().fill_null(0)
        return np.stack([missing, unknown.cast(pl.Int64).to_numpy()])
    return np.stack([missing, (values == UNKNOWN).cast(pl.Int64).to_numpy() - missing])


def _lookups(values: pl.Series, encoded: EncodedFeatures, name: str) -> Sparse:
    """Counts the lookups of the rows of a table."""
    return Sparse.of(flat_ids(values), encoded.table_rows[name])


def flat_ids(values: pl.Series) -> Ints:
    """Returns all ids, those of lists one after the other."""
    if values.dtype.base_type() is pl.List:
        values = values.explode(keep_nulls=False, empty_as_null=False)
    return values.cast(pl.Int64).to_numpy()


def time_span(clock: Ints | None, codes: SplitCodes) -> Ints:
    """(2, splits): first and last time of the rows of each split."""
    limits = np.iinfo(np.int64)
    span = np.tile([[limits.max], [limits.min]], len(SPLITS))
    for code in range(len(SPLITS)):
        times = clock[codes == code] if clock is not None else []
        if len(times):
            span[:, code] = np.min(times), np.max(times)
    return span
