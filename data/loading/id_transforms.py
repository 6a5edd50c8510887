"""Transforms of ids between the files of a dataset and the tables of a model.

A loader applies them in order to the columns of some rows. Each is a class with one method.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns, Ids, map_ids
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.schema import Schema, SparseFeature

Rows = npt.NDArray[np.int64]


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


class AlignedIds:
    """Maps the ids of another dataset to those of the dataset a model was trained on."""

    def __init__(self, alignment: VocabularyAlignment) -> None:
        self._alignment = alignment

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with the trained dataset's ids and scenarios."""
        return self._alignment.columns(columns)


class RareIds:
    """Replaces rare ids of single-valued features by row 0, in every split.

    A vector that was learned from a few rows is noise.

    Args:
        is_rare: feature -> (rows of its table,), bool.
    """

    def __init__(self, is_rare: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        self.is_rare = is_rare

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with rare ids as row 0."""
        changed = dict(columns)
        for name, is_rare in self.is_rare.items():
            ids = changed[name]
            changed[name] = np.where(is_rare[ids], ids.dtype.type(UNKNOWN), ids)
        return changed


class FoldedIds:
    """Maps ids to smaller tables: several ids share a row, row 0 (unknown) stays.

    Args:
        schema: of the files.
        folded: the same schema with smaller tables, see `Schema.scaled`.
    """

    def __init__(self, schema: Schema, folded: Schema) -> None:
        self._schema, self._folded = schema, folded

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with ids modulo the rows of the smaller tables."""
        return map_ids(self._schema, columns, self._fold)

    def _fold(self, feature: SparseFeature, ids: Ids, row: Any) -> Ids:
        size = np.int32(self._folded.tables[feature.table])
        if size == self._schema.tables[feature.table]:
            return ids
        known: Ids = 1 + (ids - 1) % (size - 1)
        return np.where(ids == UNKNOWN, np.int32(UNKNOWN), known)


class ScenarioIds:
    """Maps ids to the scenario's copy of each table: id + scenario * rows of the table.

    Args:
        schema: its tables have the size of one copy.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def apply(self, columns: Columns, rows: Rows, epoch: int) -> Columns:
        """Returns the columns with ids of the scenario's copies."""
        scenario = columns["scenario"].astype(np.int32)

        def shift(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
            offset: Ids = scenario * np.int32(self._schema.tables[feature.table])
            of_ids: Ids = offset[row]
            return ids + of_ids

        return map_ids(self._schema, columns, shift)


def table_transforms(schema: Schema, scale: float, per_scenario: bool) -> list[IdTransform]:
    """Returns the transforms from the ids of files to the tables of a run.

    Args:
        schema: of the dataset.
        scale: share of each table's rows that the run keeps, 1 for all.
        per_scenario: whether the run has a copy of every table for each scenario.
    """
    folded = schema.scaled(scale)
    transforms: list[IdTransform] = []
    if folded is not schema:
        transforms.append(FoldedIds(schema, folded))
    if per_scenario:
        transforms.append(ScenarioIds(folded))
    return transforms


def apply_all(
    transforms: Sequence[IdTransform], columns: Columns, rows: Rows, epoch: int
) -> Columns:
    """Applies transforms in order."""
    for transform in transforms:
        columns = transform.apply(columns, rows, epoch)
    return columns
