"""Copies of a state for the writer thread, with the parts of a GPU that a CPU can show."""

import threading
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.snapshot import snapshot

pytestmark = pytest.mark.slow


def sharded_on_a_gpu():
    """A sharded tensor on the CPU whose metadata names a GPU, as one of a GPU run does."""
    spec = ChunkShardingSpec(dim=0, placements=["rank:0/cpu"])
    tensor = sharded_tensor.rand(spec, 4, 3)
    for place in [*tensor.metadata().shards_metadata, tensor.local_shards()[0].metadata]:
        place.placement._device = torch.device("cuda", 0)
    return tensor


def copy_twice(rank, world_size):
    group = torch.distributed.group.WORLD
    tensor = sharded_on_a_gpu()
    first = snapshot({"table": tensor}, group)["table"]
    before = first.local_shards()[0].tensor.clone()
    is_equal = torch.equal(before, tensor.local_shards()[0].tensor)
    tensor.local_shards()[0].tensor += 1
    second = snapshot({"table": tensor}, group, {"table": first})["table"]
    return {
        "equal": is_equal,
        "own": tensor.metadata().shards_metadata[0].placement.device().type,
        "copy": [p.placement.device().type for p in second.metadata().shards_metadata],
        "shard": second.local_shards()[0].metadata.placement.device().type,
        "refilled": torch.equal(second.local_shards()[0].tensor, before + 1),
        "same memory": first.local_shards()[0].tensor.data_ptr()
        == second.local_shards()[0].tensor.data_ptr(),
    }


def test_a_sharded_tensor_of_a_gpu_moves_to_the_cpu_and_its_memory_is_filled_again():
    [result] = run_ranks(copy_twice, 1)
    assert result == {
        "equal": True,
        "own": "cuda",
        "copy": ["cpu"],
        "shard": "cpu",
        "refilled": True,
        "same memory": True,
    }


def save_with_gpu_3(rank, world_size, folder):
    used, waits = [], []
    torch.cuda.is_initialized = lambda: True
    torch.cuda.current_device = lambda: 3
    torch.cuda.current_stream = lambda: SimpleNamespace(synchronize=lambda: waits.append(1))
    torch.cuda.set_device = lambda gpu: used.append((threading.current_thread().name, gpu))
    model = torch.nn.Linear(2, 1)
    optimizer = SimpleNamespace(state_dict=lambda: {"state": {}})
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(model, optimizer, {"step": 1, "best_step": 1})
    return used, len(waits), checkpoints.newest().name


def test_the_writer_thread_uses_the_gpu_of_its_rank_and_a_save_waits_for_copies_once(tmp_path):
    [(used, waits, newest)] = run_ranks(save_with_gpu_3, 1, tmp_path)
    assert used == [("msrec-checkpoint", 3)]
    assert waits == 1
    assert newest == "step-00000001"
