"""Sharding plan as JSON: write, read, and check that it fits a job."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchrec.distributed.types import (
    CacheAlgorithm,
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)

from msrec.model.distributed.plan_files.plan_entries import plan_hash, shard_entry, table_entry
from msrec.model.distributed.tables import table_sizes

KERNELS = {"cpu": ("fused", "dense"), "cuda": ("fused", "fused_uvm", "fused_uvm_caching", "dense")}
"""Kernels with which tables train, by kind of device. Without a GPU there is no unified memory.
Tables on SSD (`key_value`) are not offered: FBGEMM has them for CUDA only, and their weights are no
plain tensors, to which initial values or those of a checkpoint could be written."""


def plan_to_dict(plan: ShardingPlan, world_size: int, per_node: int) -> dict[str, Any]:
    """Returns a plan as plain JSON values; a replicated (data-parallel) table has no shards."""
    modules = {
        path: {
            table: table_entry(
                sharding.sharding_type,
                sharding.compute_kernel,
                sharding.ranks or [],
                None if sharding.cache_params is None else sharding.cache_params.load_factor,
                [
                    shard_entry(shard.shard_offsets, shard.shard_sizes, str(shard.placement))
                    for shard in getattr(sharding.sharding_spec, "shards", [])
                ],
                "lfu" if _is_lfu(sharding.cache_params) else "lru",
            )
            for table, sharding in module.items()
        }
        for path, module in plan.plan.items()
    }
    return {"format": 1, "world_size": world_size, "per_node": per_node, "modules": modules}


def _is_lfu(cache: CacheParams | None) -> bool:
    return cache is not None and cache.algorithm == CacheAlgorithm.LFU


def plan_from_dict(saved: Mapping[str, Any]) -> ShardingPlan:
    """Returns the plan that `plan_to_dict` saved."""
    return ShardingPlan(
        plan={
            path: EmbeddingModuleShardingPlan(
                {table: _parameter_sharding(entry) for table, entry in tables.items()}
            )
            for path, tables in saved["modules"].items()
        }
    )


def _parameter_sharding(entry: Mapping[str, Any]) -> ParameterSharding:
    load_factor = entry.get("load_factor")
    cache = None
    if load_factor is not None:
        is_lfu = entry.get("cache") == "lfu"
        # The training pipeline fetches the rows of the next batch into the cache during this one,
        # which FBGEMM allows for LRU only.
        cache = CacheParams(
            load_factor=load_factor,
            algorithm=CacheAlgorithm.LFU if is_lfu else None,
            prefetch_pipeline=not is_lfu,
        )
    shards = [
        ShardMetadata(
            shard_offsets=shard["offsets"],
            shard_sizes=shard["sizes"],
            placement=shard["placement"],
        )
        for shard in entry["shards"]
    ]
    return ParameterSharding(
        sharding_type=entry["sharding_type"],
        compute_kernel=entry["compute_kernel"],
        ranks=entry["ranks"],
        cache_params=cache,
        sharding_spec=EnumerableShardingSpec(shards) if shards else None,
    )


def load_plan(
    path: Path, model: nn.Module, world_size: int, local_world_size: int, device: str
) -> ShardingPlan:
    """Reads a plan and checks that it fits this model, these ranks and this kind of device.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a plan, it was changed, or it is for another world size, other nodes,
            another kind of device, other tables or other sizes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"plan={path} must name a file; there is none.")
    try:
        saved = json.loads(path.read_text())
        plan = plan_from_dict(saved)
        planned_world = saved["world_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a plan written by msrec; {error!r}.") from None
    if planned_world != world_size:
        raise ValueError(
            f"{path} is a plan for {planned_world} ranks; this job has {world_size}. Plan again or "
            f"run on {planned_world} ranks."
        )
    # A rack with one NVLink domain is a node of several hosts.
    per_host = saved.get("per_host") or saved.get("per_node", local_world_size)
    if per_host != local_world_size:
        raise ValueError(
            f"{path} is a plan for nodes of {per_host} ranks; this job has {local_world_size} on a "
            "node, so that shards would be on other nodes than planned. Plan again, or start "
            f"{per_host} ranks on each node."
        )
    if saved.get("hash", plan_hash(saved)) != plan_hash(saved):
        raise ValueError(
            f"{path} must be unchanged since it was planned; its content does not match its hash. "
            "Plan again, or remove the key `hash` if you changed the plan on purpose."
        )
    entries = {t: entry for tables in saved["modules"].values() for t, entry in tables.items()}
    _check_device(path, entries, device)
    _check_tables(path, entries, table_sizes(model))
    return plan


def _check_device(path: Path, entries: Mapping[str, Any], device: str) -> None:
    planned = {
        shard["placement"].partition("/")[2].partition(":")[0]
        for entry in entries.values()
        for shard in entry["shards"]
    }
    if planned - {device}:
        raise ValueError(
            f"{path} is a plan for {', '.join(sorted(planned))}; this job runs on {device}. Plan "
            "again for it."
        )
    for table, entry in entries.items():
        if entry["compute_kernel"] not in KERNELS[device]:
            raise ValueError(
                f"{path}: table {table!r} has the kernel {entry['compute_kernel']}; training on "
                f"{device} runs {', '.join(KERNELS[device])}. Plan again with one of them."
            )


def _check_tables(
    path: Path, entries: Mapping[str, Any], actual: Mapping[str, tuple[int, int]]
) -> None:
    """Compares the planned tables and their sizes with the model's.

    The plan of a replicated table has no shards and thus no size.
    """
    planned = {
        table: [
            max(shard["offsets"][i] + shard["sizes"][i] for shard in entry["shards"])
            for i in (0, 1)
        ]
        for table, entry in entries.items()
        if entry["shards"]
    }
    sizes = {table: list(size) for table, size in actual.items()}
    for table in sorted(entries.keys() | sizes.keys()):
        is_replicated = table in entries and table not in planned
        if planned.get(table) != sizes.get(table) and not (is_replicated and table in sizes):
            raise ValueError(
                f"{path}: table {table!r} is planned as {planned.get(table, 'absent')} (rows, "
                f"dim); this model has {sizes.get(table, 'no such table')}."
            )
