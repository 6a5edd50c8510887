"""What a run's config asks of memory: its tables, and on every rank its dense part."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import Batch
from msrec.data.schema import load_schema
from msrec.launch.build_model import build_model
from msrec.launch.config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.reporting.plan_table import FLOAT_BYTES, dense_parameters
from msrec.model.layers.generated_linear import GeneratedLinear
from msrec.model.ranker import RankerTrain
from msrec.tools.planner.dense_memory import DenseLoad, learned_lines
from msrec.tools.planner.peak_memory import LiveBytes
from msrec.tools.planner.tables import Sharding, TableLoad

PROBE_ROWS = 1024
"""Of the larger of two batches at most, from which bytes a row are taken."""
BATCHES_IN_FLIGHT = 3
"""TorchRec's pipeline computes one batch, distributes the next, and copies a third."""
KNOWLEDGE = ("user_meta", "item_meta", "scenario_meta", "user_feature", "item_feature", "match")


def tables_and_dense(config: RunConfig, batch: int) -> tuple[list[TableLoad], DenseLoad]:
    """The tables with the ids a row has in them, and bytes on every rank, line by line.

    Two batches of the data set pass through the dense part, forward and back; what that takes, and
    what they take themselves, grows with their rows.

    Args:
        config: of the run; its data set and stores are there.
        batch: rows of a step on one rank.

    Raises:
        FileNotFoundError, ValueError: of the data set, the store or the model.
    """
    schema = load_schema(config.dataset)
    knowledge = KnowledgeInputs(config, schema)
    model = build_model(config, schema, knowledge)
    here = Process(0, 1, 1, torch.device("cpu"))
    loader = build_loader(
        config, "train", here, knowledge, config.trainer.global_batch, shuffle=True
    )
    rows = min(loader.reader.num_rows, batch, PROBE_ROWS)
    sizes = (max(rows // 2, 1), rows)
    probes = [loader.batch_of(np.arange(size)) for size in sizes]
    tables = _tables(model, probes[-1], config.embeddings.sharding)
    found = [_peak(model, probe) for probe in probes]
    by_rows = {name: _line(sizes, [each[name] for each in found]) for name in found[0]}
    empty, a_row = _line(sizes, [_bytes(probe) for probe in probes])
    knows = sum(
        dense_parameters(part)
        for name in KNOWLEDGE
        if (part := getattr(model.ranker.over, name)) is not None
    )
    whole = dense_parameters(model)
    read_row = sum(column.nbytes for column in loader.reader.take(np.arange(rows)).values()) / rows
    held = max(loader.reader.group_rows) * -(
        -loader.order.num_lanes * batch // loader.order.global_batch
    )
    trainer = config.trainer
    by_rows["batches in flight"] = (BATCHES_IN_FLIGHT * empty, BATCHES_IN_FLIGHT * a_row)
    fixed = {
        "dense parameters": (whole - knows) * FLOAT_BYTES,
        "networks that read the LLM": knows * FLOAT_BYTES,
        **learned_lines(whole),
    }
    # Decoded row groups; a window of batches taken from them and laid out anew; batches made ahead.
    windows = 2 * min(loader.order.window_batches, len(loader))
    reading = (
        read_row * min(held, loader.reader.num_rows),
        read_row * windows + a_row * trainer.prefetch,
    )
    return tables, DenseLoad(fixed, by_rows, reading)


def _tables(model: RankerTrain, probe: Batch, sharding: Mapping[str, Sharding]) -> list[TableLoad]:
    rows = len(probe.label)
    lengths = {key: float(probe.sparse[key].lengths().sum()) / rows for key in probe.sparse.keys()}
    return [
        TableLoad(
            name=table.name,
            rows=table.num_embeddings,
            dim=table.embedding_dim,
            features=len(table.feature_names),
            pooling=max(sum(lengths[f] for f in table.feature_names) / len(table.feature_names), 1),
            sharding=sharding.get(table.name),
        )
        for table in model.ranker.embeddings.ebc.embedding_bag_configs()
    ]


def _peak(model: RankerTrain, batch: Batch) -> dict[str, int]:
    """The most bytes of a step of the dense part at one time, but for parameters and gradients."""
    over, embeddings = model.ranker.over, model.ranker.embeddings
    for parameter in over.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as in a bucket, into which it is summed
    kept: dict[int, int] = {}
    sizes: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() in sizes:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = (len(batch.label), len(embeddings.names), embeddings.dim)
    known = [*over.parameters(), *over.buffers(), *_tensors(batch)]
    known += [parameter.grad for parameter in over.parameters() if parameter.grad is not None]
    with (
        LiveBytes(known) as memory,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        _sizes_of_generated(model, sizes),
    ):
        vectors = torch.zeros(shape, requires_grad=True)
        logits = over(
            vectors,
            batch.dense,
            batch.scenario,
            batch.weight,
            batch.user_vectors,
            batch.item_vectors,
        )
        loss, _ = model.loss(logits, batch.label, batch.weight, vectors)
        loss.backward()
    generated = sum(kept.values())
    return {"activations": memory.peak - generated, "generated meta weights": generated}


@contextmanager
def _sizes_of_generated(model: RankerTrain, sizes: set[int]) -> Iterator[None]:
    """While a layer that generates its weights runs, `sizes` has the bytes that these take."""

    def enter(layer: GeneratedLinear, args: tuple[Any, ...]) -> None:
        codes = args[1]
        if codes.groups is not None:  # else they are never made
            sizes.add(len(codes.z) * layer.in_dim * layer.out_dim * FLOAT_BYTES)

    def leave(*_: Any) -> None:
        sizes.clear()

    layers = [module for module in model.modules() if isinstance(module, GeneratedLinear)]
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _bytes(batch: Batch) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(batch))


def _tensors(part: Any) -> Iterator[torch.Tensor]:
    """All that a batch holds."""
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, KeyedJaggedTensor):
        yield from (part.values(), part.lengths(), part.offsets())
    else:
        parts = part if isinstance(part, tuple) else [getattr(part, f.name) for f in fields(part)]
        for each in parts:
            yield from _tensors(each)


def _line(sizes: tuple[int, int], found: list[int]) -> tuple[float, float]:
    """The line through two sizes: its value at 0 and its slope."""
    slope = (found[1] - found[0]) / max(sizes[1] - sizes[0], 1)
    return found[1] - slope * sizes[1], slope
