"""Accelerators: memory and bandwidths of a rank, read by name from a YAML file."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml

HARDWARE_FILE = Path(__file__).with_name("hardware.yaml")


class Price(StrictModel):
    """Dollars of a GPU, with its share of the node, in an hour; with their source and date."""

    usd_per_hour: float = Field(ge=0)
    source: str = Field(min_length=1)
    read: date | None = None
    """Day on which the source had this price."""

    def __str__(self) -> str:
        """Returns the price and where it is from, for people."""
        day = "" if self.read is None else f", {self.read}"
        return f"${self.usd_per_hour:g} per hour ({self.source}{day})"


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
        gpus_per_node: GPUs with a common fast link: 8 in most servers, 72 in an NVL72 rack.
        gpus_per_host: GPUs of a host, if a node has several hosts: 4 in an NVL72 rack; None is all.
        power_w: watts of the accelerator alone, at most; None is unknown.
    """

    about: str = ""
    device: Literal["cuda", "cpu"] = "cuda"
    gpus_per_node: int = Field(8, ge=1)
    gpus_per_host: int | None = Field(None, ge=1)
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
    power_w: float | None = Field(None, gt=0)
    price: Price | None = None
    sources: list[str] = Field(min_length=1)
    """Data sheets or measurements that the figures come from."""

    @property
    def memory(self) -> int:
        """Bytes of memory for tables and dense part."""
        return int(self.memory_gib * 2**30)

    def ranks_per_host(self, per_node: int) -> int:
        """Returns the ranks of a host, of `per_node` ranks of a node."""
        return min(self.gpus_per_host or per_node, per_node)

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


@dataclass(frozen=True)
class Catalogue:
    """Accelerators by name, some of their figures changed.

    Attributes:
        file: YAML file of accelerators; None is that of msrec.
        prices: accelerator -> dollars of a GPU in an hour, instead of those of the file.
        gpus_per_node: GPUs of a node of every accelerator; None is that of the file.
    """

    file: Path | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    gpus_per_node: int | None = None

    def load(self, name: str) -> Hardware:
        """Returns an accelerator.

        Raises:
            FileNotFoundError, ValueError: see `load_hardware`.
        """
        hardware = load_hardware(name, self.file)
        if name in self.prices:
            price = Price(usd_per_hour=self.prices[name], source="given")
            hardware = hardware.model_copy(update={"price": price})
        if self.gpus_per_node is not None:
            hardware = hardware.model_copy(update={"gpus_per_node": self.gpus_per_node})
        return hardware

    def refuse_unused_prices(self, names: Iterable[str]) -> None:
        """Refuses a price of an accelerator that is not among those that are planned for.

        Raises:
            ValueError: there is one.
        """
        unused = sorted(set(self.prices) - set(names))
        if unused:
            raise ValueError(
                f"--price must be for an accelerator that is planned for; {unused[0]} is not."
            )


STOCK = Catalogue()
"""The accelerators of msrec, unchanged."""


def parse_prices(texts: list[str]) -> dict[str, float]:
    """Returns accelerator -> dollars, from texts such as h100=2.5.

    Raises:
        ValueError: a text is not a name and a number of 0 or more, or names one a second time.
    """
    prices: dict[str, float] = {}
    for text in texts:
        name, _, dollars = text.partition("=")
        try:
            price = float(dollars)
        except ValueError:
            price = -1.0
        if not name or not 0 <= price < math.inf or name in prices:
            raise ValueError(
                "a price must be an accelerator and its dollars per GPU and hour, once, such as "
                f"h100=2.5; got {text!r}."
            )
        prices[name] = price
    return prices
