"""Embedding tables of an export: those of the run, and one row per user and item for the rest.

The sum over a user's history and the numbers that the model computes from the user's LLM vector
depend on the user alone. An export computes them once and keeps them as rows of tables; likewise
for items.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.loading.batch import ITEM
from msrec.data.loading.behaviour_history import BehaviourHistory, Side
from msrec.data.loading.managed_rows import ManagedRows
from msrec.data.schema import Schema
from msrec.launch.build_model import table_schema
from msrec.launch.serving.export_folder import ExportTable, TableDtype
from msrec.launch.trained_run import TrainedRun, unwrapped
from msrec.model.embeddings import table_configs
from msrec.model.frozen_items import item_table
from msrec.model.managed.managed_ids import ManagedIds
from msrec.model.ranker import DenseArch
from msrec.model.serving_model import knowledge_rows, knowledge_widths

CHUNK_ROWS = 1 << 16
SIDES: tuple[Side, Side] = ("user", "item")


def serving_tables(
    run: TrainedRun, dtype: TableDtype
) -> Iterator[tuple[ExportTable, Iterable[Tensor]]]:
    """Yields each table of an export with its rows: chunks of (n, dim), float32, in order.

    Args:
        run: a run on one rank.
        dtype: dtype of the trained tables and histories. LLM knowledge is float16, as the LLM's
            vectors are.
    """
    config, trained = run.config, trained_tables(run)
    dense_arch, dim = unwrapped_dense_arch(run), config.embeddings.dim
    for trained_table in table_configs(table_schema(config, run.schema), dim):
        name, features = trained_table.name, trained_table.feature_names
        rows = trained_table.num_embeddings
        table = ExportTable(name=name, rows=rows, dim=dim, kind=dtype, features=features)
        yield table, torch.split(trained[name], CHUNK_ROWS)
    for side in config.history.of:
        table = _entity_table(run.schema, side, f"{side}_history", dim, dtype)
        assert run.knowledge.history is not None
        yield table, _history_chunks(run.knowledge.history, side, trained[table.name], table.rows)
    for side in knowledge_sides(dense_arch):
        width = knowledge_widths(dense_arch, side).total
        table = _entity_table(run.schema, side, f"{side}_known", width, "float16")
        knowledge = run.knowledge.user if side == "user" else run.knowledge.item
        assert knowledge is not None
        yield table, _knowledge_chunks(dense_arch, side, knowledge, table.rows)


def item_tables(
    run: TrainedRun, dtype: TableDtype
) -> Iterator[tuple[ExportTable, Iterable[Tensor]]]:
    """Yields each table by item with its rows, as `serving_tables` does.

    These are the frozen vectors of each source of the interest blocks, float16 as in training, and
    the learned vectors of the sequence encoder.
    """
    for source in run.knowledge.item_sources:
        name, shape = item_table(source.name), {"rows": len(source), "dim": source.dim}
        table = ExportTable(name=name, **shape, kind="float16", features=[ITEM])
        yield table, (torch.from_numpy(vectors).float() for _, vectors in source.chunks())
    learned = unwrapped(run.model).ranker.sequence_items
    if learned is not None:
        for name, rows in _rows_of(learned.ebc).items():
            shape = {"rows": len(rows), "dim": rows.shape[1]}
            table = ExportTable(name=name, **shape, kind=dtype, features=[ITEM])
            yield table, torch.split(rows, CHUNK_ROWS)


def _entity_table(
    schema: Schema, side: Side, name: str, dim: int, dtype: TableDtype
) -> ExportTable:
    """Returns a table with a row for unknown users (items), and one per user (item)."""
    rows = schema.size_of(side) + 1
    return ExportTable(name=name, rows=rows, dim=dim, kind=dtype, features=[name])


def unwrapped_dense_arch(run: TrainedRun) -> DenseArch:
    """Returns the dense part of a run's model, without distributed wrappers."""
    module = unwrapped(run.model).ranker.over
    while not isinstance(module, DenseArch):
        module = module.module
    return module


def knowledge_sides(dense_arch: DenseArch) -> list[Side]:
    """Returns the sides whose LLM vectors a model reads."""
    return [side for side in SIDES if knowledge_widths(dense_arch, side).total]


def trained_tables(run: TrainedRun) -> dict[str, Tensor]:
    """Returns table -> (rows, dim), float32, of the features of a run on one rank."""
    return _rows_of(unwrapped(run.model).ranker.embeddings.ebc)


def _rows_of(collection: nn.Module) -> dict[str, Tensor]:
    tables = {}
    for name, value in collection.state_dict().items():
        shards = [value]
        if hasattr(value, "local_shards"):
            shards = [shard.tensor for shard in value.local_shards()]
        weight = torch.cat([shard.detach() for shard in shards])
        tables[name.split(".")[-2]] = weight.cpu().float()
    return tables


def managed_rows(managed: ManagedIds) -> ManagedRows:
    """Returns the maps of a model's managed features."""
    rows_of = {}
    for name, of_map in managed.by_feature.items():
        ids, rows = of_map.ids_and_rows()
        rows_of[name] = (ids.cpu().numpy(), rows.cpu().numpy())
    return ManagedRows(rows_of)


def _entity_chunks(rows: int) -> Iterator[np.ndarray]:
    """Yields the users of a table's rows. Row 0 is for unknown users, whose index is -1."""
    for start in range(0, rows, CHUNK_ROWS):
        yield np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64) - 1


def _history_chunks(
    history: BehaviourHistory, side: Side, table: Tensor, rows: int
) -> Iterator[Tensor]:
    """Yields what the model reads of each user's history for a new row: sum / sqrt(length)."""
    for entities in _entity_chunks(rows):
        ids, lengths = history.bags(side, entities)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
        bags = torch.from_numpy(ids.astype(np.int64))
        total = functional.embedding_bag(bags, table, offsets, mode="sum")
        yield total / torch.from_numpy(lengths).clamp(min=1).sqrt().unsqueeze(1)


def _knowledge_chunks(
    dense_arch: DenseArch, side: Side, knowledge: EntityKnowledge, rows: int
) -> Iterator[Tensor]:
    device = next(dense_arch.parameters()).device
    for entities in _entity_chunks(rows):
        vectors, has = knowledge.gather(torch.from_numpy(entities))
        with torch.no_grad():
            yield knowledge_rows(dense_arch, side, vectors.to(device), has.to(device)).cpu()
