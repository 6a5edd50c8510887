"""Memory on every rank of what is not tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msrec.launch.reporting.plan_table import FLOAT_BYTES


@dataclass(frozen=True)
class DenseLoad:
    """Bytes on every rank of what is not tables, by line.

    Attributes:
        fixed: line -> bytes, whatever the batch.
        by_rows: line -> (bytes at no row, bytes a row) of the batch of a rank.
        reading: the same for the rows that are being read and shuffled, in host memory.
    """

    fixed: Mapping[str, int] = field(default_factory=dict)
    by_rows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reading: tuple[float, float] = (0.0, 0.0)

    def host(self, rows: int) -> int:
        """Bytes in host memory for a batch."""
        return int(self.reading[0] + self.reading[1] * rows)

    def at(self, rows: int) -> dict[str, int]:
        """All lines for a batch."""
        growing = {name: int(max(a + b * rows, 0)) for name, (a, b) in self.by_rows.items()}
        return {**self.fixed, **growing}


def learned_lines(parameters: int) -> dict[str, int]:
    """Bytes that training with Adam adds to dense parameters."""
    size = parameters * FLOAT_BYTES
    return {"their gradients": size, "Adam's state": 2 * size}
