"""DCP's checkpoint files with their index as JSON, so that reading one runs nobody's code.

torch keeps the index in a pickle, and what is no tensor in another; both could run code when read.
Here the index is `index.json`, only tensors are kept, and torch reads those with `weights_only`.
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
    """Writes the index as JSON, last.

    Raises:
        TypeError: the state dict holds something that is no tensor.
    """

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on the coordinator when all ranks wrote their files."""
        stored = {found.index: found.storage_data for ranks in results for found in ranks}
        index: Index = {}
        for name, tensor in metadata.state_dict_metadata.items():
            if not isinstance(tensor, TensorStorageMetadata):
                raise TypeError(f"a checkpoint must hold tensors only; {name!r} is none")
            index[name] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "size": list(tensor.size),
                "chunks": [
                    _chunk(chunk, stored[MetadataIndex(name, chunk.offsets)])
                    for chunk in tensor.chunks
                ],
            }
        write_json(Path(self.path) / INDEX, index)


class JsonReader(FileSystemReader):
    """Reads what `JsonWriter` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index as DCP wants it.

        Raises:
            ValueError: `index.json` is not such an index.
        """
        tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        stored = {}
        for name, told in read_index(Path(self.path)).items():
            properties = TensorProperties(dtype=getattr(torch, told["dtype"]))
            chunks = []
            for chunk in told["chunks"]:
                offsets, sizes = torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"])
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                place = _StorageInfo(chunk["file"], chunk["start"], chunk["bytes"])
                stored[MetadataIndex(name, offsets)] = place
            tensors[name] = TensorStorageMetadata(properties, torch.Size(told["size"]), chunks)
        return Metadata(tensors, storage_data=stored, storage_meta=StorageMeta())


def read_index(folder: Path) -> Index:
    """The tensors of a checkpoint folder.

    Raises:
        ValueError: it has no readable index.
    """
    path = folder / INDEX
    try:
        index: Index = json.loads(path.read_text())
        for told in index.values():
            if not isinstance(getattr(torch, told["dtype"]), torch.dtype):
                raise TypeError(f"{told['dtype']!r} is no dtype")
            for chunk in told["chunks"]:
                if Path(chunk["file"]).name != chunk["file"]:
                    raise ValueError(f"{chunk['file']!r} is not a file of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be the index of a checkpoint; {error}.") from None
    return index


def read_tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names begin so, whole, on this process alone.

    Raises:
        ValueError: it has no readable index.
    """
    found = {
        name: torch.empty(told["size"], dtype=getattr(torch, told["dtype"]))
        for name, told in read_index(folder).items()
        if name.startswith(prefix)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(dict(found), storage_reader=JsonReader(folder), no_dist=True)
    return found


def _chunk(chunk: ChunkStorageMetadata, place: _StorageInfo) -> dict[str, Any]:
    return {
        "offsets": list(chunk.offsets),
        "sizes": list(chunk.sizes),
        "file": place.relative_path,
        "start": place.offset,
        "bytes": place.length,
    }
