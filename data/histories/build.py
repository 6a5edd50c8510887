"""Builds indices of histories from the Parquet files of a dataset.

The rule: a row sees the events of its user with a strictly smaller time, and no others. Rows with
the same time, such as those of one page, see nothing of each other.

With the order `rows`, the time of a row is its number: train first, then valid, then test, within a
split by the names of the files and the order of their rows. It makes sense only if the rows of each
file were written in the order in which they happened. The protocol `stream` also needs the splits
to follow each other in time for each user, so that it is refused for a random split.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from msrec.data.histories.user_shares import UserShares, write_user_shares
from msrec.data.io.atomic_files import checksums, write_text
from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.outputs import FolderKind, emptied_folder, new_folder
from msrec.data.io.paths import AnyPath
from msrec.data.loading.quarantine import Policy
from msrec.data.schema import (
    SPLITS,
    EventChoice,
    EventOrder,
    HistoryLengths,
    HistoryProtocol,
    HistoryRecord,
    Schema,
    load_schema,
    save_schema,
)

_MARKER = "msrec-histories.txt"
ROWS = FolderKind("a folder of msrec histories", _MARKER, (_MARKER, "rows-*.arrow"))
"""Rows by shares of the users, beside the dataset, which has only files of its own."""
INDEX = FolderKind("an index of histories", MANIFEST, (MANIFEST, "*.npy"))
PROTOCOLS: tuple[HistoryProtocol, ...] = ("stream", "frozen")


def build_histories(
    dataset: AnyPath,
    protocols: Sequence[HistoryProtocol] = PROTOCOLS,
    events: EventChoice = "all",
    order: EventOrder = "timestamp",
    faults: Policy = "fail",
    progress: Progress | None = None,
) -> Schema:
    """Writes `DATASET/histories/PROTOCOL` for each protocol, and records them in dataset.yaml.

    An index appears as a whole and replaces an older one. Rows are read once for all protocols and
    sorted user by user, so that memory grows with the number of users alone: 24 bytes for each, and
    0.5 GB. The files of all rows, 15 bytes for each, are beside the dataset meanwhile.

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
    whole = dataset.resolve()
    scratch = emptied_folder(whole.with_name(f".{whole.name}.rows"), ROWS)
    records: dict[HistoryProtocol, HistoryRecord] = {}
    try:
        shares = write_user_shares(dataset, schema, order, faults, scratch, progress)
        for number, protocol in enumerate(protocols):
            progress("writing", number, len(protocols))
            records[protocol] = _write_index(dataset, protocol, shares, events, order)
        progress("writing", len(protocols), len(protocols))
    finally:
        shutil.rmtree(scratch)
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


def _write_index(
    dataset: Path,
    protocol: HistoryProtocol,
    shares: UserShares,
    events: EventChoice,
    order: EventOrder,
) -> HistoryRecord:
    out = dataset / HISTORIES / protocol
    with new_folder(out, INDEX, overwrite=True) as folder:
        record = _write_arrays(folder, protocol, shares, events, order)
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
    return record


def _write_arrays(
    folder: Path,
    protocol: HistoryProtocol,
    shares: UserShares,
    events: EventChoice,
    order: EventOrder,
) -> HistoryRecord:
    """Writes the arrays of an index, share by share, and returns its record."""
    is_chosen = np.ones_like(shares.good, np.bool_)
    is_chosen[1:] = protocol == "stream"
    is_chosen[:, 0] &= events == "all"
    num_events = int(shares.good[is_chosen].sum())
    arrays = {n: _new_array(folder, n, t, num_events) for n, t in EVENT_ARRAYS.items()}
    ends_of = [
        _new_array(folder, f"ends-{split}", "int64", int(size))
        for split, size in zip(SPLITS, np.diff(shares.starts), strict=True)
    ]
    starts = np.zeros(int(shares.users[-1]) + 1, np.int64)
    lengths = [np.zeros(1, np.int64) for _ in SPLITS]
    done = 0
    for first, stop, rows in shares:
        split = np.searchsorted(shares.starts, rows.number, side="right") - 1
        is_event = rows.is_good & is_chosen[split, (rows.labels == 1).astype(np.int8)]
        sorting = np.lexsort((rows.times, rows.user))
        ends = np.empty(len(sorting), np.int64)
        ends[sorting] = _sorted_ends(rows.user[sorting], rows.times[sorting], is_event[sorting])
        ends += done
        chosen = sorting[is_event[sorting]]
        counts = np.bincount(rows.user[chosen] - first, minlength=stop - first)
        starts[first + 1 : stop + 1] = done + np.cumsum(counts)
        ends[~rows.is_good] = starts[rows.user[~rows.is_good]]
        for name, array in arrays.items():
            array[done : done + len(chosen)] = getattr(rows, name)[chosen]
        for code, array in enumerate(ends_of):
            here = split == code
            array[rows.number[here] - shares.starts[code]] = ends[here]
            lengths[code] = _added(lengths[code], ends[here] - starts[rows.user[here]])
        done += len(chosen)
    np.save(folder / "starts.npy", starts)
    return HistoryRecord(
        events=events,
        order=order,
        num_events=num_events,
        num_users=int((np.diff(starts) > 0).sum()),
        lengths={split: _lengths(counts) for split, counts in zip(SPLITS, lengths, strict=True)},
    )


def _new_array(folder: Path, name: str, dtype: str, size: int) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.lib.format.open_memmap(
        folder / f"{name}.npy", "w+", np.dtype(dtype), (size,)
    )
    return array


def _added(counts: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns a histogram to which values have been added."""
    more = np.bincount(values, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _lengths(counts: npt.NDArray[np.int64]) -> HistoryLengths:
    """Returns the summary of a histogram of lengths; a quantile is the length of a row."""
    upto = np.cumsum(counts)
    rows = int(upto[-1])
    median, p95 = (int(np.searchsorted(upto, -(-rows * p // 100))) for p in (50, 95))
    return HistoryLengths(rows=rows, without_history=int(counts[0]), median=median, p95=p95)


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
