"""Storage of checkpoint tensors by DCP, with a JSON index, so that reading one runs no code.

torch keeps its index, and all values that are not tensors, in pickles, which can run code when they
are read. Here the index is `index.json`, only tensors are saved, and torch reads those with
`weights_only`.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import WriteResult

from msrec.data.io.atomic_files import write_json

INDEX = "index.json"
Index = dict[str, dict[str, Any]]
"""Tensor -> dtype, size, and chunks: offsets, sizes, file, start, bytes."""


class JsonWriter(FileSystemWriter):
    """Writes tensors as DCP does, and the index as JSON, last.

    Raises:
        TypeError: the state dict holds a value that is not a tensor.
    """

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index; called on the coordinator when all ranks have written their files."""
        stored = {result.index: result.storage_data for of_rank in results for result in of_rank}
        index: Index = {}
        for name, tensor in metadata.state_dict_metadata.items():
            if not isinstance(tensor, TensorStorageMetadata):
                raise TypeError(f"a checkpoint must hold tensors only; {name!r} is none")
            index[name] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "size": list(tensor.size),
                "chunks": [
                    _chunk_entry(chunk, stored[MetadataIndex(name, chunk.offsets)])
                    for chunk in tensor.chunks
                ],
            }
        write_json(Path(self.path) / INDEX, index)


class JsonReader(FileSystemReader):
    """Reads the files of `JsonWriter`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the index as DCP's metadata.

        Raises:
            ValueError: `index.json` is not such an index.
        """
        tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        stored = {}
        for name, entry in read_index(Path(self.path)).items():
            chunks = []
            for chunk in entry["chunks"]:
                offsets, sizes = torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"])
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                location = _StorageInfo(chunk["file"], chunk["start"], chunk["bytes"])
                stored[MetadataIndex(name, offsets)] = location
            properties = TensorProperties(dtype=getattr(torch, entry["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
        return Metadata(tensors, storage_data=stored, storage_meta=StorageMeta())


def read_index(folder: Path) -> Index:
    """Reads the index of a checkpoint folder.

    Raises:
        ValueError: the folder has no readable index.
    """
    path = folder / INDEX
    try:
        index: Index = json.loads(path.read_bytes())
        for entry in index.values():
            if not isinstance(getattr(torch, entry["dtype"]), torch.dtype):
                raise TypeError(f"{entry['dtype']!r} is no dtype")
            for chunk in entry["chunks"]:
                if Path(chunk["file"]).name != chunk["file"]:
                    raise ValueError(f"{chunk['file']!r} is not a file of this folder")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} must be the index of a checkpoint; {error}.") from None
    return index


def read_tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Reads whole tensors whose names start with `prefix`, in this process alone.

    Raises:
        ValueError: the folder has no readable index.
    """
    tensors = {
        name: torch.empty(entry["size"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in read_index(folder).items()
        if name.startswith(prefix)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(dict(tensors), storage_reader=JsonReader(folder), no_dist=True)
    return tensors


def _chunk_entry(chunk: ChunkStorageMetadata, location: _StorageInfo) -> dict[str, Any]:
    return {
        "offsets": list(chunk.offsets),
        "sizes": list(chunk.sizes),
        "file": location.relative_path,
        "start": location.offset,
        "bytes": location.length,
    }
