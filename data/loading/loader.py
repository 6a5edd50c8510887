"""An iterable of `Batch` for one rank, prefetched by a thread, that starts at any global batch."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.data.features.vocabulary_alignment import Lineage
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.loading.batch import Batch
from msrec.data.loading.behaviour_history import Interactions
from msrec.data.loading.collator import Vectors, Window
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.id_dropout import UnknownIds
from msrec.data.loading.id_transforms import own_ids, scaled_ids
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.raw_reader import RawFiles
from msrec.data.loading.split_reader import Columns, SplitFiles
from msrec.data.schema import Split, load_schema


class Loader:
    """Batches of one rank's share of a split, in the global order.

    The state of a loader is (epoch, number of global batches consumed): give both to `batches` and
    it goes on from there, on this world size or another.

    Args:
        dataset: the dataset folder.
        split: "train", "valid" or "test".
        global_batch: rows of a batch over all ranks, a multiple of `world_size`.
        rank, world_size: this process and how many there are.
        seed, shuffle, window_rows: of the global order.
        of_user, of_item: give each batch the vectors of its distinct users and items; None leaves
            them out.
        prefetch: batches made ahead; 0 makes them in the caller's thread.
        per_scenario: ids name rows of a copy of the tables for each scenario, see `own_ids`.
        scale: of the tables' rows, see `scaled_ids`.
        history: gives each batch the training rows of its distinct users and items.
        unknown: ids that are changed to row 0.
        num_labels: labels to read, the first ones; None reads all, as a history needs.
        extra: further float32 columns to check and keep readable by `files.take`.
        faults: what to do with rows that break the schema; those left out have row id -1 and
            weight 0, as padding has.
        paths: files to read instead of the split's. Their rows are only to be scored: no label and
            no timestamp is read.
        raw: of `paths`: they hold raw values, see `RawFiles`.
        lineage: where `dataset` is another than the one that the model was trained on: gives its
            rows the ids of that one.

    Raises:
        FileNotFoundError, ValueError: as `load_schema`, `SplitFiles` and `GlobalOrder.rows`.
    """

    def __init__(
        self,
        dataset: AnyPath | str,
        split: Split,
        global_batch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window_rows: int = 1 << 18,
        of_user: Vectors | None = None,
        of_item: Vectors | None = None,
        prefetch: int = 8,
        per_scenario: bool = False,
        scale: float = 1.0,
        history: Interactions | None = None,
        unknown: UnknownIds | None = None,
        num_labels: int | None = None,
        extra: Sequence[str] = (),
        faults: Policy = "fail",
        paths: Sequence[AnyPath] | None = None,
        raw: bool = False,
        lineage: Lineage | None = None,
    ) -> None:
        schema = load_schema(dataset) if lineage is None else lineage.schema
        read: dict[str, Any] = {"labels": schema.labels[:num_labels]}
        if paths is not None:
            read = {"labels": [], "timestamp": None}
        self.schema = schema.model_copy(update=read)
        stored = self.schema if lineage is None else lineage.files.model_copy(update=read)
        if raw and paths is not None:
            self.files: SplitFiles = RawFiles(to_path(dataset), stored, paths)
        else:
            self.files = SplitFiles(dataset, stored, split, extra, faults=faults, paths=paths)
        self._lineage = lineage
        self.order = GlobalOrder(self.files.group_rows, global_batch, seed, shuffle, window_rows)
        self._rank, self._world_size = rank, world_size
        self._of_user, self._of_item = of_user, of_item
        self._prefetch = prefetch
        self._per_scenario = per_scenario
        self._scaled = self.schema.scaled(scale)
        # Rows of another dataset, or of other files, are in no history and were not trained on.
        self._history = history
        self._is_train = split == "train" and lineage is None and paths is None
        if history is not None and lineage is not None:
            self._history = history.for_entities({s: lineage.entities(s) for s in history.of})
        self._unknown = unknown

    def __len__(self) -> int:
        """Global batches of an epoch, the same on every rank."""
        return self.order.num_batches

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from global batch `start` on."""
        made = self._made(epoch, start)
        return made if self._prefetch == 0 else _ahead(made, self._prefetch)

    def in_order(self, ranges: Sequence[range]) -> Iterator[Batch]:
        """This rank's share of global batches whose rows stand in file order.

        Args:
            ranges: for each batch its consecutive rows, at most `global_batch` of them. A rank has
                the slots from `rank` times its share on; those past the range's end are padding.
        """
        share = self.order.global_batch // self._world_size

        def made() -> Iterator[Batch]:
            for wanted in ranges:
                slots = np.arange(share, dtype=np.int64) + wanted.start + self._rank * share
                rows = np.where(slots < wanted.stop, slots, -1)
                columns = self.files.take(np.where(rows < 0, wanted.start, rows))
                yield self._window(rows[np.newaxis], columns, epoch=0).batch(0)

        return made() if self._prefetch == 0 else _ahead(made(), self._prefetch)

    def batch_of(self, rows: npt.NDArray[np.int64]) -> Batch:
        """One batch of the given rows (n,) of the split, in that order."""
        return self._window(rows[np.newaxis], self.files.take(rows), epoch=0).batch(0)

    def _window(self, rows: npt.NDArray[np.int64], columns: Columns, epoch: int) -> Window:
        if BAD in columns:
            rows = np.where(columns[BAD].reshape(rows.shape), -1, rows)
        if self._lineage is not None:
            columns = self._lineage.columns(columns)
        if self._unknown is not None:
            columns = self._unknown.apply(columns, rows.reshape(-1), epoch, self._is_train)
        if self._scaled is not self.schema:
            columns = scaled_ids(self.schema, self._scaled, columns)
        if self._per_scenario:
            columns = own_ids(self._scaled, columns)
        knowledge = (self._of_user, self._of_item)
        return Window(self.schema, rows, columns, *knowledge, self._history, self._is_train)

    def _made(self, epoch: int, start: int) -> Iterator[Batch]:
        if start >= self.order.num_batches:
            return
        size = self.order.window_batches
        for number in range(start // size, self.order.num_windows):
            rows = self.order.rows(epoch, number, self._rank, self._world_size)
            skip = max(0, start - number * size)
            rows = np.ascontiguousarray(rows[skip:])
            # A padding row needs some valid ids. Only an epoch's last batch has any; it takes those
            # of one of its own rows, or of row 0, so that it is the same batch in a resumed run.
            last = rows[-1]
            filler = last[last >= 0].min(initial=self.files.num_rows) % self.files.num_rows
            columns = self.files.take(np.where(rows < 0, filler, rows).reshape(-1))
            window = self._window(rows, columns, epoch)
            for place in range(len(window)):
                yield window.batch(place)


def _ahead(made: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, made up to `count` ahead by a thread; its errors are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def put(what: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(what, timeout=0.1)
            except queue.Full:
                continue  # the consumer may have left; look at `stopped` again

    def work() -> None:
        try:
            for batch in made:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            put(error)

    thread = threading.Thread(target=work, name="msrec-loader", daemon=True)
    thread.start()
    try:
        while (what := ready.get()) is not None:
            if isinstance(what, BaseException):
                raise what
            yield what
    finally:
        stopped.set()
        thread.join()
