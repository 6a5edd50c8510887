"""Loaders of a run's dataset, of another dataset to score, and of plain Parquet files."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.histories.reader import HistoryReader
from msrec.data.io.parquet_files import parquet_names
from msrec.data.io.paths import AnyPath
from msrec.data.loading.behaviour_history import binary_labels
from msrec.data.loading.collator import Collator, IdsOnly, VectorSource
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.id_transforms import IdDropout, IdTransform, RareIds, table_transforms
from msrec.data.loading.loader import Loader, RankShare
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema, Split, load_schema
from msrec.launch.build_model import model_schema, table_spec
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.run_tasks import run_labels
from msrec.model.distributed.table_options import ROW_SHARDINGS
from msrec.model.sequence_items import SEQUENCE_TABLE


class ScoredDataset(NamedTuple):
    """A dataset folder to score, with the alignment of its ids if it is not the run's own."""

    dataset: AnyPath
    alignment: VocabularyAlignment | None


def build_loader(
    config: RunConfig,
    split: Split,
    process: Process,
    knowledge: KnowledgeInputs,
    global_batch: int,
    *,
    shuffle: bool,
    extra: Sequence[str] = (),
    scored: ScoredDataset | None = None,
    first: Sequence[IdTransform] = (),
) -> Loader:
    """Builds this rank's loader of a split of the run's dataset, or of another one.

    Args:
        config: of the run.
        split: "train", "valid" or "test".
        process: this rank.
        knowledge: vectors, histories and rare ids of the run. With `scored`, its ordered histories
            are those of that dataset.
        global_batch: rows of a step over all ranks.
        shuffle: whether rows are mixed.
        extra: float32 columns that `loader.reader` must be able to read, such as `p_click`.
        scored: another dataset to read.
        first: changes of the ids of the files, before those of the run.
    """
    schema, files = _schemas(config, scored)
    labels = run_labels(config, schema)
    # Histories count the binary labels of a row, whether the run learns them or not.
    read = [*labels, *(binary_labels(schema) if config.history.of else [])]
    some_labels = {"labels": list(dict.fromkeys(read))}
    schema, files = schema.model_copy(update=some_labels), files.model_copy(update=some_labels)
    dataset = config.dataset if scored is None else scored.dataset
    reader = SplitReader(dataset, files, split, [*files.columns, *extra], config.faults)
    order = _order(config, reader, global_batch, shuffle)
    is_train = split == "train" and (scored is None or scored.alignment is None)
    equal_bags = is_train and _needs_equal_bags(config, schema, process.world_size)
    collator = _collator(config, knowledge, schema, scored, split, is_train, equal_bags)
    collator = replace(collator, labels=labels)
    return _loader(config, process, knowledge, reader, order, collator, scored, first)


def build_file_loader(
    config: RunConfig,
    process: Process,
    knowledge: KnowledgeInputs,
    global_batch: int,
    paths: Sequence[AnyPath],
    *,
    raw: bool,
    scored: ScoredDataset,
) -> Loader:
    """Builds this rank's loader of Parquet files to score. No label is read.

    The files hold ids of the dataset `scored` or, with `raw`, raw values for its vocabularies, see
    `RowEncoder`. The other arguments are those of `build_loader`.

    With `sequence.protocol`, a row has the history of its user in the index of the dataset
    `scored`: the events of all splits (`stream`) or of the training split (`frozen`). Timestamps
    are read if the first file has the dataset's column of timestamps and the index is ordered by
    them; a row then sees strictly earlier events only. A user that the dataset does not know has no
    history.
    """
    schema, files = _schemas(config, scored)
    index, timestamp = knowledge.sequences, files.timestamp
    if index is None or index.manifest.order != "timestamp":
        timestamp = None
    elif timestamp not in parquet_names(paths[0]):
        timestamp = None
    unlabelled: dict[str, Any] = {"labels": [], "timestamp": timestamp}
    unlabelled |= {"weight": None, "impression": None}
    schema, files = (each.model_copy(update=unlabelled) for each in (schema, files))
    reader = SplitReader(
        scored.dataset,
        files,
        "test",
        faults="fail" if raw else config.faults,
        paths=paths,
        encoder=RowEncoder(scored.dataset, timestamp) if raw else None,
    )
    order = _order(config, reader, global_batch, shuffle=False)
    collator = _collator(config, knowledge, schema, scored, split=None, is_train=False)
    return _loader(config, process, knowledge, reader, order, collator, scored)


def eval_batch(config: RunConfig, world_size: int) -> int:
    """Returns `trainer.eval_batch`, rounded up to a multiple of the number of ranks."""
    return -(-config.trainer.eval_batch // world_size) * world_size


def _schemas(config: RunConfig, scored: ScoredDataset | None) -> tuple[Schema, Schema]:
    """Returns the schema that the model knows and the schema of the files."""
    if scored is not None and scored.alignment is not None:
        return scored.alignment.schema, scored.alignment.files
    schema = load_schema(config.dataset if scored is None else scored.dataset)
    return schema, schema


def _order(config: RunConfig, reader: SplitReader, global_batch: int, shuffle: bool) -> GlobalOrder:
    window_rows = config.trainer.window_rows
    return GlobalOrder(reader.group_rows, global_batch, config.seed, shuffle, window_rows)


def _collator(
    config: RunConfig,
    knowledge: KnowledgeInputs,
    schema: Schema,
    scored: ScoredDataset | None,
    split: Split | None,
    is_train: bool,
    equal_bags: bool = False,
) -> Collator:
    """Returns the sources of a batch; `split` is None for rows of plain files."""
    alignment = None if scored is None else scored.alignment
    history = knowledge.history
    if history is not None and alignment is not None:
        history = history.for_entities({side: alignment.entities(side) for side in history.of})
    sequences = None
    if knowledge.sequences is not None:
        scenarios = None if alignment is None else alignment.scenarios
        max_len = config.sequence.max_len
        sequences = HistoryReader(knowledge.sequences, max_len, split, scenarios, equal_bags)
    schema = model_schema(config, schema)
    user: VectorSource | None = knowledge.user
    item: VectorSource | None = knowledge.item
    if config.llm.vectors_on == "device":
        user, item = (None if each is None else IdsOnly() for each in (user, item))
    return Collator(schema, user, item, history, is_train, sequences)


def _needs_equal_bags(config: RunConfig, schema: Schema, world_size: int) -> bool:
    """Whether the batches of all ranks must look up as many items, distinct or not.

    The backward pass of a table that is divided by rows exchanges gradients by an all-gather, which
    gloo runs for equal sizes only. Other tables have no such limit, and fewer bags are faster. A
    plan file may divide any table.
    """
    if config.sequence.encoder == "none" or world_size == 1:
        return False
    spec = table_spec(config)
    ranks = spec.group_ranks or world_size
    sharding = spec.sharding_of(SEQUENCE_TABLE, schema.num_items, ranks)
    return config.plan is not None or sharding in ROW_SHARDINGS


def _loader(
    config: RunConfig,
    process: Process,
    knowledge: KnowledgeInputs,
    reader: SplitReader,
    order: GlobalOrder,
    collator: Collator,
    scored: ScoredDataset | None,
    first: Sequence[IdTransform] = (),
) -> Loader:
    alignment = None if scored is None else scored.alignment
    # From the ids of the files to rows of the tables: each transform reads the ids of the one
    # before it.
    transforms: list[IdTransform] = [*first, *([] if alignment is None else [alignment])]
    if knowledge.is_rare:
        transforms.append(RareIds(knowledge.is_rare))
    if collator.is_train and config.embeddings.id_dropout:
        transforms.append(IdDropout(config.embeddings.id_dropout, config.seed))
    if knowledge.semantic_ids is not None:
        transforms.append(knowledge.semantic_ids)
    transforms += table_transforms(collator.schema, config.scale, config.embeddings.per_scenario)
    share = RankShare(process.rank, process.world_size)
    prefetch, pin = config.trainer.prefetch, process.device.type == "cuda"
    return Loader(reader, order, collator, transforms, share, prefetch, pin)
