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


def partitioned_metrics(
    parts: Parts,
    columns: dict[str, str],
    kind: ScoreKind,
    scenarios: list[str],
    slices: Sequence[RowGroups],
    options: MetricOptions,
) -> tuple[Metrics, list[dict[str, Metrics]]]:
    """Computes the metrics of a binary label: of all rows, of each scenario, of groups of slices.

    The rows are written to files in a temporary folder (TMPDIR), once in ranges of scores and once
    by user: about 60 bytes per row on disk, and a byte per row in memory. Rows with one score, and
    rows of one user, are in one file.

    Args:
        parts: the predictions.
        columns: columns of `label`, `score` and, if there is one, `label_weight`.
        kind: "binary" or "ranking".
        scenarios: names.
        slices: further groups of the rows.
        options: of the metrics.

    Returns:
        The metrics of all rows; and of each scenario, and each group of each slice, by name.

    Raises:
        ValueError: a part cannot be read, or a value is out of its range.
    """
    with _judge(parts, columns, kind, scenarios, slices, options) as judge:
        [whole] = judge.metrics([(ALL, 0)])
        weights = judge.rows.class_weights
        groups = [(g, n) for g, of_groups in enumerate(weights) for n in range(len(of_groups))]
        found = [each for some in _some(groups) for each in judge.metrics(some)]
    by_group, names = iter(found), [scenarios, *(each.names for each in slices)]
    return whole, [{name: next(by_group) for name in each} for each in names]


def partitioned_sums(
    parts: Parts,
    columns: dict[str, str],
    kind: ScoreKind,
    scenarios: list[str],
    options: MetricOptions,
) -> list[UserSums]:
    """Computes the sums of a binary label: of all rows, then of each scenario.

    See `partitioned_metrics`.
    """
    with _judge(parts, columns, kind, scenarios, (), options) as judge:
        groups = [(ALL, 0), *((0, number) for number in range(len(scenarios)))]
        return [sums for some in _some(groups) for sums in judge.sums(some)]


@contextmanager
def _judge(
    parts: Parts,
    columns: dict[str, str],
    kind: ScoreKind,
    scenarios: list[str],
    slices: Sequence[RowGroups],
    options: MetricOptions,
) -> Iterator["_Judge"]:
    """Writes the rows of a label to a temporary folder, which is removed at the end."""
    with TemporaryDirectory(prefix="msrec-evaluate-") as folder:
        arguments = (columns, kind, len(scenarios), slices, ROWS_PER_FILE, options.seed)
        yield _Judge(write_scratch(parts, Path(folder), *arguments), kind, options)


def _some(groups: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yields as many groups as may be in memory at once."""
    for start in range(0, len(groups), GROUPS_AT_ONCE):
        yield groups[start : start + GROUPS_AT_ONCE]


class _Judge:
    """Metrics of the rows of a label on disk."""

    def __init__(self, rows: ScratchRows, kind: ScoreKind, options: MetricOptions) -> None:
        self.rows, self._kind, self._options = rows, kind, options
        users = rows.users
        self._num_blocks = MAX_BLOCKS if users is None else len(users)
        self._bootstrap = Bootstrap.draw(self._num_blocks, options.resamples, options.seed)

    def metrics(self, groups: list[tuple[int, int]]) -> list[Metrics]:
        """Returns the metrics of groups, given as grouping and number in it."""
        return [
            group_metrics(sums, self._bootstrap, int(_of_group(self.rows.missing, group)))
            for sums, group in zip(self.sums(groups), groups, strict=True)
        ]

    def sums(self, groups: list[tuple[int, int]]) -> list[UserSums]:
        """Returns the sums of groups."""
        weights = {group: _of_group(self.rows.class_weights, group) for group in groups}
        tables = {g: BinaryTable(self._num_blocks) for g in groups if weights[g].any()}
        states = {g: RankState(weights[g][1], weights[g][0]) for g in tables}
        for records in self.rows.by_score() if tables else ():
            for group, chosen in _ordered(records, list(tables)):
                score, label, weight = self._columns(chosen)
                line = self._blocks(chosen["user"])
                tables[group].add_ranks(score, label, weight, line, states[group])
        for records in self.rows.by_user() if tables else ():
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
        weight = chosen["weight"].astype(np.float64) if self.rows.is_weighted else None
        return chosen["score"], chosen["label"], weight

    def _blocks(self, hashes: Array) -> Ints:
        users = self.rows.users
        return random_blocks(hashes) if users is None else np.searchsorted(users, hashes)


def _of_group(by_grouping: Sequence[Array], group: tuple[int, int]) -> Array:
    """Returns the entry of a group, or the sum of all groups of a grouping, which has all rows."""
    grouping, number = group
    return np.asarray(
        by_grouping[0].sum(axis=0) if grouping == ALL else by_grouping[grouping][number]
    )


def _ordered(
    records: Records, groups: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Records]]:
    """Yields the rows of each group by rising score, of groups with rows."""
    records = taken(records, score_order(records["score"]))
    for grouping, of_grouping in itertools.groupby(groups, key=lambda group: group[0]):
        if grouping == ALL:
            yield (ALL, 0), records
            continue
        by_group = rows_by_group(records["group"][:, grouping], max(n for _, n in groups) + 1)
        for group in of_grouping:
            rows = by_group[group[1]]
            if len(rows):
                yield group, taken(records, rows)
