"""Options of a command as `key=value`: torchx refuses dashed ones that are repeated."""

from collections.abc import Collection, Sequence

EVALUATE = frozenset({"split", "checkpoint", "by", "data"})
PREDICT = frozenset({"data", "out", "columns", "checkpoint", "dataset"})


def read_options(given: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Options by name.

    Raises:
        ValueError: one is unknown, or no `key=value`.
    """
    options = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"{item!r} is not known here; known are {', '.join(sorted(known))}=..."
            )
        options[key] = value
    return options
