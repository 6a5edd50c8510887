"""Table rows for any number of ids: new ids get rows while training, old ones lose them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import keyed_bags
from msrec.model.managed.managed_options import Eviction, ManagedOptions

POLICIES: dict[Eviction, type] = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance": DistanceLFU_EvictionPolicy,
}
NO_ID = 0
"""Number of a missing value; it has the table row 0, as an id without a row."""


class IdMap(MCHManagedCollisionModule):  # type: ignore[misc]  # TorchRec is untyped
    """Map from ids to rows of a table; row 0 is for every id without a row.

    Ids of the training rows are recorded. After every `interval` steps the map is updated: the ids
    with rows and the recorded ones are ranked by the eviction rule, and the first `rows - 1` have
    rows then. An id that keeps its place keeps its row.

    All state is in buffers: a map that is loaded from a checkpoint goes on as if nothing happened.

    Source:
        TorchRec's managed collision (`MCHManagedCollisionModule`), whose policies and update these
        are. It differs in four ways. TorchRec's record of ids has the length of the first batch
        times 1.25 `interval`, drops ids beyond it, and is not part of a checkpoint. Its table has
        ids without a row in the last row of each shard. It splits the map by ranges of ids over
        ranks, so that another number of ranks gives another map.

    Args:
        rows: of the table.
        options: of the map.
    """

    def __init__(self, rows: int, options: ManagedOptions) -> None:
        self._current_iter: int
        super().__init__(
            zch_size=rows,
            device=torch.get_default_device(),
            eviction_policy=POLICIES[options.eviction](),
            eviction_interval=options.interval,
        )
        recorded = torch.zeros(options.interval, options.step_rows, dtype=torch.int64)
        self.register_buffer("_recorded", recorded)
        self.register_buffer("_totals", torch.zeros(2, dtype=torch.int64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the rows of ids, int32, of the same shape."""
        known = self._mch_sorted_raw_ids
        at = torch.searchsorted(known[:-1], ids)
        rows = torch.where(known[at] == ids, self._mch_remapped_ids_mapping[at] + 1, 0)
        return rows.to(torch.int32)

    @torch.no_grad()
    def record(self, ids: torch.Tensor) -> None:
        """Records the ids of one step.

        Shape:
            ids: (N,), int64, of all ranks, N at most `step_rows`; `NO_ID` is left out.
        """
        if self._current_iter < 0:  # a new map, or one that was loaded
            self._current_iter = int(self._current_iter_tensor)
        self._recorded[self._current_iter % self._eviction_interval, : len(ids)] = ids
        self._current_iter += 1
        self._current_iter_tensor += 1

    @torch.no_grad()
    def update(self) -> torch.Tensor | None:
        """Updates the map if it is time to.

        Returns:
            The rows that were given to new ids, (N,), int64, whose values belong to others.
        """
        interval, last_step = self._eviction_interval, self._current_iter
        if last_step % interval:
            return None
        is_id = self._recorded != NO_ID
        steps = torch.arange(interval, device=is_id.device) + (last_step - interval + 1)
        self._history_accumulator = self._recorded[is_id]
        self._history_metadata = {"last_access_iter": steps[:, None].expand_as(is_id)[is_id]}
        self._current_history_buffer_offset = len(self._history_accumulator)
        self._recorded.zero_()
        # The module may have moved to another device since TorchRec collected these.
        names = [info.metadata_name for info in self._eviction_policy.metadata_info]
        self._mch_metadata = {name: self.get_buffer(f"_mch_{name}") for name in names}
        used = self.used()
        self._coalesce_history()
        slots: torch.Tensor = self.evict()
        self._totals += torch.stack([used.new_tensor(len(slots)), len(slots) - self.used() + used])
        return slots + 1

    @property
    def step(self) -> int:
        """Number of steps whose ids were recorded, if there are any since the map was loaded."""
        return self._current_iter

    def used(self) -> torch.Tensor:
        """Returns the number of ids with rows, ()."""
        used: torch.Tensor = self._zch_size - 1 - self.open_slots()[0]
        return used

    def counts(self) -> dict[str, int]:
        """Returns the ids that got and lost rows so far, and those that have one now."""
        inserted, evicted = self._totals.tolist()
        return {"inserted": inserted, "evicted": evicted, "with_row": int(self.used())}

    def ids_and_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the ids that have rows, (N,), int64, ascending, and their rows (N,), int32."""
        used = int(self.used())
        ids, slots = self._mch_sorted_raw_ids[:used], self._mch_remapped_ids_mapping[:used]
        return ids, slots.to(torch.int32) + 1

    def validate_state(self) -> None:
        """Follows the step of a state that was loaded; TorchRec calls this."""
        self._current_iter = -1


class ManagedIds(nn.Module):
    """Adds managed features to the other features of a batch, as rows of their tables.

    Shape:
        sparse: F keys, B bags each.
        managed: (M, B), int64; `Batch.managed`.
        returns: F + M keys, B bags each, the last M of length 1.

    Args:
        rows: managed feature -> rows of its table, in the order of `managed`.
        tables: the names of their tables.
        options: of all maps.
    """

    def __init__(
        self, rows: dict[str, int], tables: Sequence[str], options: ManagedOptions
    ) -> None:
        super().__init__()
        self.options, self.features, self.tables = options, list(rows), list(tables)
        self.maps = nn.ModuleList(IdMap(size, options) for size in rows.values())
        self.seen: torch.Tensor | None = None
        """`managed` of the last training batch, until `update_managed` takes it."""
        lookups = torch.zeros(2, len(rows), dtype=torch.int64)
        self.register_buffer("lookups", lookups, persistent=False)
        self.lookups: torch.Tensor
        """In eval mode: lookups of each feature on this rank, and those of ids without a row."""

    def forward(  # noqa: D102
        self, sparse: KeyedJaggedTensor, managed: torch.Tensor
    ) -> KeyedJaggedTensor:
        rows = [of_map(ids) for of_map, ids in zip(self.by_feature.values(), managed, strict=True)]
        if self.training:
            self.seen = managed
        else:
            is_id = managed != NO_ID
            without_row = is_id & (torch.stack(rows) == 0)
            self.lookups += torch.stack([is_id.sum(1), without_row.sum(1)])
        ones = sparse.lengths().new_ones(managed.numel())
        stride = managed.shape[1]
        return keyed_bags(
            [*sparse.keys(), *self.features],
            torch.cat([sparse.values(), *rows]),
            [*sparse.length_per_key(), *[stride] * len(rows)],
            stride,
            torch.cat([sparse.lengths(), ones]),
        )

    @property
    def by_feature(self) -> dict[str, IdMap]:
        """Managed feature -> its map."""
        return dict(zip(self.features, cast(list[IdMap], list(self.maps)), strict=True))

    def named_counts(self) -> dict[str, int]:
        """Returns the counts of every map by their names in logs: `ids_inserted/user_id`."""
        return {
            f"ids_{what}/{name}": count
            for name, of_map in self.by_feature.items()
            for what, count in of_map.counts().items()
        }


def map_bytes(managed: ManagedIds) -> int:
    """Returns the bytes that the maps take on every rank, with the ids that they record."""
    return sum(buffer.nbytes for buffer in managed.buffers())
