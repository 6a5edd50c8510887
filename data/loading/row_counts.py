"""Numbers of rows per key, counted on the host before a batch goes to its device."""

import numpy as np
import numpy.typing as npt

RowCounts = npt.NDArray[np.int64]
"""(G,), rows of each group; always on the host, so that reading it never waits for a device."""


def count_rows(key: npt.NDArray[np.int64], num_groups: int, name: str = "scenario") -> RowCounts:
    """Counts the rows of each key.

    Shape:
        key: (B,), int64 in [0, num_groups).
        returns: (num_groups,), int64.

    Raises:
        ValueError: a key is out of range; the message names its row.

    Example:
        >>> count_rows(np.array([2, 0, 2]), 4).tolist()
        [1, 0, 2, 0]
    """
    bad = (key < 0) | (key >= num_groups)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"every {name} must be in [0, {num_groups}); got {int(key[row])} in row {row} of the "
            f"batch. Check the {name} ids of the data against the number the model was built with."
        )
    return np.bincount(key, minlength=num_groups)
