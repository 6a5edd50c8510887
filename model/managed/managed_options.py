"""Options of managed tables; needs no TorchRec, as a run's config must not."""

from dataclasses import dataclass
from typing import Literal

Eviction = Literal["lfu", "lru", "distance"]
"""Rule by which an id loses its table row to a new one."""


@dataclass(frozen=True)
class ManagedOptions:
    """Options of all managed tables.

    Args:
        eviction: rule by which an id loses its row: the fewest occurrences ("lfu"), the oldest last
            occurrence ("lru"), or the fewest occurrences divided by the steps since the last one
            ("distance").
        interval: steps between two updates of a map.
        step_rows: most rows of a step over all ranks.
        dim: length of a row's vector.
        init_std: standard deviation of a new row's values.
        seed: of a new row's values.
    """

    eviction: Eviction
    interval: int
    step_rows: int
    dim: int
    init_std: float
    seed: int
