"""This process among the ranks: process group, device, seed."""

import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from msrec.data.io.exclusive_files import exclusive, exclusive_remote
from msrec.data.io.outputs import FolderKind, new_folder
from msrec.data.io.paths import AnyPath
from msrec.launch.config.run_config import Device
from msrec.launch.devices import rank_device
from msrec.model.distributed.collectives import from_rank_0

COLLECTIVE_TIMEOUT_S = 600
PR_SET_PDEATHSIG = 1
"""Option of prctl(2), Linux."""
KEPT_MEMORY = {-1: 1 << 30, -2: 64 << 20, -3: 32 << 20}
"""Options of mallopt(3) in glibc -> bytes. M_TRIM_THRESHOLD: freed memory to keep. M_TOP_PAD: size
of each request to the system. M_MMAP_THRESHOLD: size of blocks that are mapped by themselves and
always returned, here its largest value."""


@dataclass(frozen=True)
class Process:
    """Rank and device of this process.

    `local_world_size` is the number of ranks on this host, which the planner's topology needs.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and logs."""
        return self.rank == 0


@contextmanager
def process_group(device: Device = "auto") -> Iterator[Process]:
    """Joins the ranks that torchrun started, or makes a group of one rank.

    The backend is NCCL on CUDA, with gloo for CPU tensors, and gloo elsewhere.

    Args:
        device: of the ranks; see `rank_device`.

    Raises:
        ValueError: the device is not there, or has too few GPUs for the ranks of this host.
    """
    end_with_launcher()
    keep_freed_memory()
    quiet_libraries()
    own_device = rank_device(device)
    is_cuda = own_device.type == "cuda"
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if is_cuda:
        torch.cuda.set_device(own_device)
    # Under torchrun, its store. Otherwise a store in memory: a single rank opens no port.
    store = None if "RANK" in os.environ else HashStore()
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if is_cuda else "gloo",
        store=store,
        rank=rank if store else -1,
        world_size=world_size if store else -1,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        # NCCL then connects here, and no collective has to guess a rank's GPU.
        device_id=own_device if is_cuda else None,
    )
    try:
        yield Process(rank, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), own_device)
    finally:
        dist.destroy_process_group()


@contextmanager
def exclusive_job(output: AnyPath, work: str, marker: str = "") -> Iterator[None]:
    """Holds the lock of an output on rank 0 for all ranks.

    Args:
        output: a local file or folder, see `exclusive`, or a remote folder, see `exclusive_remote`.
        work: the work, for the error: "trained".
        marker: file that each complete folder has; only of a remote one.

    Raises:
        ValueError, OSError: another job holds it, or it cannot be written; on every rank.
    """
    with ExitStack() as held:

        def hold() -> None:
            if isinstance(output, Path):
                held.enter_context(exclusive(output, f"{output} must be {work}"))
            else:
                held.enter_context(exclusive_remote(output, marker, f"{output} must be {work}"))

        from_rank_0(hold)
        yield


@contextmanager
def shared_folder(out: Path, kind: FolderKind) -> Iterator[Path]:
    """Yields a scratch folder to all ranks, which becomes `out` when rank 0 ends the block.

    The ranks must have written their files by then. An older `out` stays until then; see
    `new_folder`.

    Raises:
        ValueError, OSError: `out` holds files of others; on every rank.
    """
    with ExitStack() as held:
        new = new_folder(out, kind, overwrite=True)
        yield from_rank_0(lambda: held.enter_context(new))


def end_with_launcher() -> None:
    """Requests SIGTERM for this rank when its launcher dies, so that it does not run on alone.

    A training rank then saves a checkpoint. Works under torchrun on Linux only.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees for the next step.

    By default it returns large blocks to the system and fetches them again page by page, thousands
    of page faults in each step. Environment variables such as MALLOC_TRIM_THRESHOLD_ go first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option, num_bytes in KEPT_MEMORY.items():
        mallopt(option, num_bytes)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds dropout for one step of one rank, so that a resumed run draws the same masks."""
    value = ((seed * 1_000_003 + step) * 8191 + rank) % (1 << 63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.manual_seed(value)
    else:
        # manual_seed would also queue the seed for every kind of device, which takes 0.3 ms.
        torch.default_generator.manual_seed(value)


def quiet_libraries() -> None:
    """Silences the warnings of TorchRec's calls into torch, about which a user can do nothing.

    The libraries of object stores log the stack of an error that they also raise.
    """
    for message in ("`broadcast_buffers` is deprecated", "Please use DTensor instead"):
        warnings.filterwarnings("ignore", message, FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for name in ("gcsfs", "azure"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
