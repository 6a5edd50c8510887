"""Estimate of the memory that a training needs at least, against what the machine has."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from msrec.data.schema import Schema
from msrec.launch.build_model import build_model
from msrec.launch.config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs

FLOAT_BYTES = 4
DENSE_COPIES = 4
"""Weights, gradients and two moments of Adam."""
VECTOR_COPIES = 2
"""Vectors of a batch and their gradients."""
LARGEST = 3
"""Parts that an error names."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(
    config: RunConfig, schema: Schema, knowledge: KnowledgeInputs, process: Process
) -> None:
    """Refuses a training that cannot fit, before anything large is made.

    The model is built without storage. Only what every training holds at the same time is counted,
    so that none that fits is refused: tables, dense parameters with gradients and optimizer state,
    and the vectors of a batch.

    Raises:
        ValueError: names the largest parts.
    """
    with torch.device("meta"):
        model = build_model(config, schema, knowledge)
    embeddings, dense = model.ranker.embeddings, model.ranker.over
    batch = -(-config.trainer.global_batch // process.world_size)
    vectors = batch * len(embeddings.names) * embeddings.dim
    tables = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("ranker.over.")
    )
    parts = {
        "the tables (rows x embeddings.dim)": tables * FLOAT_BYTES // process.world_size,
        f"the vectors of {batch:,} rows (trainer.global_batch x features x embeddings.dim)": vectors
        * FLOAT_BYTES
        * VECTOR_COPIES,
    }
    for name, module in dense.named_children():
        numbers = sum(parameter.numel() for parameter in module.parameters())
        parts[f"{name}, {numbers:,} parameters with their Adam"] = (
            numbers * FLOAT_BYTES * DENSE_COPIES
        )
    require_fit(parts, machine_bytes(process) // process.local_world_size)


def require_fit(parts: Mapping[str, int], limit: int) -> None:
    """Refuses parts that together are larger than the memory of a rank, in bytes.

    Raises:
        ValueError: names the largest parts.
    """
    total = sum(parts.values())
    if total > limit:
        largest = sorted(parts.items(), key=lambda part: -part[1])[:LARGEST]
        named = "; ".join(f"{name}: {_gib(size)}" for name, size in largest)
        raise ValueError(
            f"a rank must need at most {_gib(limit)} of memory, its share of this machine; this "
            f"config needs {_gib(total)} or more. Largest: {named}. Make one of them smaller, or "
            "take more ranks."
        )


def machine_bytes(process: Process) -> int:
    """Returns the memory of this machine, or of its container, with that of the ranks' GPUs."""
    memory = int(psutil.virtual_memory().total)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    if limit.isdecimal():
        memory = min(memory, int(limit))
    if process.device.type == "cuda":
        device = torch.cuda.get_device_properties(process.device).total_memory
        memory += int(device) * process.local_world_size
    return memory


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
