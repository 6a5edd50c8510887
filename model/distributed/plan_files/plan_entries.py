"""Entries of a plan file as plain JSON values, and its hash; imported without torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def table_entry(
    sharding_type: str,
    kernel: str,
    ranks: Sequence[int],
    load_factor: float | None,
    shards: list[dict[str, Any]],
    cache: str = "lru",
) -> dict[str, Any]:
    """Returns the entry of a table in a plan file.

    Args:
        sharding_type: TorchRec's name.
        kernel: TorchRec's name.
        ranks: of the shards, in order.
        load_factor: share of a table in host memory that the accelerator caches; None for a table
            that is not in host memory.
        shards: entries by `shard_entry`; empty for a replicated table.
        cache: policy of the accelerator's cache, lru or lfu.
    """
    return {
        "sharding_type": sharding_type,
        "compute_kernel": kernel,
        "ranks": list(ranks),
        "shards": shards,
        **({} if load_factor is None else {"load_factor": load_factor}),
        **({} if load_factor is None or cache == "lru" else {"cache": cache}),
    }


def shard_entry(offsets: Sequence[int], sizes: Sequence[int], placement: str) -> dict[str, Any]:
    """Returns the entry of a shard: first row and column, their numbers, and `rank:R/DEVICE`."""
    return {"offsets": list(offsets), "sizes": list(sizes), "placement": placement}


def plan_hash(plan: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a plan without its `hash`, the same in every process."""
    content = {key: value for key, value in plan.items() if key != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
