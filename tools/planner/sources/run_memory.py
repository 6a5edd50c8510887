"""Tables of a run's config, and the memory that its dense part takes on every rank."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.data.loading.batch import Batch
from msrec.data.loading.loader import Loader
from msrec.data.schema import load_schema
from msrec.launch.build_model import build_model
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.launch.reporting.plan_table import dense_parameters
from msrec.model.interest.histories import Histories
from msrec.model.layers.generated_linear import GeneratedLinear
from msrec.model.layers.precision import product_dtype
from msrec.model.managed.managed_ids import map_bytes
from msrec.model.ranker import ItemInputs, RankerTrain
from msrec.tools.planner.request import DenseMemory, LinearBytes, adam_memory
from msrec.tools.planner.sources.peak_memory import TensorMemoryCounter
from msrec.tools.planner.sources.run_tables import item_lookups, num_bags, run_tables
from msrec.tools.planner.tables import TableLoad

PROBE_ROWS = 1024
"""Most rows of the larger of the two batches that are measured."""
BATCHES_IN_FLIGHT = 3
"""TorchRec's pipeline computes one batch, distributes the next, and copies a third."""
KNOWLEDGE = (
    *("user_meta", "item_meta", "scenario_meta", "user_feature", "item_feature", "match"),
    "interest",
)
"""Modules of the dense part that read vectors of the LLM."""


def tables_and_dense(config: RunConfig, batch: int) -> tuple[list[TableLoad], DenseMemory]:
    """Returns the tables with their ids per row, and the memory besides the tables.

    Two batches of the dataset, one twice as large as the other, go forward and backward through the
    dense part on CPU. Memory that grows with the batch is the line through the two measurements.

    Args:
        config: of the run; its dataset and knowledge stores must exist.
        batch: rows of a step on one rank.

    Raises:
        FileNotFoundError, ValueError: from the dataset, the store or the model.
    """
    schema = load_schema(config.dataset)
    knowledge = KnowledgeInputs(config, schema)
    model = build_model(config, schema, knowledge)
    rank, trainer = Process(0, 1, 1, torch.device("cpu")), config.trainer
    loader = build_loader(config, "train", rank, knowledge, trainer.global_batch, shuffle=True)
    rows = min(loader.reader.num_rows, batch, PROBE_ROWS)
    sizes = (max(rows // 2, 1), rows)
    probes = [loader.batch_of(np.arange(size)) for size in sizes]
    items = item_lookups(config, loader, batch)
    peaks = [_peak_bytes(model, probe, num_bags(config, probe, items)) for probe in probes]
    by_rows = {use: _line(sizes, [peak[use] for peak in peaks]) for use in peaks[0]}
    one_batch = _line(sizes, [sum(map(_nbytes, _tensors(probe))) for probe in probes])
    by_rows["batches in flight"] = LinearBytes(*(BATCHES_IN_FLIGHT * x for x in one_batch))
    reading = _reading_bytes(loader, rows, batch)
    prefetched = one_batch.per_row * trainer.prefetch
    positions = sum(each.store_rows.nbytes for each in knowledge.item_sources)
    reading = LinearBytes(reading.at_zero + positions, reading.per_row + prefetched)
    tables = run_tables(model, probes[-1], items, config.embeddings)
    return tables, DenseMemory(_parameter_bytes(model), by_rows, reading)


def _parameter_bytes(model: RankerTrain) -> dict[str, int]:
    """Returns the bytes of dense parameters, their gradients and optimizer state, by use.

    Maps of managed features and vectors of `llm.vectors_on=device` count too.
    """
    total = dense_parameters(model)
    modules = [getattr(model.ranker.over, name) for name in KNOWLEDGE]
    knowledge = sum(dense_parameters(module) for module in modules if module is not None)
    managed = model.ranker.embeddings.managed
    maps = {} if managed is None else {"maps of managed features": map_bytes(managed)}
    vectors = sum(each.nbytes for each in model.ranker.over.knowledge.values())
    vectors_of_llm = {"vectors of the LLM": vectors} if vectors else {}
    return {
        "dense parameters": (total - knowledge) * FLOAT_BYTES,
        "networks that read the LLM": knowledge * FLOAT_BYTES,
        **adam_memory(total),
        **maps,
        **vectors_of_llm,
    }


def _reading_bytes(loader: Loader, rows: int, batch: int) -> LinearBytes:
    """Returns the bytes of the rows that a rank reads and shuffles, measured on the first `rows`.

    These are decoded row groups, and a window of batches: once as read, once in shuffled order.
    """
    reader, order = loader.reader, loader.order
    row_bytes = sum(column.nbytes for column in reader.take(np.arange(rows)).values()) / rows
    lanes = -(-order.num_lanes * batch // order.global_batch)
    decoded = min(max(reader.group_rows) * lanes, reader.num_rows)
    window = 2 * min(order.window_batches, len(loader))
    return LinearBytes(row_bytes * decoded, row_bytes * window)


def _peak_bytes(model: RankerTrain, batch: Batch, bags: int) -> dict[str, int]:
    """Returns the peak memory of a step of the dense part, without parameters and gradients.

    All vectors are zeros; `bags` of them are those of items.


    Generated weights are recognised by their size, among the tensors that autograd saves while a
    `GeneratedLinear` runs. All other memory counts as activations.
    """
    over, embeddings = model.ranker.over, model.ranker.embeddings
    for parameter in over.parameters():
        parameter.grad = torch.zeros_like(parameter)  # DDP's buckets hold gradients all the time
    generated: dict[int, int] = {}
    generated_sizes: set[int] = set()

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() in generated_sizes:
            generated[storage.data_ptr()] = storage.nbytes()
        return tensor

    known = [*over.parameters(), *over.buffers(), *_tensors(batch)]
    known += [parameter.grad for parameter in over.parameters() if parameter.grad is not None]
    inputs = (batch.dense, batch.scenario, batch.weight, batch.user_vectors, batch.item_vectors)
    with (
        TensorMemoryCounter(known) as memory,
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        _generated_sizes(model, generated_sizes),
    ):
        shape = (len(batch.label), len(embeddings.names), embeddings.dim)
        vectors = torch.zeros(shape, requires_grad=True)
        logits = over(vectors, *inputs, _item_inputs(model, batch, bags))
        loss, _ = model.loss(logits, batch.label, batch.weight, batch.label_weight, vectors)
        loss.backward()
    weights = sum(generated.values())
    return {"activations": memory.peak - weights, "generated meta weights": weights}


def _item_inputs(model: RankerTrain, batch: Batch, bags: int) -> ItemInputs:
    """Returns the item vectors that the dense part reads: frozen ones, and learned ones."""
    frozen, learned = model.ranker.items, None
    if model.ranker.sequence_items is not None:
        (table,) = model.ranker.sequence_items.ebc.embedding_bag_configs()
        learned = torch.zeros(bags, table.embedding_dim, requires_grad=True)
    dims = () if frozen is None else frozen.dims.values()
    histories = Histories.of_batch(batch.sequence)
    return ItemInputs(histories, [torch.zeros(bags, dim) for dim in dims], learned)


def _generated_sizes(model: RankerTrain, sizes: set[int]) -> ExitStack:
    """Returns a context in which `sizes` has the bytes of the weights of the layer that runs."""

    def enter(layer: GeneratedLinear, args: tuple[Any, ...]) -> None:
        x, codes = args
        if codes.groups is not None:  # otherwise the weights are never made
            sizes.add(len(codes.z) * layer.in_dim * layer.out_dim * product_dtype(x).itemsize)

    hooks = ExitStack()
    for layer in model.modules():
        if isinstance(layer, GeneratedLinear):
            hooks.enter_context(layer.register_forward_pre_hook(enter))
            hooks.enter_context(layer.register_forward_hook(lambda *_: sizes.clear()))
    return hooks


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _tensors(part: Any) -> Iterator[torch.Tensor]:
    """Yields all tensors of a batch or of a part of it."""
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, KeyedJaggedTensor):
        yield from (part.values(), part.lengths(), part.offsets())
    elif part is not None and not isinstance(part, np.ndarray):  # counts on the host are small
        parts = part if isinstance(part, tuple) else [getattr(part, f.name) for f in fields(part)]
        for each in parts:
            yield from _tensors(each)


def _line(sizes: tuple[int, int], measured: list[int]) -> LinearBytes:
    """Returns the line through the bytes measured for two numbers of rows."""
    slope = (measured[1] - measured[0]) / max(sizes[1] - sizes[0], 1)
    return LinearBytes(measured[1] - slope * sizes[1], slope)
