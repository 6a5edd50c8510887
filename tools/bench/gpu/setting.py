"""Device, folder and made-up data that the lines of `msrec bench gpu` share."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from msrec.data.histories.build import build_histories
from msrec.data.synthetic.random_rows import random_rows
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.distributed import Process, process_group
from msrec.tools.bench.harness.shapes import movielens_tables
from msrec.tools.bench.meta import write_random_store

Kind = Literal["cpu", "cuda"]


class Skipped(Exception):
    """Says why a line does not apply here."""


class Found(NamedTuple):
    """Finding of a line: a sentence for people, and figures for the JSON file."""

    text: str
    figures: dict[str, Any] = {}


@dataclass(frozen=True)
class Setting:
    """Device and scratch folder of the lines.

    Everything is made in the folder by the line that first needs it, so that each line runs alone.
    """

    kind: Kind
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Numbers of the runs that this process makes."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.kind == "cuda"

    def size(self, on_gpu: int, on_cpu: int) -> int:
        """Returns a size for this kind of device; a CPU only shows that the line itself works."""
        return on_gpu if self.is_gpu else on_cpu

    def require_gpu(self, what: str) -> None:
        """Skips a line without a GPU.

        Raises:
            Skipped: the device is the CPU.
        """
        if not self.is_gpu:
            raise Skipped(f"{what} needs CUDA")

    @contextmanager
    def one_rank(self) -> Iterator[Process]:
        """Makes a process group of one rank on the device."""
        with process_group(self.kind) as process:
            yield process

    def random_data(self, rows: int, scenarios: int = 3) -> Path:
        """Returns a dataset of random rows, of which 8 in 10 are for training."""
        folder = self.folder / f"rows-{rows}-{scenarios}"
        if not folder.exists():
            tables = movielens_tables()
            random_rows(folder, tables, rows, users=2_000, items=3_000, scenarios=scenarios)
        return folder

    def store_of(self, data: Path) -> Path:
        """Returns a knowledge store of random vectors for a dataset."""
        store = self.folder / f"{data.name}-store"
        if not store.exists():
            write_random_store(data, store)
        return store

    def app_data(self) -> Path:
        """Returns the simulated app, with texts and indexed histories."""
        folder = self.folder / "app"
        if not folder.exists():
            synthesize(folder, rows=self.size(40_000, 4_000), users=1_000, items=1_000)
            build_histories(folder, protocols=("stream",))
        return folder

    def config(self, name: str, data: Path, *options: str) -> RunConfig:
        """Returns the config of a new run."""
        given = [f"dataset={data}", f"run_root={self.folder / 'runs'}"]
        given.append(f"run_id={name}-{next(self.numbers)}")
        return load_config(None, [*given, f"device={self.kind}", *options])


def synchronize() -> None:
    """Waits for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
