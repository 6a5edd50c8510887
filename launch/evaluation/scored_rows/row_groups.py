"""Groups of rows that are found by the ids of the rows, for rows that are read in portions."""

from collections.abc import Callable
from typing import NamedTuple

from msrec.model.metrics.definitions import Array, Ints
from msrec.model.metrics.exact import Grouping


class RowGroups(NamedTuple):
    """Names of groups, and a function from row ids (n,) to the group (n,) of each."""

    names: list[str]
    of_rows: Callable[[Ints], Array]

    def grouping(self, row_id: Ints) -> Grouping:
        """Returns the groups of some rows."""
        return Grouping(self.names, self.of_rows(row_id))
