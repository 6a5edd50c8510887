"""Accelerators: memory and bandwidths of a rank, read by name from a YAML file."""

import difflib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml

HARDWARE_FILE = Path(__file__).with_name("hardware.yaml")


class Hardware(StrictModel):
    """Accelerator of one rank with its share of the node, or one process on CPU.

    Units:
        memory_gib, host_memory_gib: 2^30 bytes. host_memory is the share of a GPU's rank in the
            memory of its node.
        *_gb_s: 1e9 bytes per second, one direction. host_link is between GPU and host memory.
        *_us: microseconds. collective_us starts a collective, a hop passes it on to the next rank
            of the node or to the next node, kernel_us is a small kernel.
        dense_tflops: 1e12 floating-point operations per second, of the matrix type used in
            training.
    """

    about: str = ""
    device: Literal["cuda", "cpu"] = "cuda"
    memory_gib: float = Field(gt=0)
    memory_gb_s: float = Field(gt=0)
    host_memory_gib: float = Field(0, ge=0)
    host_gb_s: float = Field(50, gt=0)
    host_link_gb_s: float = Field(25, gt=0)
    intra_node_gb_s: float = Field(gt=0)
    inter_node_gb_s: float = Field(gt=0)
    dense_tflops: float = Field(gt=0)
    collective_us: float = Field(8.4, ge=0)
    node_hop_us: float = Field(3.4, ge=0)
    network_hop_us: float = Field(14.0, ge=0)
    kernel_us: float = Field(3.0, ge=0)
    sources: list[str] = Field(min_length=1)
    """Data sheets or measurements that the figures come from."""

    @property
    def memory(self) -> int:
        """Bytes of memory for tables and dense part."""
        return int(self.memory_gib * 2**30)

    @property
    def host_memory(self) -> int:
        """Bytes of host memory of a GPU's rank; 0 on CPU, where `memory` is host memory."""
        return int(self.host_memory_gib * 2**30) if self.device == "cuda" else 0


def load_hardware(name: str, file: Path | None = None) -> Hardware:
    """Reads an accelerator, such as h100, from a YAML file of accelerators or `HARDWARE_FILE`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no such entry (the message names similar ones), or the entry is
            invalid.
    """
    path = file or HARDWARE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"the hardware file {path} must exist; it does not.")
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold accelerators by name; it holds {entries!r:.40}.")
    if name not in entries:
        similar = difflib.get_close_matches(name, entries) or list(entries)
        raise ValueError(
            f"the accelerator must be one of {path.name}; got {name!r}, similar names are "
            f"{', '.join(similar)}. Describe any other accelerator in a file and pass it with "
            "--hardware."
        )
    try:
        return Hardware.model_validate(entries[name])
    except ValidationError as error:
        raise ValueError(f"{path}: {name}.{first_error(error)}.") from None
