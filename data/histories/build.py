"""Builds indices of histories from the Parquet files of a dataset.

The rule: a row sees the events of its user with a strictly smaller time, and no others. Rows with
the same time, such as those of one page, see nothing of each other.

With the order `rows`, the time of a row is its number: train first, then valid, then test, within a
split by the names of the files and the order of their rows. It makes sense only if the rows of each
file were written in the order in which they happened. The protocol `stream` also needs the splits
to follow each other in time for each user, so that it is refused for a random split.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from msrec.data.convert.raw_tables import Progress
from msrec.data.histories.index import (
    EVENT_ARRAYS,
    HISTORIES,
    MANIFEST,
    VERSION,
    HistoryManifest,
    data_files,
)
from msrec.data.io.atomic_files import checksums, write_text
from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.outputs import FolderKind, new_folder
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import BAD, Policy
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import (
    SPLITS,
    EventChoice,
    EventOrder,
    HistoryLengths,
    HistoryProtocol,
    HistoryRecord,
    Schema,
    Split,
    load_schema,
    save_schema,
)

INDEX = FolderKind("an index of histories", MANIFEST, (MANIFEST, "*.npy"))
PROTOCOLS: tuple[HistoryProtocol, ...] = ("stream", "frozen")


class _Rows(NamedTuple):
    """The rows of all splits, train first, in the order of the files.

    Shape:
        user, items, scenarios: (N,), int32.
        labels: (N,), uint8.
        times: (N,), int64.
        is_good: (N,), bool, false for rows that are excluded.
        starts: (4,), int64, first row of each split, then N.
    """

    user: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    scenarios: npt.NDArray[np.int32]
    labels: npt.NDArray[np.uint8]
    times: npt.NDArray[np.int64]
    is_good: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]


def build_histories(
    dataset: AnyPath,
    protocols: Sequence[HistoryProtocol] = PROTOCOLS,
    events: EventChoice = "all",
    order: EventOrder = "timestamp",
    faults: Policy = "fail",
    progress: Progress | None = None,
) -> Schema:
    """Writes `DATASET/histories/PROTOCOL` for each protocol, and records them in dataset.yaml.

    An index appears as a whole and replaces an older one. Reading and sorting is done once for all
    protocols, in memory: about 120 bytes per row of all splits, and 0.7 s per million rows.

    Args:
        dataset: the dataset folder.
        protocols: `stream`, `frozen` or both; see `HistoryProtocol`.
        events: rows that are events.
        order: order of the events.
        faults: policy for rows that break the schema. Excluded rows are no events and have no
            history.
        progress: called while rows are read and arrays are written.

    Returns:
        The schema with the new records.

    Raises:
        FileNotFoundError: the folder or a split does not exist.
        ValueError: the dataset is remote or has not this order, a row breaks the schema, the
            folder of an index holds something else, or another job writes to the dataset.
    """
    if not isinstance(dataset, Path):
        raise ValueError(
            f"{dataset} must be a folder of this machine, because histories are mapped into "
            "memory; copy the dataset first."
        )
    progress = progress or (lambda stage, done, total: None)
    with exclusive(dataset, f"the histories of {dataset} must be written"):
        schema = load_schema(dataset)
        check_order(dataset, schema, protocols, order)
        records = _write_indices(dataset, schema, protocols, events, order, faults, progress)
        schema = schema.model_copy(update={"histories": {**schema.histories, **records}})
        save_schema(schema, dataset)
    return schema


def _write_indices(
    dataset: Path,
    schema: Schema,
    protocols: Sequence[HistoryProtocol],
    events: EventChoice,
    order: EventOrder,
    faults: Policy,
    progress: Progress,
) -> dict[HistoryProtocol, HistoryRecord]:
    """Writes the index of each protocol and returns their records."""
    rows = _read_rows(dataset, schema, order, faults, progress)
    sorting = np.lexsort((rows.times, rows.user))
    records: dict[HistoryProtocol, HistoryRecord] = {}
    for number, protocol in enumerate(protocols):
        progress("writing", number, len(protocols))
        arrays = _index_arrays(rows, sorting, schema.num_users, protocol, events)
        record = _record(rows, arrays, events, order)
        _write_index(dataset, protocol, arrays, record)
        records[protocol] = record
    progress("writing", len(protocols), len(protocols))
    return records


def check_order(
    dataset: AnyPath, schema: Schema, protocols: Sequence[HistoryProtocol], order: EventOrder
) -> None:
    """Checks that the dataset has an order for histories.

    Raises:
        ValueError: it has no timestamps, or a random split and no order across splits.
    """
    if order == "timestamp" and schema.timestamp is None:
        raise ValueError(
            f"{dataset} must have timestamps to order histories; its dataset.yaml names none. Use "
            "--order rows if the rows of its files are in the order in which they happened."
        )
    if order == "rows" and "stream" in protocols and schema.split.method == "random":
        raise ValueError(
            f"{dataset} must not have a random split for the protocol stream with --order rows: "
            "the order of rows of different splits is unknown. Use --protocol frozen or "
            "--order timestamp."
        )


def _read_rows(
    dataset: Path, schema: Schema, order: EventOrder, faults: Policy, progress: Progress
) -> _Rows:
    """Reads all splits, one row group at a time."""
    names = ["user", "item", "scenario", schema.labels[0]]
    if order == "timestamp" and schema.timestamp:
        names.append(schema.timestamp)
    if faults != "fail":
        names = schema.columns  # a fault in any column excludes a row
    readers = [SplitReader(dataset, schema, split, names, faults) for split in SPLITS]
    starts = np.concatenate([[0], np.cumsum([reader.num_rows for reader in readers])])
    size = int(starts[-1])
    rows = _Rows(
        user=np.empty(size, np.int32),
        items=np.empty(size, np.int32),
        scenarios=np.empty(size, np.int32),
        labels=np.empty(size, np.uint8),
        times=np.arange(size),
        is_good=np.ones(size, np.bool_),
        starts=starts,
    )
    targets: dict[str, npt.NDArray[Any]] = {
        "user": rows.user,
        "item": rows.items,
        "scenario": rows.scenarios,
        schema.labels[0]: rows.labels,
    }
    if order == "timestamp" and schema.timestamp:
        targets[schema.timestamp] = rows.times
    for reader, start in zip(readers, starts, strict=False):
        for first, count in zip(reader.starts, reader.group_rows, strict=False):
            columns = reader.take(np.arange(first, first + count))
            span = slice(start + first, start + first + count)
            for name, target in targets.items():
                target[span] = columns[name]
            if BAD in columns:
                rows.is_good[span] = ~columns[BAD]
            progress("reading", span.stop, size)
    return rows


def _index_arrays(
    rows: _Rows,
    sorting: npt.NDArray[np.int64],
    num_users: int,
    protocol: HistoryProtocol,
    events: EventChoice,
) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of an index by the names of their files.

    Args:
        rows: of all splits.
        sorting: (N,), the rows by user, then time, then order in the files.
        num_users: users of the dataset.
        protocol: splits whose rows are events.
        events: rows that are events.
    """
    is_event = rows.is_good.copy()
    if protocol == "frozen":
        is_event[rows.starts[1] :] = False
    if events == "positive":
        is_event &= rows.labels == 1
    is_event = is_event[sorting]
    ends = np.empty(len(sorting), np.int64)
    ends[sorting] = _sorted_ends(rows.user[sorting], rows.times[sorting], is_event)
    chosen = sorting[is_event]
    starts = np.zeros(num_users + 1, np.int64)
    np.cumsum(np.bincount(rows.user[chosen], minlength=num_users), out=starts[1:])
    ends[~rows.is_good] = starts[rows.user[~rows.is_good]]
    arrays: dict[str, npt.NDArray[Any]] = {"starts": starts}
    arrays |= {name: getattr(rows, name)[chosen] for name in EVENT_ARRAYS}
    return arrays | {f"ends-{split}": part for split, part in _by_split(rows, ends).items()}


def _sorted_ends(
    user: npt.NDArray[np.int32], times: npt.NDArray[np.int64], is_event: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Returns the end of the history of each row, all (N,), sorted by user and time.

    The events before a row are those of smaller users and the earlier ones of its user. All rows of
    a user with the same time have the end of the first of them::

        user, time   (0, 5)  (0, 7)  (0, 7)  (1, 2)        all four rows are events
        end             0       1       1       3
    """
    is_first = np.ones(len(user), np.bool_)
    is_first[1:] = (user[1:] != user[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(is_first)
    num_before: npt.NDArray[np.int64] = np.cumsum(is_event)[first] - is_event[first]
    ends: npt.NDArray[np.int64] = np.repeat(num_before, np.diff(first, append=len(user)))
    return ends


def _record(
    rows: _Rows, arrays: dict[str, npt.NDArray[Any]], events: EventChoice, order: EventOrder
) -> HistoryRecord:
    starts = arrays["starts"]
    lengths: dict[Split, HistoryLengths] = {}
    for split, user in _by_split(rows, rows.user).items():
        of_rows = arrays[f"ends-{split}"] - starts[user]
        median, p95 = np.quantile(of_rows, (0.5, 0.95), method="inverted_cdf")
        lengths[split] = HistoryLengths(
            rows=len(of_rows),
            without_history=int((of_rows == 0).sum()),
            median=int(median),
            p95=int(p95),
        )
    return HistoryRecord(
        events=events,
        order=order,
        num_events=len(arrays["items"]),
        num_users=int((np.diff(starts) > 0).sum()),
        lengths=lengths,
    )


def _by_split(rows: _Rows, values: npt.NDArray[Any]) -> dict[Split, npt.NDArray[Any]]:
    return dict(zip(SPLITS, np.split(values, rows.starts[1:-1]), strict=True))


def _write_index(
    dataset: Path,
    protocol: HistoryProtocol,
    arrays: dict[str, npt.NDArray[Any]],
    record: HistoryRecord,
) -> None:
    out = dataset / HISTORIES / protocol
    with new_folder(out, INDEX, overwrite=True) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        paths = sorted(folder.iterdir())
        manifest = HistoryManifest(
            **dict(record),
            version=VERSION,
            protocol=protocol,
            files=data_files(dataset),
            bytes={path.name: path.stat().st_size for path in paths},
            crc32=checksums(folder, paths),
        )
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
