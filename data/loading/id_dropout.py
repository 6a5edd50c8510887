"""Ids that a model is to take as unknown (row 0 of their table): rare ones, and some at random."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import Policy
from msrec.data.loading.split_reader import Columns, SplitFiles
from msrec.data.schema import Schema


class UnknownIds:
    """Changes ids of single-valued features to row 0.

    Rare ids, in every split: a vector that was learned from a few rows is noise. Ids of random
    training rows: so the model learns what to say of a user (item) whose id it does not know, from
    everything else there is, as it will have to for new ones.

    Args:
        dataset: the dataset folder.
        schema: of the dataset.
        rare: feature -> training rows that an id must have, or be unknown.
        dropout: feature -> share of training rows whose id is taken as unknown.
        seed: of the choice of rows, which depends on (seed, epoch, row) alone.
        faults: what to do with rows that break the schema; those left out count for no id.

    Raises:
        ValueError: a feature is not there, or multi-valued.

    Source:
        DropoutNet (Volkovs et al., NIPS 2017).
    """

    def __init__(
        self,
        dataset: AnyPath,
        schema: Schema,
        rare: Mapping[str, int],
        dropout: Mapping[str, float],
        seed: int,
        faults: Policy = "fail",
    ) -> None:
        single = [feature.name for feature in schema.sparse if not feature.multi]
        for name in (*rare, *dropout):
            if name not in single:
                raise ValueError(
                    f"embeddings.rare and embeddings.id_dropout must name single-valued sparse "
                    f"features ({', '.join(single)}); got {name!r}."
                )
        self._dropout, self._seed = dict(dropout), seed
        self.is_rare: dict[str, npt.NDArray[np.bool_]] = {}
        """Feature -> (rows of its table,), which ids are rare."""
        if rare:
            files = SplitFiles(dataset, schema, "train", only=list(rare), faults=faults)
            columns = files.read_good()
            for name, least in rare.items():
                size = schema.tables[schema.table_of(name)]
                self.is_rare[name] = np.bincount(columns[name], minlength=size) < least

    def apply(
        self, columns: Columns, rows: npt.NDArray[np.int64], epoch: int, is_train: bool
    ) -> Columns:
        """The columns (n values each) of some rows (n,) of a split, with unknown ids as row 0."""
        changed = as_unknown(columns, self.is_rare)
        if is_train:
            for number, (name, share) in enumerate(self._dropout.items()):
                ids = changed[name]
                key = (self._seed * 1_000_003 + epoch) * 1_000_003 + number
                changed[name] = np.where(_uniform(rows, key) < share, ids.dtype.type(UNKNOWN), ids)
        return changed


def as_unknown(columns: Columns, ids: Mapping[str, npt.NDArray[np.bool_]]) -> Columns:
    """The columns with some ids as row 0.

    Args:
        columns: of some rows.
        ids: feature -> (rows of its table,), which of its ids.
    """
    changed = dict(columns)
    for name, is_unknown in ids.items():
        values = changed[name]
        changed[name] = np.where(is_unknown[values], values.dtype.type(UNKNOWN), values)
    return changed


def _uniform(rows: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row, by splitmix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(key % (1 << 64))
        z = z * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
