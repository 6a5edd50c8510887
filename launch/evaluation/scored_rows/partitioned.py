"""Exact metrics of more rows than fit into memory: file by file, with the same sums."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from msrec.launch.evaluation.scored_rows.parts import Parts
from msrec.launch.evaluation.scored_rows.row_groups import RowGroups
from msrec.launch.evaluation.scored_rows.scratch import Records, ScratchRows, taken, write_scratch
from msrec.model.metrics.bootstrap import MAX_BLOCKS, Bootstrap, random_blocks
from msrec.model.metrics.definitions import Array, Floats, Ints, Metrics
from msrec.model.metrics.exact import (
    MetricOptions,
    ScoreKind,
    group_metrics,
    impression_codes,
    rows_by_group,
)
from msrec.model.metrics.ranking import RankState, score_order
from msrec.model.metrics.user_sums import BinarySums, BinaryTable, RankingSums, UserSums

ROWS_PER_FILE = 1 << 21
GROUPS_AT_ONCE = 64
"""Groups whose tables are in memory at once; more groups read the files again."""
ALL = -1
"""The grouping of all rows in one group."""
Group = tuple[int, int]
"""A grouping, and the number of a group in it."""
WHOLE: Group = (ALL, 0)


@contextmanager
def partitioned(
    parts: Parts,
    columns: dict[str, str],
    kind: ScoreKind,
    scenarios: list[str],
    slices: Sequence[RowGroups],
    options: MetricOptions,
) -> Iterator["PartitionedRows"]:
    """Writes the rows of a binary label to files in a temporary folder (TMPDIR).

    They are there once in ranges of scores and once by user: about 60 bytes per row on disk, and a
    byte per row in memory. Rows with one score, and rows of one user, are in one file.

    Args:
        parts: the predictions.
        columns: columns of `label`, `score` and, if there is one, `label_weight`.
        kind: "binary" or "ranking".
        scenarios: names.
        slices: further groups of the rows.
        options: of the metrics.

    Raises:
        ValueError: a part cannot be read, or a value is out of its range.
    """
    with TemporaryDirectory(prefix="msrec-evaluate-") as folder:
        arguments = (columns, kind, len(scenarios), slices, ROWS_PER_FILE, options.seed)
        rows = write_scratch(parts, Path(folder), *arguments)
        yield PartitionedRows(rows, [scenarios, *(each.names for each in slices)], kind, options)


class PartitionedRows:
    """Rows of a label on disk.

    Args:
        rows: the files.
        groups: names of the groups of each grouping: the scenarios, then the slices.
        kind: "binary" or "ranking".
        options: of the metrics.
    """

    def __init__(
        self,
        rows: ScratchRows,
        groups: Sequence[Sequence[str]],
        kind: ScoreKind,
        options: MetricOptions,
    ) -> None:
        self._rows, self._groups, self._kind, self._options = rows, groups, kind, options
        users = rows.users
        self._num_blocks = MAX_BLOCKS if users is None else len(users)

    def metrics(self) -> tuple[Metrics, list[dict[str, Metrics]]]:
        """Computes the metrics of all rows; and of each group of each grouping, by name."""
        groups = [(g, n) for g, names in enumerate(self._groups) for n in range(len(names))]
        bootstrap = Bootstrap.draw(self._num_blocks, self._options.resamples, self._options.seed)
        of_group = (
            group_metrics(sums, bootstrap, int(_of_group(self._rows.missing, group)))
            for group, sums in self._sums([WHOLE, *groups])
        )
        whole = next(of_group)
        return whole, [{name: next(of_group) for name in names} for names in self._groups]

    def scenario_sums(self) -> list[UserSums]:
        """Computes the sums of all rows, then of each scenario."""
        groups = [WHOLE, *((0, number) for number in range(len(self._groups[0])))]
        return [sums for _, sums in self._sums(groups)]

    def _sums(self, groups: list[Group]) -> Iterator[tuple[Group, UserSums]]:
        """Yields groups and their sums."""
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            yield from zip(some, self._sums_at_once(some), strict=True)

    def _sums_at_once(self, groups: list[Group]) -> list[UserSums]:
        weights = {group: _of_group(self._rows.class_weights, group) for group in groups}
        tables = {g: BinaryTable(self._num_blocks) for g in groups if weights[g].any()}
        states = {g: RankState(weights[g][1], weights[g][0]) for g in tables}
        for records in self._rows.by_score() if tables else ():
            for group, chosen in _ordered(records, list(tables)):
                score, label, weight = self._columns(chosen)
                line = self._blocks(chosen["user"])
                tables[group].add_ranks(score, label, weight, line, states[group])
        for records in self._rows.by_user() if tables else ():
            for group, chosen in _ordered(records, list(tables)):
                self._add_users(tables[group], chosen)
        return [self._group_sums(tables.get(group)) for group in groups]

    def _add_users(self, table: BinaryTable, chosen: Records) -> None:
        users, code = np.unique(chosen["user"], return_inverse=True)
        impression = None
        if "impression" in (chosen.dtype.names or ()):
            impression = impression_codes(chosen["impression"], code)
        k, line_of = self._options.k, self._blocks(users)
        columns = self._columns(chosen)
        table.add_users(*columns, code.astype(np.uint32), line_of, k, impression)

    def _group_sums(self, table: BinaryTable | None) -> UserSums:
        sums = BinaryTable(0).sums if table is None else table.sums
        blocks = np.flatnonzero(sums[:, :2].any(axis=1))  # with negatives or positives
        make = BinarySums if self._kind == "binary" else RankingSums
        return make(blocks, sums[blocks])

    def _columns(self, chosen: Records) -> tuple[Array, Array, Floats | None]:
        weight = chosen["weight"].astype(np.float64) if self._rows.is_weighted else None
        return chosen["score"], chosen["label"], weight

    def _blocks(self, hashes: Array) -> Ints:
        users = self._rows.users
        return random_blocks(hashes) if users is None else np.searchsorted(users, hashes)


def _of_group(by_grouping: Sequence[Array], group: Group) -> Array:
    """Returns the entry of a group, or the sum of all groups of a grouping, which has all rows."""
    grouping, number = group
    return np.asarray(
        by_grouping[0].sum(axis=0) if grouping == ALL else by_grouping[grouping][number]
    )


def _ordered(records: Records, groups: list[Group]) -> Iterator[tuple[Group, Records]]:
    """Yields the rows of each group by rising score, of groups with rows."""
    records = taken(records, score_order(records["score"]))
    for grouping, of_grouping in itertools.groupby(groups, key=lambda group: group[0]):
        if grouping == ALL:
            yield WHOLE, records
            continue
        by_group = rows_by_group(records["group"][:, grouping], max(n for _, n in groups) + 1)
        for group in of_grouping:
            rows = by_group[group[1]]
            if len(rows):
                yield group, taken(records, rows)
