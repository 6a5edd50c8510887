"""Measures each table's lookup and update on each rank, with its shards and the ids of a batch."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.io.atomic_files import write_json
from msrec.data.loading.batch import Batch
from msrec.model.embeddings import Embeddings
from msrec.model.frozen_items import FROZEN_PATH

TRACE_FILE = "table_times.json"
MS_PER_S = 1000.0


def write_table_times(model: nn.Module, batch: Batch, repeats: int, run_dir: Path) -> None:
    """Writes the times of `trace_tables` to `table_times.json`; every rank calls this."""
    ranks = trace_tables(model, batch, repeats)
    if dist.get_rank() == 0:
        times = {"device": batch.label.device.type, "batch": len(batch.label), "ranks": ranks}
        write_json(run_dir / TRACE_FILE, times)


def trace_tables(model: nn.Module, batch: Batch, repeats: int) -> list[dict[str, Any]]:
    """Measures the parts of one step on every rank; every rank calls this.

    A kernel looks up a group of tables. A table is measured alone: the kernel runs with the ids of
    that table and no others. The time that the kernel takes without any ids, to write zeros, is
    divided among its tables by the width of their output. The gradient is zero and leaves the
    values unchanged. But Adam's moments decay, so call this after the last save.

    Args:
        model: sharded; features look up one of its collections of tables, items the others.
        batch: of this rank, as large as in training.
        repeats: the fastest of these counts, since any slower one was disturbed.

    Returns:
        For each rank, in milliseconds::

            tables       table -> {fwd_compute, bwd_compute} of the rank's shards
            fwd_comms    sending the vectors of all tables
            bwd_comms    the whole backward pass except the updates
            ids          sending the ids
    """
    times: dict[str, Any] = {"tables": {}, "ids": 0.0, "fwd_comms": 0.0, "bwd_comms": 0.0}
    for path, module in model.named_modules():
        if not isinstance(module, ShardedEmbeddingBagCollection):
            continue
        sparse = batch.sequence.items
        if path.endswith("ranker.embeddings.ebc"):
            managed = cast(Embeddings, model.get_submodule(path.removesuffix(".ebc"))).managed
            sparse = batch.sparse if managed is None else managed(batch.sparse, batch.managed)
        traced = _trace(module, sparse, repeats, is_trained=FROZEN_PATH not in path)
        times = {"tables": times["tables"] | traced.pop("tables")} | {
            part: times[part] + ms for part, ms in traced.items()
        }
    of_ranks: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_ranks, times)
    return of_ranks


def _trace(
    collection: ShardedEmbeddingBagCollection,
    sparse: KeyedJaggedTensor,
    repeats: int,
    is_trained: bool,
) -> dict[str, Any]:
    """Measures one collection; one that is not trained has no backward pass."""
    device = sparse.values().device
    context = collection.create_context()
    ids = collection.input_dist(context, sparse).wait().wait()
    kernels = dict(_kernels(collection))
    with _recorded_inputs(kernels) as inputs:
        vectors = collection.compute(context, ids)

    def fastest_ms(part: Callable[..., Any], prepare: Callable[[], Any] = tuple) -> float:
        """All ranks start `part` together, when `prepare` has made its arguments."""
        seconds = []
        for _ in range(repeats):
            arguments = prepare()
            dist.barrier()
            started = _now(device)
            part(*arguments)
            seconds.append(_now(device) - started)
        return MS_PER_S * min(seconds)

    def send_ids() -> None:
        collection.input_dist(collection.create_context(), sparse).wait().wait()

    def look_up() -> tuple[torch.Tensor]:
        return (collection.output_dist(context, collection.compute(context, ids)).wait().values(),)

    times: dict[str, Any] = {"tables": {}, "ids": fastest_ms(send_ids)}
    times["fwd_comms"] = fastest_ms(lambda: collection.output_dist(context, vectors).wait())
    backward_ms = 0.0
    if is_trained:
        backward_ms = fastest_ms(lambda out: out.backward(torch.zeros_like(out)), look_up)
    for kernel, tables in kernels.items():
        of_tables, update_ms = _kernel_times(kernel, tables, *inputs[kernel], repeats, is_trained)
        times["tables"] |= of_tables
        backward_ms -= update_ms
    times["bwd_comms"] = max(backward_ms, 0.0)
    return times


def _kernels(
    collection: ShardedEmbeddingBagCollection,
) -> Iterator[tuple[nn.Module, list[tuple[str, int, int]]]]:
    """Yields each kernel and its tables as (name, features, columns), in the order of its ids."""
    for lookup in collection._lookups:
        for group in getattr(lookup, "module", lookup)._emb_modules:
            tables = group._config.embedding_tables
            yield group.emb_module, [(t.name, len(t.feature_names), t.local_cols) for t in tables]


@contextmanager
def _recorded_inputs(
    kernels: Iterable[nn.Module],
) -> Iterator[dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]]:
    """Fills the dict with the ids and offsets, int64, with which each kernel is called inside."""
    inputs: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(kernel: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("indices", "offsets"), args, strict=False)) | kwargs
        inputs[kernel] = (named["indices"].long(), named["offsets"].long())

    hooks = [kernel.register_forward_pre_hook(record, with_kwargs=True) for kernel in kernels]
    yield inputs
    for hook in hooks:
        hook.remove()


def _kernel_times(
    kernel: nn.Module,
    tables: list[tuple[str, int, int]],
    ids: torch.Tensor,
    offsets: torch.Tensor,
    repeats: int,
    is_trained: bool,
) -> tuple[dict[str, dict[str, float]], float]:
    """Returns the times of each table, and the time of the update of all tables together."""

    def times_ms(ids: torch.Tensor, offsets: torch.Tensor) -> tuple[float, float]:
        forward, backward = [], []
        for _ in range(repeats):
            started = _now(ids.device)
            out = kernel(indices=ids, offsets=offsets)
            looked_up = _now(ids.device)
            if is_trained:
                out.backward(torch.zeros_like(out))
            backward.append(_now(ids.device) - looked_up)
            forward.append(looked_up - started)
        return MS_PER_S * min(forward), MS_PER_S * min(backward)

    rows = (len(offsets) - 1) // sum(features for _, features, _ in tables)
    width = sum(features * columns for _, features, columns in tables)
    idle_forward, idle_backward = times_ms(ids[:0], torch.zeros_like(offsets))
    _, update_ms = times_ms(ids, offsets)
    times = {}
    first = 0
    for name, features, columns in tables:
        # Offsets are in the order of the features, `rows` of each: a table's ids are one range.
        start, end = offsets[first * rows], offsets[(first + features) * rows]
        first += features
        forward, backward = times_ms(ids[start:end], offsets.clamp(start, end) - start)
        share = features * columns / width
        times[name] = {
            "fwd_compute": max(forward - idle_forward, 0.0) + share * idle_forward,
            "bwd_compute": max(backward - idle_backward, 0.0) + share * idle_backward,
        }
    return times, update_ms


def _now(device: torch.device) -> float:
    """Returns the time in seconds when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
