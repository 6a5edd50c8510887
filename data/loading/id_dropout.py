"""Id dropout: replaces the ids of random training rows by row 0, the unknown id."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema


class IdDropout:
    """Replaces ids of random training rows by row 0.

    The model so learns to score users and items whose ids it does not know from everything else,
    as it must for new ones.

    Args:
        shares: feature -> share of training rows whose id is dropped, in [0, 1).
        seed: of the choice of rows, which depends on (seed, epoch, row) alone.

    Source:
        DropoutNet (Volkovs et al., NIPS 2017).
    """

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        self._shares, self._seed = dict(shares), seed

    def apply(self, columns: Columns, rows: npt.NDArray[np.int64], epoch: int) -> Columns:
        """Returns the columns with dropped ids as row 0."""
        changed = dict(columns)
        for number, (name, share) in enumerate(self._shares.items()):
            ids = changed[name]
            key = (self._seed * 1_000_003 + epoch) * 1_000_003 + number
            changed[name] = np.where(_uniform(rows, key) < share, ids.dtype.type(UNKNOWN), ids)
        return changed


def rare_ids(
    dataset: AnyPath, schema: Schema, min_rows: Mapping[str, int], faults: Policy = "fail"
) -> dict[str, npt.NDArray[np.bool_]]:
    """Finds ids with few training rows.

    Args:
        dataset: the dataset folder; only its training split is read.
        schema: of the dataset.
        min_rows: feature -> training rows below which an id is rare.
        faults: policy for rows that break the schema; excluded rows are not counted.

    Returns:
        Feature -> (rows of its table,), bool.
    """
    if not min_rows:
        return {}
    columns = SplitReader(dataset, schema, "train", only=list(min_rows), faults=faults).read_good()
    return {
        name: np.bincount(columns[name], minlength=schema.tables[schema.table_of(name)]) < least
        for name, least in min_rows.items()
    }


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


def _uniform(rows: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.float64]:
    """Returns a number in [0, 1) for each row, by splitmix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(key % (1 << 64))
        z = z * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
