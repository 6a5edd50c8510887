"""Embedding tables of a run, with the lookups of a step that are measured on its dataset."""

from typing import NamedTuple, cast

from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.data.loading.batch import ITEM, Batch
from msrec.data.loading.loader import Loader
from msrec.launch.config.model_sections import EmbeddingsConfig
from msrec.launch.config.run_config import RunConfig
from msrec.model.distributed.table_options import TORCHREC_NAMES
from msrec.model.distributed.tables import frozen_tables
from msrec.model.ranker import RankerTrain
from msrec.tools.planner.tables import Sharding, TableLoad, shard_columns


class ItemLookups(NamedTuple):
    """Lookups of a step on one rank in each table of item vectors; 0 without such tables.

    Attributes:
        rows: rows of the step.
        items: distinct items of its candidates and histories.
        bags: bags of ids, one for each of these items, and empty ones.
    """

    rows: int
    items: int = 0
    bags: int = 0


def item_lookups(config: RunConfig, loader: Loader, rows: int) -> ItemLookups:
    """Returns the lookups of the first training batch of `rows`.

    The number of distinct items does not grow in proportion to the rows, so that it is counted for
    all rows of a step.
    """
    encoder = config.sequence.encoder
    if not config.interest.enabled and encoder == "none":
        return ItemLookups(rows)
    first = loader.order.rows(0, 0).reshape(-1)
    first = first[first >= 0][:rows]
    items = len(loader.batch_of(first).sequence.items.values())
    return ItemLookups(rows, items, items + 1 if encoder == "none" else _equal_bags(config, rows))


def num_bags(config: RunConfig, probe: Batch, step: ItemLookups) -> int:
    """Returns the number of item vectors with which the dense part is measured.

    It is that of the whole step, unless it grows in proportion to the rows.
    """
    if config.sequence.encoder != "none":
        return _equal_bags(config, len(probe.label))
    return max(step.bags, len(probe.sequence.items.values()) + 1)


def _equal_bags(config: RunConfig, rows: int) -> int:
    """Returns the bags of a run with a sequence encoder and a plan, see `HistoryReader`."""
    return rows * (1 + config.sequence.max_len) + 1


def run_tables(
    model: RankerTrain, probe: Batch, items: ItemLookups, options: EmbeddingsConfig
) -> list[TableLoad]:
    """Returns the tables of all collections of a model.

    Args:
        model: before sharding.
        probe: rows with which ids of features are counted.
        items: lookups of a step in tables of item vectors.
        options: of the config; a table that `sharding` names has no other sharding.
    """
    ways = {table: TORCHREC_NAMES[way] for table, way in options.sharding.items()}
    frozen = frozen_tables(model)
    loads = []
    for path, collection in model.named_modules():
        if not isinstance(collection, EmbeddingBagCollection):
            continue
        for table in collection.embedding_bag_configs():
            pooling, bags = _lookups(table, probe, items)
            loads.append(
                TableLoad(
                    name=table.name,
                    rows=table.num_embeddings,
                    dim=table.embedding_dim,
                    features=len(table.feature_names),
                    pooling=pooling,
                    bags=bags,
                    precision="fp16" if table.data_type == DataType.FP16 else "fp32",
                    frozen=table.name in frozen,
                    module=path,
                    sharding=cast("Sharding | None", ways.get(table.name)),
                    min_partition=shard_columns(table.embedding_dim, options.min_columns),
                )
            )
    return loads


def _lookups(table: EmbeddingBagConfig, probe: Batch, items: ItemLookups) -> tuple[float, float]:
    """Returns ids and bags per row and feature of a table."""
    names = table.feature_names
    if names == [ITEM]:
        return items.items / items.rows, items.bags / items.rows
    if not set(names) <= set(probe.sparse.keys()):  # managed: one id in each row
        return 1.0, 1.0
    ids = sum(float(probe.sparse[name].lengths().sum()) for name in names)
    return max(ids / len(probe.label) / len(names), 1.0), 1.0
