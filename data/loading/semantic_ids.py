"""Semantic ids as sparse features: one column and one table per level of an item's codes."""

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns
from msrec.data.schema import Schema, SparseFeature


class SemanticIds:
    """Adds the codes of each row's item as columns; an `IdTransform`.

    It reads the column `item`, an index into items.parquet. An item that is not there, with index
    -1, has row 0 at every level.

    Shape:
        codes: (num_items, L), int32, table rows in [0, C]; 0 for an item without a vector.

    Args:
        codes: of the items.
        num_codes: number C of codes per level.
    """

    def __init__(self, codes: npt.NDArray[np.int32], num_codes: int) -> None:
        self.codes, self.num_codes = codes, num_codes
        # Index -1 reads the last row. Levels are contiguous, because each is read alone.
        self._levels = np.vstack([codes, np.zeros_like(codes[:1])]).T.copy()

    def apply(self, columns: Columns, rows: npt.NDArray[np.int64], epoch: int) -> Columns:
        """Returns the columns with those of the levels; see `IdTransform`."""
        item = columns["item"]
        return columns | {
            level_name(number): level[item] for number, level in enumerate(self._levels)
        }

    def extended(self, schema: Schema) -> Schema:
        """Returns a schema with the features of the levels, see `with_semantic_ids`."""
        return with_semantic_ids(schema, self.codes.shape[1], self.num_codes)

    def save(self, file: Path) -> None:
        """Writes the codes to an npz file."""
        np.savez_compressed(file, allow_pickle=False, codes=self.codes, num_codes=self.num_codes)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads the codes that `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(arrays["codes"], int(arrays["num_codes"]))


def with_semantic_ids(schema: Schema, levels: int, codes: int) -> Schema:
    """Returns the schema with a feature and a table of `codes` + 1 rows for each level.

    Raises:
        ValueError: the dataset has a column or table of that name.
    """
    names = [level_name(number) for number in range(levels)]
    if taken := sorted({*schema.columns, *schema.tables} & set(names)):
        raise ValueError(
            f"llm.semantic_ids adds the features {', '.join(names)}, so that the dataset "
            f"{schema.name} must have no column or table {taken[0]!r}; rename that one."
        )
    added = {
        "sparse": [*schema.sparse, *(SparseFeature(name=name, table=name) for name in names)],
        "tables": schema.tables | dict.fromkeys(names, codes + 1),
    }
    return schema.model_copy(update=added)


def level_name(number: int) -> str:
    """Returns the name of a level's feature and table, from `semantic_1` for level 0."""
    return f"semantic_{number + 1}"
