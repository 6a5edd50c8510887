"""Popularity of the ids of a data set's tables, as `msrec show DATA --id-counts FILE` writes it."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.validation import StrictModel, first_error

Points = tuple[tuple[int, float], ...]
"""Numbers of most popular ids, rising, each with the share of lookups that they have together."""


class TableCounts(StrictModel):
    """Counted lookups of a table.

    Attributes:
        rows: of the table.
        lookups: ids counted, all features together.
        distinct: different ids among them.
        points: see `Points`.
    """

    rows: int
    lookups: int
    distinct: int
    points: Points


class IdCounts(StrictModel):
    """Counted lookups by table, in the training split of a data set."""

    dataset: str
    tables: dict[str, TableCounts]


def read_id_counts(file: Path) -> Mapping[str, Points]:
    """Returns table -> popularity of its ids.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not such a file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a file of msrec show --id-counts; there is none.")
    try:
        found = IdCounts.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{file} must be a file of msrec show --id-counts; {first_error(error)}."
        ) from None
    return {name: table.points for name, table in found.tables.items() if table.points}
