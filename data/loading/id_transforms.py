"""Transforms of ids between the files of a dataset and the tables of a model.

A loader applies them in order to the columns of some rows. Each is a class with one method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns, Ids, map_ids
from msrec.data.features.splitmix import splitmix64
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema, SparseFeature

Rows = npt.NDArray[np.int64]
IsRare = Mapping[str, npt.NDArray[np.bool_]]
"""Feature -> (rows of its table,), whether an id has few training rows."""


class IdTransform(Protocol):
    """Changes ids in the columns of some rows."""

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with new ids; the given columns stay as they are.

        Args:
            columns: of n rows.
            rows: (n,), int64 row ids in the split, -1 for rows that do not count.
            epoch: number of the epoch, from 0.
        """
        ...


@dataclass(frozen=True)
class RareIds:
    """Replaces rare ids of single-valued features by row 0, in every split.

    A vector that was learned from a few rows is noise.
    """

    is_rare: IsRare

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with rare ids as row 0."""
        changed = dict(columns)
        for name, is_rare in self.is_rare.items():
            ids = changed[name]
            changed[name] = np.where(is_rare[ids], ids.dtype.type(UNKNOWN), ids)
        return changed


def rare_ids(
    dataset: AnyPath, schema: Schema, min_rows: Mapping[str, int], faults: Policy = "fail"
) -> IsRare:
    """Finds the ids with few training rows.

    Args:
        dataset: the dataset folder; only its training split is read.
        schema: of the dataset.
        min_rows: feature -> training rows below which an id is rare.
        faults: policy for rows that break the schema; excluded rows are not counted.

    Raises:
        ValueError: a feature is managed.
    """
    if not min_rows:
        return {}
    if managed := sorted(set(min_rows) & {feature.name for feature in schema.managed}):
        raise ValueError(
            f"embeddings.rare must name features with a vocabulary or a hash; {managed[0]!r} is "
            "managed, and its rare ids leave their rows by themselves."
        )
    columns = SplitReader(dataset, schema, "train", list(min_rows), faults).read_good()
    return {
        name: np.bincount(columns[name], minlength=schema.tables[schema.table_of(name)]) < least
        for name, least in min_rows.items()
    }


@dataclass(frozen=True)
class IdDropout:
    """Replaces the ids of random training rows by row 0.

    The model then learns to score users and items by everything except their ids, as it must for
    new ones.

    Args:
        shares: single-valued feature -> share of training rows whose id is dropped, in [0, 1).
        seed: of the choice of rows, which depends on (seed, epoch, row) alone.

    Source:
        DropoutNet (Volkovs et al., NIPS 2017).
    """

    shares: Mapping[str, float]
    seed: int

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with dropped ids as row 0."""
        changed = dict(columns)
        for number, (name, share) in enumerate(self.shares.items()):
            ids = changed[name]
            key = (self.seed * 1_000_003 + epoch) * 1_000_003 + number
            changed[name] = np.where(_uniform(rows, key) < share, ids.dtype.type(UNKNOWN), ids)
        return changed


def require_single_valued(schema: Schema, *options: Mapping[str, object]) -> None:
    """Refuses options that name anything but single-valued sparse features.

    Raises:
        ValueError: a feature does not exist or is multi-valued.
    """
    single = [feature.name for feature in schema.sparse if not feature.multi]
    for name in (name for option in options for name in option):
        if name not in single:
            raise ValueError(
                f"embeddings.rare and embeddings.id_dropout must name single-valued sparse "
                f"features ({', '.join(single)}); got {name!r}."
            )


@dataclass(frozen=True)
class ScaledIds:
    """Maps ids to smaller tables: several ids share a row, row 0 (unknown) stays.

    Args:
        schema: of the files.
        scaled: the same schema with smaller tables, see `Schema.scaled`.
    """

    schema: Schema
    scaled: Schema

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with ids modulo the rows of the smaller tables."""

        def scale(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
            size = np.int32(self.scaled.tables[feature.table])
            if size == self.schema.tables[feature.table]:
                return ids
            known: Ids = 1 + (ids - 1) % (size - 1)
            return np.where(ids == UNKNOWN, np.int32(UNKNOWN), known)

        return map_ids(self.schema, columns, scale)


@dataclass(frozen=True)
class ScenarioIds:
    """Maps ids to the scenario's copy of each table: id + scenario * rows of the table.

    Args:
        schema: its tables have the size of one copy.
    """

    schema: Schema

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with ids of the scenario's copies."""
        scenario = columns["scenario"].astype(np.int32)

        def shift(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
            offset: Ids = scenario * np.int32(self.schema.tables[feature.table])
            of_ids: Ids = offset[row]
            return ids + of_ids

        return map_ids(self.schema, columns, shift)


def table_transforms(schema: Schema, scale: float, per_scenario: bool) -> list[IdTransform]:
    """Returns the transforms from the ids of files to the tables of a run.

    Args:
        schema: of the dataset.
        scale: share of each table's rows that the run keeps, 1 for all.
        per_scenario: whether the run has a copy of every table for each scenario.
    """
    scaled = schema.scaled(scale)
    transforms: list[IdTransform] = []
    if scaled is not schema:
        transforms.append(ScaledIds(schema, scaled))
    if per_scenario:
        transforms.append(ScenarioIds(scaled))
    return transforms


def apply_all(
    transforms: Sequence[IdTransform], columns: Columns, rows: Rows, epoch: int
) -> Columns:
    """Applies transforms in order."""
    for transform in transforms:
        columns = transform.apply(columns, rows, epoch)
    return columns


def _uniform(rows: Rows, key: int) -> npt.NDArray[np.float64]:
    """Returns a number in [0, 1) for each row.

    Hashing row ids makes the choice independent of ranks, batches and the order of rows.
    """
    return (splitmix64(rows, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
