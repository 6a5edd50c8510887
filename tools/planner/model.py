"""What a run's config asks of memory: its tables, and on every rank its dense part."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from msrec.data.batch import Batch
from msrec.data.schema import load_schema
from msrec.launch.build import Knowledge, build_loader, build_model
from msrec.launch.config import RunConfig
from msrec.launch.plan_table import FLOAT_BYTES, dense_parameters
from msrec.launch.process import Process
from msrec.model.generated import GeneratedLinear
from msrec.model.ranker import RankerTrain
from msrec.tools.planner.dense import DenseLoad, learned_lines
from msrec.tools.planner.tables import Sharding, TableLoad

PROBE_ROWS = 1024
"""Of the larger of two batches at most, from which bytes a row are taken."""
BATCHES_IN_FLIGHT = 3
"""TorchRec's pipeline computes one batch, distributes the next, and copies a third."""
KNOWLEDGE = ("user_meta", "item_meta", "scenario_meta", "user_feature", "item_feature", "match")


def tables_and_dense(config: RunConfig, batch: int) -> tuple[list[TableLoad], DenseLoad]:
    """The tables with the ids a row has in them, and bytes on every rank, line by line.

    Two batches of the data set pass through the dense part; what autograd keeps of them, and what
    they take themselves, grows with their rows.

    Args:
        config: of the run; its data set and stores are there.
        batch: rows of a step on one rank.

    Raises:
        FileNotFoundError, ValueError: of the data set, the store or the model.
    """
    schema = load_schema(config.dataset)
    knowledge = Knowledge(config, schema)
    model = build_model(config, schema, knowledge)
    here = Process(0, 1, 1, torch.device("cpu"))
    loader = build_loader(config, "train", here, knowledge, PROBE_ROWS, shuffle=False)
    rows = min(loader.files.num_rows, batch, PROBE_ROWS)
    sizes = (max(rows // 2, 1), rows)
    probes = [loader.batch_of(np.arange(size)) for size in sizes]
    tables = _tables(model, probes[-1], config.embeddings.sharding)
    kept = [_kept(model, probe) for probe in probes]
    by_rows = {name: _line(sizes, [found[name] for found in kept]) for name in kept[0]}
    empty, a_row = _line(sizes, [_bytes(probe) for probe in probes])
    knows = sum(
        dense_parameters(part)
        for name in KNOWLEDGE
        if (part := getattr(model.ranker.over, name)) is not None
    )
    whole = dense_parameters(model)
    by_rows["batches in flight"] = (BATCHES_IN_FLIGHT * empty, BATCHES_IN_FLIGHT * a_row)
    fixed = {
        "dense parameters": (whole - knows) * FLOAT_BYTES,
        "networks that read the LLM": knows * FLOAT_BYTES,
        **learned_lines(whole),
    }
    return tables, DenseLoad(fixed, by_rows)


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


def _kept(model: RankerTrain, batch: Batch) -> dict[str, int]:
    """Bytes that autograd keeps of a forward pass of the dense part, parameters not counted."""
    kept: dict[str, dict[int, int]] = {"activations": {}, "generated weights": {}}
    generated: set[int] = set()
    own = {p.untyped_storage().data_ptr() for p in model.ranker.over.parameters()}
    own |= {b.untyped_storage().data_ptr() for b in model.ranker.over.buffers()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            line = "generated weights" if storage.nbytes() in generated else "activations"
            kept[line][storage.data_ptr()] = storage.nbytes()
        return tensor

    embeddings = model.ranker.embeddings
    shape = (len(batch.label), len(embeddings.names), embeddings.dim)
    vectors = torch.zeros(shape, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        _sizes_of_generated(model, generated),
    ):
        logits = model.ranker.over(
            vectors, batch.dense, batch.scenario, batch.weight, batch.of_user, batch.of_item
        )
        loss = model.loss(logits, batch.label, batch.weight, vectors)
    del loss  # alive until here: a storage that is freed may give its address to another
    return {line: sum(found.values()) for line, found in kept.items()}


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
    return sum(_size(getattr(batch, field.name)) for field in fields(batch))


def _size(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.untyped_storage().nbytes()
    if isinstance(part, tuple):
        return sum(_size(each) for each in part)
    return _size(part.values()) + _size(part.lengths()) + _size(part.offsets())


def _line(sizes: tuple[int, int], found: list[int]) -> tuple[float, float]:
    """The line through two sizes: its value at 0 and its slope."""
    slope = (found[1] - found[0]) / max(sizes[1] - sizes[0], 1)
    return found[1] - slope * sizes[1], slope
