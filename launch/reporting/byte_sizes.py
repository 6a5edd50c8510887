"""Sizes of numbers, and text for bytes and ranks; imported without torch."""

from collections.abc import Sequence

FLOAT_BYTES, HALF_BYTES = 4, 2


def format_bytes(num_bytes: float) -> str:
    """Returns a number of bytes with its unit.

    Example:
        >>> [format_bytes(n) for n in (512, 3 << 20, 5 << 29)]
        ['0.5 KiB', '3.0 MiB', '2.5 GiB']
    """
    unit, power = ("GiB", 30) if num_bytes >= 1 << 30 else ("MiB", 20)
    if num_bytes < 1 << 20:
        unit, power = "KiB", 10
    return f"{num_bytes / (1 << power):,.1f} {unit}"


def format_ranks(ranks: Sequence[int]) -> str:
    """Returns ranks as text, three or more consecutive ones as a range.

    Example:
        >>> format_ranks([0, 1, 2, 3]), format_ranks([2, 5])
        ('0-3', '2, 5')
    """
    first, last = min(ranks), max(ranks)
    if len(ranks) > 2 and sorted(ranks) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ", ".join(map(str, ranks))
