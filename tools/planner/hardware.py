"""What accelerators can do, as a file that names its sources."""

import difflib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Topology,
    TopologyFactory,
    TrainerConfig,
)

from msrec.data.io.validation import first_error, read_yaml

HARDWARE_FILE = Path(__file__).with_name("hardware.yaml")
GB_S = 1e6
"""Bytes a millisecond, TorchRec's unit, in a GB/s."""


class Hardware(BaseModel):
    """One rank: an accelerator with its share of the node, or a process on CPU.

    Units:
        memory_gib, host_memory_gib: 2^30 bytes. host_memory is what a rank has beside a GPU.
        *_gb_s: 1e9 bytes a second, one direction. host_link is between GPU and host memory.
        dense_tflops: 1e12 multiply-adds x 2 a second, of the matrix type that training uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    sources: list[str] = Field(min_length=1)
    """Where the figures are from."""

    @property
    def memory(self) -> int:
        """Bytes that tables live in."""
        return int(self.memory_gib * 2**30)

    @property
    def host_memory(self) -> int:
        """Bytes beside them, 0 on CPU."""
        return int(self.host_memory_gib * 2**30) if self.device == "cuda" else 0

    def topology(self, world_size: int, local_world_size: int) -> Topology:
        """As TorchRec's estimators take it."""
        is_gpu = self.device == "cuda"
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=world_size, local_world_size=local_world_size),
            HardwareConfig(
                hbm_cap_bytes=self.memory if is_gpu else 0,
                ddr_cap_bytes=self.host_memory if is_gpu else self.memory,
                hbm_mem_bw=self.memory_gb_s * GB_S,
                ddr_mem_bw=(self.host_gb_s if is_gpu else self.memory_gb_s) * GB_S,
                hbm_to_ddr_mem_bw=self.host_link_gb_s * GB_S,
                intra_host_bw=self.intra_node_gb_s * GB_S,
                inter_host_bw=self.inter_node_gb_s * GB_S,
            ),
            KernelConfig(compute_device=self.device, use_hardware_based_bandwidth=True),
        )


def load_hardware(name: str, file: Path | None = None) -> Hardware:
    """Find an accelerator by name.

    Args:
        name: of an entry.
        file: a YAML file of entries instead of ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such entry (the known ones are named), or an entry is wrong.
    """
    path = file or HARDWARE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"the hardware file {path} must exist; it does not.")
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold accelerators by name; it holds {entries!r:.40}.")
    if name not in entries:
        near = difflib.get_close_matches(name, entries) or list(entries)
        raise ValueError(
            f"the accelerator must be one of {path.name}; got {name!r}, near it are "
            f"{', '.join(near)}. Another one goes into a file for --hardware."
        )
    try:
        return Hardware.model_validate(entries[name])
    except ValidationError as error:
        raise ValueError(f"{path}: {name}.{first_error(error)}.") from None
