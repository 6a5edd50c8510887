"""Device of a rank: its own GPU, or the CPU."""

import logging
import os

import torch

from msrec.launch.config.run_config import Device
from msrec.launch.versions import TO_GPU

logger = logging.getLogger(__name__)


def rank_device(wanted: Device = "auto", *, has_tables: bool = True) -> torch.device:
    """Returns the device of this rank: the GPU with the number LOCAL_RANK, or the CPU.

    Every rank of a host returns or raises alike, and before any process group is made.

    Args:
        wanted: device that the user asks for. `auto` is CUDA where both torch and FBGEMM can use a
            GPU; one that FBGEMM cannot use is left alone, with a warning on rank 0.
        has_tables: whether the work needs FBGEMM; a frozen LLM does not.

    Raises:
        ValueError: CUDA is asked for and not there, or the host has fewer GPUs than ranks.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if wanted == "auto":
            return torch.device("cpu")
        raise ValueError(
            f"device=cuda needs a GPU that torch can use; torch {torch.__version__} finds none. "
            f"Check nvidia-smi, then run: {TO_GPU}; or take device=cpu."
        )
    if has_tables and not fbgemm_has_cuda():
        fault = "the CUDA build of fbgemm, and the CPU build is installed"
        if wanted == "cuda":
            raise ValueError(f"device=cuda needs {fault}. Run: {TO_GPU}; or take device=cpu.")
        if os.environ.get("RANK", "0") == "0":
            logger.warning("running on the CPU: a GPU needs %s. Run: %s", fault, TO_GPU)
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if max(local_ranks, local_rank + 1) > gpus:
        raise ValueError(
            f"each rank of a host needs its own GPU; this host has {local_ranks} ranks and "
            f"{gpus} GPU{'s' * (gpus != 1)}. Start {gpus} per host (-j NODESx{gpus}), or take "
            "device=cpu."
        )
    return torch.device("cuda", local_rank)


def fbgemm_has_cuda() -> bool:
    """Returns whether FBGEMM's operators have CUDA kernels, as only its CUDA build has."""
    import fbgemm_gpu  # noqa: F401 - registers the operators, which takes a second

    op = "fbgemm::asynchronous_complete_cumsum"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"))


def num_local_ranks(wanted: Device = "auto", on_cpu: int = 2) -> int:
    """Returns the number of ranks for this machine: one per GPU or, on the CPU, `on_cpu`."""
    if wanted == "cpu" or not torch.cuda.is_available() or not fbgemm_has_cuda():
        return on_cpu
    return torch.cuda.device_count()
