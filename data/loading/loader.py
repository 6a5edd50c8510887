"""Batches of one rank, prefetched by a thread, starting at any global batch."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns
from msrec.data.io.paths import AnyPath
from msrec.data.loading.batch import Batch
from msrec.data.loading.collator import Collator, Window
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.id_transforms import IdTransform, apply_all
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Split, load_schema

Rows = npt.NDArray[np.int64]


class RankShare(NamedTuple):
    """Part of a global batch: rank `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1


WHOLE = RankShare()


class Loader:
    """Batches of one rank's share of a split, in the global order.

    The state of a loader is (epoch, number of global batches consumed). Given both, `batches`
    continues from there, with this number of ranks or another.

    Args:
        reader: of the split's rows.
        order: of the same rows; its `global_batch` must be a multiple of the number of ranks.
        collator: sources of the batches' tensors.
        transforms: changes of ids, applied in order.
        share: this rank.
        prefetch: number of batches made ahead by a thread; 0 makes them in the caller's thread.
        pin: whether that thread copies them to page-locked memory, for a CUDA device.
    """

    def __init__(
        self,
        reader: SplitReader,
        order: GlobalOrder,
        collator: Collator,
        transforms: Sequence[IdTransform] = (),
        share: RankShare = WHOLE,
        prefetch: int = 8,
        pin: bool = False,
    ) -> None:
        self.reader, self.order = reader, order
        self._collator, self._transforms = collator, transforms
        self._share, self._prefetch, self._pin = share, prefetch, pin

    def __len__(self) -> int:
        """Global batches of an epoch, the same on every rank."""
        return self.order.num_batches

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from global batch `start` on."""
        return self._ready(self._epoch(epoch, start))

    def in_order(self, ranges: Sequence[range]) -> Iterator[Batch]:
        """Yields this rank's share of global batches whose rows are in file order.

        Args:
            ranges: the consecutive rows of each batch, at most `global_batch` of them. A rank has
                the slots from `rank` times its share on; those past the end are padding.
        """
        return self._ready(map(self._consecutive, ranges))

    def batch_of(self, rows: Rows) -> Batch:
        """Returns one batch of the given rows (n,) of the split, in that order."""
        return self._window(rows[np.newaxis], self.reader.take(rows), epoch=0).batch(0)

    def _ready(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return _prefetched(map(Batch.pin_memory, batches) if self._pin else batches, self._prefetch)

    def _consecutive(self, rows_of_all: range) -> Batch:
        size = self.order.global_batch // self._share.world_size
        slots = np.arange(size, dtype=np.int64) + rows_of_all.start + self._share.rank * size
        rows = np.where(slots < rows_of_all.stop, slots, -1)
        columns = self.reader.take(np.where(rows < 0, rows_of_all.start, rows))
        return self._window(rows[np.newaxis], columns, epoch=0).batch(0)

    def _window(self, rows: Rows, columns: Columns, epoch: int) -> Window:
        if BAD in columns:
            rows = np.where(columns[BAD].reshape(rows.shape), -1, rows)
        columns = apply_all(self._transforms, columns, rows.reshape(-1), epoch)
        return Window(self._collator, rows, columns)

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        size = self.order.window_batches
        for number in range(start // size, self.order.num_windows):
            rows = self.order.rows(epoch, number, *self._share)
            rows = np.ascontiguousarray(rows[max(0, start - number * size) :])
            if not len(rows):
                return
            # A padding row needs valid ids. Only the last batch of an epoch has padding. It repeats
            # one of its own rows, or row 0, so that a resumed run makes the same batch.
            last = rows[-1]
            filler = last[last >= 0].min(initial=self.reader.num_rows) % self.reader.num_rows
            columns = self.reader.take(np.where(rows < 0, filler, rows).reshape(-1))
            window = self._window(rows, columns, epoch)
            yield from map(window.batch, range(len(window)))


def open_loader(
    dataset: AnyPath | str,
    split: Split,
    global_batch: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    window_rows: int = 1 << 18,
    transforms: Sequence[IdTransform] = (),
    share: RankShare = WHOLE,
    prefetch: int = 8,
    faults: Policy = "fail",
) -> Loader:
    """Opens a split of a dataset folder, without knowledge vectors and histories.

    Arguments are those of `SplitReader`, `GlobalOrder` and `Loader`.

    Raises:
        FileNotFoundError, ValueError: as `load_schema`, `SplitReader` and `GlobalOrder.rows`.
    """
    schema = load_schema(dataset)
    reader = SplitReader(dataset, schema, split, faults=faults)
    order = GlobalOrder(reader.group_rows, global_batch, seed, shuffle, window_rows)
    return Loader(reader, order, Collator(schema), transforms, share, prefetch)


def _prefetched(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yields the same batches, made up to `count` ahead by a thread; raises its errors here."""
    if count == 0:
        yield from batches
        return
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue  # the consumer may have left: `stopped` is checked again

    def produce() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            put(error)

    thread = threading.Thread(target=produce, name="msrec-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
