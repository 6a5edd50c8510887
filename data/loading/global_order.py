"""The global order of rows: the row in each slot of each global batch.

A pure function of (rows per row group, seed, epoch, global batch size). The world size is not among
them, so a run that is resumed on another number of ranks gets the same global batches.

An epoch lays the row groups in a random order on a ring of N rows and turns the ring by a random
offset. The ring is cut into `lanes`: arcs of equal length (to one row). Each global batch takes the
same number of rows from every lane::

    ring      | group 7 | group 2 | group 9 | group 0 | ...
    lanes     |---- 0 ----|---- 1 ----|---- 2 ----|---- ...
    batch 0   rank 0: [lane 0 | lane 1]   rank 1: [lane 2 | lane 3]

Some batches in a row are a window; within a lane, the rows of a window are permuted. So

- a batch mixes rows of `lanes` distant parts of the dataset;
- reading is sequential: each lane moves along its arc by one window after another;
- a rank reads only the lanes of its own slots, hence few row groups at a time;
- each epoch mixes other rows, because order and offset of the ring change.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_LANES = 64
LANE_ROWS = 1 << 22
"""Upper bound of lanes x largest row group, which bounds the decoded rows that a rank holds."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GlobalOrder:
    """Slots of global batches -> row ids.

    Args:
        group_rows: rows of each row group, in file order.
        global_batch: rows of a batch over all ranks.
        seed: of the shuffle.
        shuffle: False keeps groups and rows in file order; a batch still has rows of every lane.
        window_rows: rows that are permuted together, over all lanes.

    Raises:
        ValueError: there are no rows, or `global_batch` is below 1.
    """

    group_rows: tuple[int, ...]
    global_batch: int
    seed: int = 0
    shuffle: bool = True
    window_rows: int = 1 << 18

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"global_batch must be at least 1; got {self.global_batch}")
        if self.num_rows < 1:
            raise ValueError("a split must have at least one row; got none")

    @property
    def num_rows(self) -> int:
        """Rows of the split, N."""
        return sum(self.group_rows)

    @property
    def num_batches(self) -> int:
        """Global batches of an epoch; the last one may hold padding."""
        return -(-self.num_rows // self.global_batch)

    @property
    def num_lanes(self) -> int:
        """Arcs of the ring; a power of two that divides the global batch size."""
        fitting = max(1, min(MAX_LANES, LANE_ROWS // max(self.group_rows)))
        return math.gcd(self.global_batch, 1 << (fitting.bit_length() - 1))

    @property
    def window_batches(self) -> int:
        """Consecutive global batches whose rows are permuted together."""
        return max(1, self.window_rows // self.global_batch)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.num_batches // self.window_batches)

    def rows(self, epoch: int, window: int, rank: int = 0, world_size: int = 1) -> Rows:
        """Returns the row ids of one rank's slots in every batch of a window.

        Shape:
            returns: (batches of the window, global_batch / world_size), int64; -1 is padding, which
                only the last batch of an epoch has.

        Raises:
            ValueError: `global_batch` is not a multiple of `world_size`.
        """
        if self.global_batch % world_size:
            low = self.global_batch // world_size * world_size
            raise ValueError(
                f"the global batch must be a multiple of the world size; got {self.global_batch} "
                f"rows on {world_size} ranks. Use {low} or {low + world_size}."
            )
        share = self.global_batch // world_size
        per_lane = self.global_batch // self.num_lanes
        # A batch is its lanes' slots, one lane after another. A rank's share may begin and end
        # within a lane: the lanes that it touches are made whole, then cut to the share.
        start = rank * share
        first_lane, last_lane = start // per_lane, (start + share - 1) // per_lane
        first_batch = window * self.window_batches
        batches = min(self.window_batches, self.num_batches - first_batch)
        ring = Ring(self, epoch)
        lanes = np.stack(
            [
                self._lane(ring, epoch, window, lane, first_batch * per_lane, batches * per_lane)
                for lane in range(first_lane, last_lane + 1)
            ]
        )
        by_batch = lanes.reshape(len(lanes), batches, per_lane).transpose(1, 0, 2)
        skipped = start - first_lane * per_lane
        return by_batch.reshape(batches, -1)[:, skipped : skipped + share]

    def _lane(
        self, ring: "Ring", epoch: int, window: int, lane: int, first: int, count: int
    ) -> Rows:
        """Returns the row ids of a lane's slots in a window; -1 past the lane's end."""
        lane_start = self.num_rows * lane // self.num_lanes
        lane_end = self.num_rows * (lane + 1) // self.num_lanes
        present = max(0, min(count, lane_end - lane_start - first))
        rows = np.full(count, -1, dtype=np.int64)
        rows[:present] = ring.rows(lane_start + first, present)
        if self.shuffle:
            # Padding stays at the end, so that only the epoch's last batch has any.
            np.random.default_rng((self.seed, epoch, 1, window, lane)).shuffle(rows[:present])
        return rows


class Ring:
    """Row ids around the ring of an epoch: row groups in a random order, turned by an offset."""

    def __init__(self, order: GlobalOrder, epoch: int) -> None:
        self._num_rows = order.num_rows
        sizes = np.asarray(order.group_rows)
        starts = np.cumsum(sizes) - sizes
        groups, self._turn = np.arange(len(sizes)), 0
        if order.shuffle:
            rng = np.random.default_rng((order.seed, epoch, 0))
            groups = rng.permutation(len(sizes))
            self._turn = int(rng.integers(self._num_rows))
        self._ends = np.cumsum(sizes[groups])
        self._starts = self._ends - sizes[groups]
        self._shifts = starts[groups] - self._starts

    def rows(self, first: int, count: int) -> Rows:
        """Returns the row ids (positions in file order) of consecutive slots of the ring."""
        begin = (first + self._turn) % self._num_rows
        over = begin + count - self._num_rows
        if over > 0:
            return np.concatenate([self._straight(begin, self._num_rows), self._straight(0, over)])
        return self._straight(begin, begin + count)

    def _straight(self, begin: int, end: int) -> Rows:
        """Returns the row ids of slots that do not cross the end of the last group.

        Within a row group, row id = slot + shift of the group. Only the groups between `begin` and
        `end` are visited, found by bisection: there may be very many.
        """
        first = int(np.searchsorted(self._ends, begin, side="right"))
        groups = slice(first, int(np.searchsorted(self._ends, end, side="left")) + 1)
        low = np.maximum(self._starts[groups], begin)
        lengths = np.maximum(np.minimum(self._ends[groups], end) - low, 0)
        rows: Rows = np.arange(begin, end) + np.repeat(self._shifts[groups], lengths)
        return rows
