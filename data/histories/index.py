"""Index of histories: the earlier events of every row of a dataset, mapped into memory.

A folder `DATASET/histories/PROTOCOL`::

    items.npy            (N,), int32, index into items.parquet
    scenarios.npy        (N,), int32
    labels.npy           (N,), uint8, the first label of the event, 0 or 1
    times.npy            (N,), int64, the timestamp, or the number of the row with order `rows`
    starts.npy           (num_users + 1,), int64, first event of each user
    ends-SPLIT.npy       (rows of the split,), int64, one past the last event that the row may see
    manifest.json        settings, counts and checksums; written last

The N events are sorted by user, then by time, then by their order in the files. The history of a
row is a slice of the event arrays, oldest first::

    events[starts[user] : end]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from msrec.data.io.atomic_files import check_files
from msrec.data.io.parquet_files import parquet_files
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.io.validation import first_error
from msrec.data.schema import SPLITS, HistoryProtocol, HistoryRecord, Split, load_schema

HISTORIES, MANIFEST = "histories", "manifest.json"
VERSION = 1
EVENT_ARRAYS = {"items": "int32", "scenarios": "int32", "labels": "uint8", "times": "int64"}
"""Name of an event array -> its dtype."""


class HistoryManifest(HistoryRecord):
    """Contents of `manifest.json`."""

    version: int
    """Version of the format."""
    protocol: HistoryProtocol
    """Protocol of the events."""
    files: dict[str, int]
    """Parquet file of the dataset -> its size in bytes when the index was made."""
    bytes: dict[str, int]
    """Array file -> its size in bytes."""
    crc32: dict[str, str]
    """Array file -> its CRC-32."""


@dataclass(frozen=True)
class HistoryIndex:
    """The events of all users, and the end of each row's history.

    All arrays are read-only memory maps, so that the ranks of a host share one copy.

    Shape:
        items, scenarios: (N,), int32.
        labels: (N,), uint8.
        times: (N,), int64.
        starts: (num_users + 1,), int64.
        ends: split -> (rows of the split,), int64.
    """

    folder: Path
    manifest: HistoryManifest
    items: npt.NDArray[np.int32]
    scenarios: npt.NDArray[np.int32]
    labels: npt.NDArray[np.uint8]
    times: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: dict[Split, npt.NDArray[np.int64]]

    @classmethod
    def open(
        cls, dataset: AnyPath | str, protocol: HistoryProtocol, *, verify: bool = True
    ) -> "HistoryIndex":
        """Maps an index into memory and checks it; `verify` also reads every array once.

        Raises:
            FileNotFoundError: the dataset has no such index.
            ValueError: the dataset is remote, a file of the index is truncated or damaged, or the
                index belongs to other rows than those of the dataset.
        """
        dataset = to_path(dataset)
        command = f"Run `msrec histories {dataset} --protocol {protocol}`"
        if not isinstance(dataset, Path):
            raise ValueError(
                f"{dataset} must be a folder of this machine, because histories are mapped into "
                "memory; copy the dataset and run `msrec histories` on the copy."
            )
        folder = dataset / HISTORIES / protocol
        manifest = _read_manifest(folder, command)
        _check_rows(dataset, folder, manifest, command)
        for name, size in manifest.bytes.items():
            actual = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if actual != size:
                raise ValueError(
                    f"{folder / name} must have {size} bytes, as {MANIFEST} says; it has {actual}. "
                    f"{command} again."
                )
        if verify:
            check_files(folder, manifest.crc32, f"The index is damaged. {command} again.")
        events = {name: _mapped(folder / f"{name}.npy") for name in EVENT_ARRAYS}
        ends: dict[Split, npt.NDArray[np.int64]] = {
            split: _mapped(folder / f"ends-{split}.npy") for split in SPLITS
        }
        return cls(folder, manifest, **events, starts=_mapped(folder / "starts.npy"), ends=ends)


def data_files(dataset: Path) -> dict[str, int]:
    """Returns the size in bytes of each Parquet file of the splits."""
    paths = [path for split in SPLITS for path in parquet_files(dataset / split)]
    return {f"{path.parent.name}/{path.name}": path.stat().st_size for path in paths}


def _read_manifest(folder: Path, command: str) -> HistoryManifest:
    path = folder / MANIFEST
    if not path.is_file():
        load_schema(folder.parents[1])  # without a dataset, there is nothing to index
        raise FileNotFoundError(f"{path} must exist: the dataset has no such index. {command}.")
    try:
        manifest = HistoryManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}. {command} again.") from None
    if manifest.version != VERSION:
        raise ValueError(
            f"{path}: version must be {VERSION}; got {manifest.version}. {command} again."
        )
    return manifest


def _check_rows(dataset: Path, folder: Path, manifest: HistoryManifest, command: str) -> None:
    """Compares the Parquet files with those that the index was made of."""
    actual = data_files(dataset)
    for name in sorted(actual.keys() | manifest.files.keys()):
        if actual.get(name) != manifest.files.get(name):
            raise ValueError(
                f"{folder} must belong to the rows of {dataset}; {name} has {actual.get(name, 0)} "
                f"bytes now and had {manifest.files.get(name, 0)} when the index was made. "
                f"{command} again."
            )


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} must be an array of numbers; {error}.") from None
    return array
