"""A sharding plan as JSON: write it, read it, refuse one that was made for another job."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection


def plan_to_dict(plan: ShardingPlan, world_size: int, per_node: int) -> dict[str, Any]:
    """A plan as plain JSON values; a replicated (data-parallel) table has no shards."""
    modules = {
        path: {
            table: table_entry(
                sharding.sharding_type,
                sharding.compute_kernel,
                sharding.ranks or [],
                None if sharding.cache_params is None else sharding.cache_params.load_factor,
                [
                    shard_entry(piece.shard_offsets, piece.shard_sizes, str(piece.placement))
                    for piece in getattr(sharding.sharding_spec, "shards", [])
                ],
            )
            for table, sharding in module.items()
        }
        for path, module in plan.plan.items()
    }
    return {"format": 1, "world_size": world_size, "per_node": per_node, "modules": modules}


def table_entry(
    sharding_type: str,
    kernel: str,
    ranks: Sequence[int],
    load_factor: float | None,
    shards: list[dict[str, Any]],
) -> dict[str, Any]:
    """A table in a plan's file.

    Args:
        sharding_type: as TorchRec names it.
        kernel: as TorchRec names it.
        ranks: of the shards, in order.
        load_factor: the share of a table in host memory that the accelerator caches; None where it
            does not lie there.
        shards: by `shard_entry`; none of a replicated table.
    """
    return {
        "sharding_type": sharding_type,
        "compute_kernel": kernel,
        "ranks": list(ranks),
        "shards": shards,
        **({} if load_factor is None else {"load_factor": load_factor}),
    }


def shard_entry(offsets: Sequence[int], sizes: Sequence[int], placement: str) -> dict[str, Any]:
    """A shard in a plan's file: its first row and column, how many, and `rank:R/DEVICE`."""
    return {"offsets": list(offsets), "sizes": list(sizes), "placement": placement}


def plan_from_dict(saved: Mapping[str, Any]) -> ShardingPlan:
    """The inverse of `plan_to_dict`."""
    return ShardingPlan(
        plan={
            path: EmbeddingModuleShardingPlan(
                {
                    table: ParameterSharding(
                        sharding_type=entry["sharding_type"],
                        compute_kernel=entry["compute_kernel"],
                        ranks=entry["ranks"],
                        cache_params=_cache(entry.get("load_factor")),
                        sharding_spec=_spec(entry["shards"]),
                    )
                    for table, entry in tables.items()
                }
            )
            for path, tables in saved["modules"].items()
        }
    )


def _cache(load_factor: float | None) -> CacheParams | None:
    return None if load_factor is None else CacheParams(load_factor=load_factor)


def _spec(shards: list[dict[str, Any]]) -> EnumerableShardingSpec | None:
    if not shards:
        return None
    return EnumerableShardingSpec(
        [
            ShardMetadata(
                shard_offsets=piece["offsets"],
                shard_sizes=piece["sizes"],
                placement=piece["placement"],
            )
            for piece in shards
        ]
    )


def plan_hash(plan: Mapping[str, Any]) -> str:
    """SHA-256 of a plan's file but for its `hash`, the same in every process."""
    told = {key: value for key, value in plan.items() if key != "hash"}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_plan(
    path: Path, model: nn.Module, world_size: int, local_world_size: int, device: str
) -> ShardingPlan:
    """Read a plan and check that it is for this model, these ranks and this kind of device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a plan, is not as it was when it was made, or is for another world
            size, other nodes, another kind of device, other tables or other sizes.
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
    on_node = saved.get("per_node", local_world_size)
    if on_node != local_world_size:
        raise ValueError(
            f"{path} is a plan for nodes of {on_node} ranks; this job has {local_world_size} on a "
            "node, so that tables would lie elsewhere. Plan again or launch it so."
        )
    if saved.get("hash", plan_hash(saved)) != plan_hash(saved):
        raise ValueError(
            f"{path} must be as it was when it was made; its contents are not those of its hash. "
            "Plan again, or remove the line `hash` if you changed it on purpose."
        )
    entries = {t: entry for tables in saved["modules"].values() for t, entry in tables.items()}
    placed = {
        s["placement"].partition("/")[2].partition(":")[0]
        for entry in entries.values()
        for s in entry["shards"]
    }
    if placed - {device}:
        raise ValueError(
            f"{path} is a plan for {', '.join(sorted(placed))}; this job runs on {device}. Plan "
            "again for it."
        )
    planned = {  # a replicated table's plan says nothing of its size
        table: [max(s["offsets"][d] + s["sizes"][d] for s in entry["shards"]) for d in (0, 1)]
        for table, entry in entries.items()
        if entry["shards"]
    }
    actual = {
        config.name: [config.num_embeddings, config.embedding_dim]
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for config in module.embedding_bag_configs()
    }
    for table in sorted(entries.keys() | actual.keys()):
        is_replicated = table in entries and table not in planned
        if planned.get(table) != actual.get(table) and not (is_replicated and table in actual):
            raise ValueError(
                f"{path}: table {table!r} is planned as {planned.get(table, 'absent')} (rows, "
                f"dim); this model has {actual.get(table, 'no such table')}."
            )
    return plan
