"""Estimate of the memory that a training needs at least, against what the machine has."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from msrec.model.managed.managed_ids import map_bytes
from msrec.model.ranker import RankerTrain

FLOAT_BYTES = 4
DENSE_COPIES = 4
"""Weights, gradients and two moments of Adam."""
VECTOR_COPIES = 2
"""Vectors of a batch and their gradients."""
LARGEST = 3
"""Parts that an error names."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(model: RankerTrain, rows: int, ranks: int, limit: int) -> None:
    """Refuses a training that cannot fit.

    Only what every training holds at the same time is counted, so that none that fits is refused:
    tables, dense parameters with gradients and optimizer state, and the vectors of a batch.

    Args:
        model: before sharding; its parameters may be on the meta device.
        rows: of a step on one rank.
        ranks: number of ranks that share the tables.
        limit: bytes of memory for one rank.

    Raises:
        ValueError: names the largest parts.
    """
    embeddings = model.ranker.embeddings
    tables = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
        if not name.startswith("ranker.over.")
    )
    vectors = rows * len(embeddings.names) * embeddings.dim
    parts = {
        "the tables (rows x embeddings.dim)": tables // ranks,
        f"the vectors of {rows:,} rows (trainer.global_batch x features x embeddings.dim)": (
            vectors * FLOAT_BYTES * VECTOR_COPIES
        ),
    }
    if embeddings.managed is not None:
        part = "the maps of managed features (24 to 32 bytes a row, on every rank)"
        parts[part] = map_bytes(embeddings.managed)
    for name, module in model.ranker.over.named_children():
        numbers = sum(parameter.numel() for parameter in module.parameters())
        part = f"{name}, {numbers:,} parameters with gradients and Adam"
        parts[part] = numbers * FLOAT_BYTES * DENSE_COPIES
    _require_fit(parts, limit)


def machine_bytes(device: torch.device, local_ranks: int) -> int:
    """Returns the memory of this machine, or of its container, and that of its ranks' GPUs."""
    memory = int(psutil.virtual_memory().total)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    if limit.isdecimal():
        memory = min(memory, int(limit))
    if device.type == "cuda":
        memory += int(torch.cuda.get_device_properties(device).total_memory) * local_ranks
    return memory


def _require_fit(parts: Mapping[str, int], limit: int) -> None:
    total = sum(parts.values())
    if total > limit:
        largest = sorted(parts.items(), key=lambda part: -part[1])[:LARGEST]
        named = "; ".join(f"{name}: {_gib(size)}" for name, size in largest)
        raise ValueError(
            f"a rank must need at most {_gib(limit)} of memory, its share of this machine; this "
            f"config needs {_gib(total)} or more. Largest: {named}. Make one of them smaller, or "
            "take more machines."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
