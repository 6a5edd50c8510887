"""A trained run as it is served: its tables, one row a user for what is known of users, the rest.

Nothing that depends on a user alone is computed per request: the sum of a user's history and what a
model reads of the user's LLM vector are rows of tables, as are those of items.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.loading.behaviour_history import BehaviourHistory, Side
from msrec.launch.serving.quantized_tables import Kind, TableSpec
from msrec.launch.serving.request_rows import SIDES, entity_features
from msrec.launch.trained_run import TrainedRun, unwrapped
from msrec.model.embeddings import table_configs
from msrec.model.ranker import DenseArch
from msrec.model.serving_model import ServingModel, knowledge_rows, knowledge_widths

CHUNK_ROWS = 1 << 16


class FoldedRun(NamedTuple):
    """Tables of a run and the part over them; `known` are the sides whose vectors the model reads.

    `features` says in which order the tables are looked up.
    """

    specs: list[TableSpec]
    features: list[str]
    histories: list[Side]
    known: list[Side]
    num_dense: int
    served: ServingModel


def fold(run: TrainedRun, kind: Kind) -> FoldedRun:
    """Plan the tables of an export, and make the part over them.

    Args:
        run: on one rank.
        kind: of the trained tables; what is read of LLM vectors is float16, as the vectors are.

    Raises:
        ValueError: the run has learned vectors in place of the LLM's.
    """
    config, schema = run.config, run.schema
    over = copy.deepcopy(unwrapped_over(run)).cpu().eval()
    histories: list[Side] = list(config.history.of)
    known = [side for side in SIDES if knowledge_widths(over, side).total]
    dim = config.embeddings.dim
    specs = []
    tables = schema.scaled(config.scale)
    tables = tables.per_scenario() if config.embeddings.per_scenario else tables
    for of in table_configs(tables, dim):
        spec = TableSpec(
            name=of.name, rows=of.num_embeddings, dim=dim, kind=kind, features=of.feature_names
        )
        specs.append(spec)
    for name, side in entity_features(histories, known).items():
        is_known = name == f"{side}_known"
        spec = TableSpec(
            name=name,
            rows=schema.size_of(side) + 1,
            dim=knowledge_widths(over, side).total if is_known else dim,
            kind="float16" if is_known else kind,
            features=[name],
        )
        specs.append(spec)
    sparse = [feature.name for feature in schema.sparse]
    served = ServingModel(over, len(sparse), len(histories), dim).eval()
    features = [*sparse, *entity_features(histories, known)]
    return FoldedRun(specs, features, histories, known, len(schema.dense), served)


def unwrapped_over(run: TrainedRun) -> DenseArch:
    """The part over the tables."""
    over = unwrapped(run.model).ranker.over
    while not isinstance(over, DenseArch):
        over = over.module
    return over


def weights(run: TrainedRun, folded: FoldedRun) -> Iterator[tuple[TableSpec, Iterator[Tensor]]]:
    """Each table's rows, some at a time, (n, dim), float32, in order."""
    trained = trained_tables(run)
    for spec in folded.specs:
        side = entity_features(folded.histories, folded.known).get(spec.name)
        if side is None:
            yield spec, iter(torch.split(trained[spec.name], CHUNK_ROWS))
        elif spec.name == f"{side}_known":
            entity = run.knowledge.user if side == "user" else run.knowledge.item
            assert entity is not None
            yield spec, _known_rows(unwrapped_over(run), side, entity, spec.rows)
        else:
            assert run.knowledge.history is not None
            yield spec, _history_rows(run.knowledge.history, side, trained[spec.name], spec.rows)


def trained_tables(run: TrainedRun) -> dict[str, Tensor]:
    """Table -> (rows, dim), float32, on one rank."""
    found = {}
    for name, value in unwrapped(run.model).ranker.embeddings.state_dict().items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        parts = [value] if shards is None else [shard.tensor for shard in shards]
        found[name.split(".")[-2]] = torch.cat([part.detach() for part in parts]).cpu().float()
    return found


def _chunks(rows: int) -> Iterator[np.ndarray]:
    """Indices of users for the rows of their table; -1, which is nobody, has row 0."""
    for start in range(0, rows, CHUNK_ROWS):
        yield np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64) - 1


def _known_rows(
    over: DenseArch, side: Side, entity: EntityKnowledge, rows: int
) -> Iterator[Tensor]:
    device = next(over.parameters()).device
    for ids in _chunks(rows):
        vectors, has = entity.gather(ids)
        with torch.no_grad():
            yield knowledge_rows(over, side, vectors.to(device), has.to(device)).cpu()


def _history_rows(
    history: BehaviourHistory, side: Side, table: Tensor, rows: int
) -> Iterator[Tensor]:
    """Of each user what the model reads of the history of a new row: sum / sqrt(length)."""
    for entities in _chunks(rows):
        ids, lengths = history.bags(side, entities)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
        bags = torch.from_numpy(ids.astype(np.int64))
        total = functional.embedding_bag(bags, table, offsets, mode="sum")
        yield total / torch.from_numpy(lengths).clamp(min=1).sqrt().unsqueeze(1)
