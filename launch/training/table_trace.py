"""Time each table's lookup and update on each rank, with its shards and the ids of a batch."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from msrec.data.loading.batch import Batch

TRACE_FILE = "table_times.json"
MS = 1000.0
Times = dict[str, dict[str, float]]


def trace_tables(model: nn.Module, batch: Batch, repeats: int) -> list[dict[str, Any]]:
    """Times of one step's parts, on every rank; call it on all of them.

    A table is timed alone: its group's kernel runs with the ids of that table and without those of
    the others. What the kernel takes with no ids at all, to write vectors of zeros, is divided
    among its tables by the width of what they write. The gradient is zero, which leaves the values
    as they are; Adam's moments fade, so trace when nothing is to be trained or saved any more.

    Args:
        model: sharded, with one collection of tables.
        batch: of this rank, as large as a training step's.
        repeats: of which the fastest counts: a slower one was disturbed.

    Returns:
        For each rank, in milliseconds::

            tables       table -> {fwd_compute, bwd_compute} of the rank's shards
            fwd_comms    sending the vectors of all tables
            bwd_comms    all of the way back but for the updates
            ids          sending the ids
    """
    collection = next(m for m in model.modules() if isinstance(m, ShardedEmbeddingBagCollection))
    device = batch.label.device

    def timed(work: Callable[..., Any], prepare: Callable[[], tuple[Any, ...]] = tuple) -> float:
        """Milliseconds of the fastest, all ranks beginning together when they are prepared."""
        taken = []
        for _ in range(repeats):
            given = prepare()
            dist.barrier()
            _wait_for(device)
            started = time.perf_counter()
            work(*given)
            _wait_for(device)
            taken.append(time.perf_counter() - started)
        return MS * min(taken)

    context = collection.create_context()
    ids = collection.input_dist(context, batch.sparse).wait().wait()
    inputs: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    kernels = list(_kernels(collection))
    hooks = [
        kernel.register_forward_pre_hook(_keeper(inputs, kernel), with_kwargs=True)
        for kernel, _ in kernels
    ]
    vectors = collection.compute(context, ids)
    for hook in hooks:
        hook.remove()
    found: dict[str, Any] = {"tables": {}}
    found["ids"] = timed(
        lambda: collection.input_dist(collection.create_context(), batch.sparse).wait().wait()
    )
    found["fwd_comms"] = timed(lambda: collection.output_dist(context, vectors).wait())

    def sent() -> tuple[torch.Tensor]:
        return (collection.output_dist(context, collection.compute(context, ids)).wait().values(),)

    back = timed(lambda out: out.backward(torch.zeros_like(out)), sent)
    updates = 0.0
    for kernel, features in kernels:
        of_tables, update = _alone(kernel, features, *inputs[kernel], repeats, device)
        found["tables"] |= of_tables
        updates += update
    found["bwd_comms"] = max(back - updates, 0.0)
    everybody: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everybody, found)
    return everybody


def _kernels(
    collection: ShardedEmbeddingBagCollection,
) -> Iterator[tuple[nn.Module, list[tuple[str, int, int]]]]:
    """Each group's kernel with its tables, their numbers of features and columns, in its order."""
    for lookup in collection._lookups:
        for group in getattr(lookup, "module", lookup)._emb_modules:
            tables = group._config.embedding_tables
            yield group.emb_module, [(t.name, len(t.feature_names), t.local_cols) for t in tables]


def _keeper(
    inputs: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]], kernel: nn.Module
) -> Callable[..., None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("indices", "offsets"), args, strict=False)) | kwargs
        inputs[kernel] = (named["indices"].long(), named["offsets"].long())

    return keep


def _alone(
    kernel: nn.Module,
    tables: list[tuple[str, int, int]],
    indices: torch.Tensor,
    offsets: torch.Tensor,
    repeats: int,
    device: torch.device,
) -> tuple[Times, float]:
    """Each table's times, and the update of all of them together."""

    def times(ids: torch.Tensor, ends: torch.Tensor) -> tuple[float, float]:
        forward, backward = [], []
        for _ in range(repeats):
            _wait_for(device)
            started = time.perf_counter()
            out = kernel(indices=ids, offsets=ends)
            _wait_for(device)
            looked_up = time.perf_counter()
            out.backward(torch.zeros_like(out))
            _wait_for(device)
            forward.append(looked_up - started)
            backward.append(time.perf_counter() - looked_up)
        return MS * min(forward), MS * min(backward)

    rows = (len(offsets) - 1) // sum(features for _, features, _ in tables)
    width = sum(features * columns for _, features, columns in tables)
    nothing = times(indices[:0], torch.zeros_like(offsets))
    _, together = times(indices, offsets)
    found: Times = {}
    first = 0
    for name, features, columns in tables:
        share = features * columns / width
        start, end = offsets[first * rows], offsets[(first + features) * rows]
        first += features
        forward, backward = times(indices[start:end], offsets.clamp(start, end) - start)
        found[name] = {
            "fwd_compute": max(forward - nothing[0], 0.0) + share * nothing[0],
            "bwd_compute": max(backward - nothing[1], 0.0) + share * nothing[1],
        }
    return found, together


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
