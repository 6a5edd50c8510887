"""From a `RunConfig` to the model, its loaders and its knowledge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.io.paths import AnyPath
from msrec.data.llm.knowledge import EntityKnowledge, scenario_vectors
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.store_settings import store_settings
from msrec.data.loading.behaviour_history import BehaviourHistory
from msrec.data.loading.collator import Collator
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.id_dropout import IdDropout, rare_ids, require_single_valued
from msrec.data.loading.id_transforms import AlignedIds, IdTransform, RareIds, table_transforms
from msrec.data.loading.loader import Loader, RankShare
from msrec.data.loading.raw_reader import RawReader
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Schema, Split, load_schema
from msrec.launch.config import RunConfig
from msrec.launch.distributed import Process
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import make_backbone
from msrec.model.distributed.sharding import TableOptions, fuse_optimizer, plan_sharding, shard
from msrec.model.distributed.sharding_plan import load_plan
from msrec.model.embeddings import Embeddings
from msrec.model.layers.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.losses import RankLoss
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch, KnowledgeParts, Ranker, RankerTrain

MATCH_DIM = 16
"""Columns of llm_feature.kind=match where dim is not given."""


class ScoredDataset(NamedTuple):
    """A dataset folder to score, and how its ids become those of the run's dataset."""

    dataset: AnyPath
    alignment: VocabularyAlignment | None


class Knowledge:
    """What a run reads besides the rows of a batch: stores, histories; None where it does not.

    Args:
        config: of the run.
        schema: of the dataset that it is trained on.
        scored: another dataset folder, whose rows are scored; vectors are those of its users.

    Raises:
        FileNotFoundError: a level is used and `llm.store` is not given or not there.
        ValueError: the store was made with other settings than the config says.
    """

    def __init__(self, config: RunConfig, schema: Schema, scored: AnyPath | None = None) -> None:
        self.user: EntityKnowledge | None = None
        self.item: EntityKnowledge | None = None
        self.scenario: torch.Tensor | None = None
        self.history: BehaviourHistory | None = None
        rare, dropout = config.embeddings.rare, config.embeddings.id_dropout
        require_single_valued(schema, rare, dropout)
        self.is_rare = rare_ids(config.dataset, schema, rare, config.faults)
        """Feature -> (rows of its table,), which ids are taken as unknown."""
        if config.history.of:
            if config.embeddings.per_scenario or config.scale != 1:
                raise ValueError(
                    "history.of must be empty with embeddings.per_scenario=true and with scale: a "
                    "history has one table of its own for all scenarios, as large as the data set."
                )
            whole = (config.history.of, config.history.max_len, config.faults)
            self.history = BehaviourHistory(config.dataset, schema, *whole)
        feature = config.llm_feature
        self.feature_of = {"none": (), "match": ()}.get(feature.kind, tuple(feature.of))
        levels = config.knowledge_levels
        if not levels:
            return
        if config.llm.store is None:
            raise FileNotFoundError(
                "meta.user, meta.item, meta.scenario and llm_feature need llm.store=FOLDER, which "
                "`msrec encode` writes."
            )
        expected = store_settings(config.dataset, **config.llm.encoding)
        stores = {}
        for level in levels:
            stores[level] = KnowledgeStore.open(config.llm.store / level)
            stores[level].check(expected)
        scored = scored or config.dataset
        args = (config.llm.missing, config.llm.control, config.seed)
        if "user" in stores:
            self.user = EntityKnowledge(scored, "user", stores["user"], *args)
        if "item" in stores:
            self.item = EntityKnowledge(scored, "item", stores["item"], *args)
        if "scenario" in stores:
            self.scenario = torch.from_numpy(scenario_vectors(stores["scenario"], schema))


def build_loader(
    config: RunConfig,
    split: Split,
    process: Process,
    knowledge: Knowledge,
    global_batch: int,
    *,
    shuffle: bool,
    extra: Sequence[str] = (),
    scored: ScoredDataset | None = None,
) -> Loader:
    """Builds this rank's loader of a split of the run's dataset, or of another one.

    Args:
        config: of the run.
        split: "train", "valid" or "test".
        process: this rank.
        knowledge: vectors and histories of the run.
        global_batch: rows of a step over all ranks.
        shuffle: whether rows are mixed.
        extra: float32 columns that `loader.reader` must be able to read, such as `p_click`.
        scored: another dataset to read.
    """
    schema, files = _schemas(config, scored)
    only_first = not config.history.of and config.objective.aux_weight == 0
    labels = {"labels": schema.labels[:1] if only_first else schema.labels}
    schema, files = schema.model_copy(update=labels), files.model_copy(update=labels)
    dataset = config.dataset if scored is None else scored.dataset
    reader = SplitReader(dataset, files, split, extra, faults=config.faults)
    is_train = split == "train" and (scored is None or scored.alignment is None)
    order = GlobalOrder(
        reader.group_rows, global_batch, config.seed, shuffle, config.trainer.window_rows
    )
    return _loader(config, process, knowledge, (reader, order), schema, scored, is_train=is_train)


def build_file_loader(
    config: RunConfig,
    process: Process,
    knowledge: Knowledge,
    global_batch: int,
    paths: Sequence[AnyPath],
    *,
    raw: bool,
    scored: ScoredDataset,
) -> Loader:
    """Builds this rank's loader of Parquet files to score. No label and no timestamp is read.

    Args:
        config: of the run.
        process: this rank.
        knowledge: vectors and histories of the run.
        global_batch: rows of a step over all ranks.
        paths: the files.
        raw: whether they hold raw values, see `RawReader`, or ids of the scored dataset.
        scored: the dataset whose ids or vocabularies they use.
    """
    schema, files = _schemas(config, scored)
    unlabelled: dict[str, Any] = {"labels": [], "timestamp": None}
    schema, files = schema.model_copy(update=unlabelled), files.model_copy(update=unlabelled)
    if raw:
        reader: SplitReader = RawReader(scored.dataset, files, paths)
    else:
        reader = SplitReader(scored.dataset, files, "test", faults=config.faults, paths=paths)
    window_rows = config.trainer.window_rows
    order = GlobalOrder(reader.group_rows, global_batch, config.seed, False, window_rows)
    return _loader(config, process, knowledge, (reader, order), schema, scored, is_train=False)


def _schemas(config: RunConfig, scored: ScoredDataset | None) -> tuple[Schema, Schema]:
    """Returns the schema that the model knows and the schema of the files."""
    if scored is not None and scored.alignment is not None:
        return scored.alignment.schema, scored.alignment.files
    schema = load_schema(config.dataset if scored is None else scored.dataset)
    return schema, schema


def _loader(
    config: RunConfig,
    process: Process,
    knowledge: Knowledge,
    source: tuple[SplitReader, GlobalOrder],
    schema: Schema,
    scored: ScoredDataset | None,
    *,
    is_train: bool,
) -> Loader:
    alignment = None if scored is None else scored.alignment
    history = knowledge.history
    if history is not None and alignment is not None:
        history = history.for_entities({side: alignment.entities(side) for side in history.of})
    transforms: list[IdTransform] = [] if alignment is None else [AlignedIds(alignment)]
    if knowledge.is_rare:
        transforms.append(RareIds(knowledge.is_rare))
    if is_train and config.embeddings.id_dropout:
        transforms.append(IdDropout(config.embeddings.id_dropout, config.seed))
    transforms += table_transforms(schema, config.scale, config.embeddings.per_scenario)
    collator = Collator(schema, knowledge.user, knowledge.item, history, is_train)
    share = RankShare(process.rank, process.world_size)
    return Loader(*source, collator, transforms, share, config.trainer.prefetch)


def eval_batch(config: RunConfig, world_size: int) -> int:
    """Rows of an evaluation step over all ranks: `trainer.eval_batch`, up to a multiple of them."""
    return -(-config.trainer.eval_batch // world_size) * world_size


def build_model(config: RunConfig, schema: Schema, knowledge: Knowledge) -> RankerTrain:
    """The model before sharding: tables on the meta device, the rest seeded by `config.seed`."""
    torch.manual_seed(config.seed)
    tables = schema.scaled(config.scale)
    if config.embeddings.per_scenario:
        tables = tables.per_scenario()
    embeddings = Embeddings(tables, config.embeddings.dim, config.history.of)
    num_tasks = _num_tasks(config, schema)
    interaction = Interaction(
        num_sparse=len(embeddings.names),
        dim=config.embeddings.dim,
        num_dense=len(schema.dense),
        bottom_dims=config.interaction.bottom_dims,
        mode=config.interaction.mode,
    )
    features = _features(config, knowledge)
    in_dim = interaction.out_dim + sum(part.out_dim for part in features.values())
    layout = _feature_layout(config, embeddings, interaction)
    shape = BackboneShape(in_dim, schema.num_scenarios, num_tasks, layout)
    backbone = make_backbone(shape=shape, **config.backbone.model_dump())
    over = DenseArch(
        interaction,
        backbone,
        KnowledgeParts(
            user_meta=_meta(config, in_dim, knowledge.user if config.meta.user else None),
            item_meta=_meta(config, in_dim, knowledge.item if config.meta.item else None),
            scenario_meta=_scenario_meta(config, in_dim, num_tasks, knowledge),
            learned_users=_learned_users(config, schema, knowledge),
            **features,
        ),
        input_dropout=config.interaction.dropout,
    )
    return RankerTrain(
        Ranker(embeddings, over), RankLoss(config.embeddings.l2, config.objective.aux_weight)
    )


def plan_model(
    config: RunConfig, schema: Schema, knowledge: Knowledge, process: Process, plan: Path | None
) -> tuple[RankerTrain, ShardingPlan]:
    """The model before sharding, and where its tables go: by a plan file or by the planner."""
    model = build_model(config, schema, knowledge)
    spec = table_spec(config)
    is_fused = fuse_optimizer(model.ranker.embeddings.ebc, spec, process.device)
    if plan is None:
        return model, plan_sharding(model, spec, process.device, process.local_world_size)
    ranks = (process.world_size, process.local_world_size)
    sharding = load_plan(plan, model, *ranks, process.device.type)
    kernels = {part.compute_kernel for tables in sharding.plan.values() for part in tables.values()}
    if not is_fused and kernels != {"dense"}:
        # A fused kernel without a fused optimizer would train with SGD and say nothing.
        raise ValueError(
            f"{plan}: with embeddings.optimizer={spec.optimizer} on {process.device.type} every "
            f"table must be data_parallel (kernel dense); this plan has {', '.join(kernels)}."
        )
    return model, sharding


def build_sharded(
    config: RunConfig, schema: Schema, knowledge: Knowledge, process: Process, plan: Path | None
) -> tuple[DistributedModelParallel, ShardingPlan]:
    """The model over the ranks."""
    model, sharding = plan_model(config, schema, knowledge, process, plan)
    std = config.embeddings.init_std
    return shard(model, sharding, process.device, std, config.seed), sharding


def _num_tasks(config: RunConfig, schema: Schema) -> int:
    if config.objective.aux_weight > 0 and len(schema.labels) == 1:
        raise ValueError(
            f"objective.aux_weight must be 0 where a dataset has one label; {config.dataset} has "
            f"only {schema.labels[0]!r}."
        )
    return len(schema.labels) if config.objective.aux_weight > 0 else 1


def _feature_layout(
    config: RunConfig, embeddings: Embeddings, interaction: Interaction
) -> FeatureLayout:
    """Returns the layout of the interaction's output, without vectors if it is dot products only.

    A backbone that needs a vector then reports that none is known.
    """
    names = () if config.interaction.mode == "dot" else embeddings.names
    return FeatureLayout(names, config.embeddings.dim, interaction.dense_dim)


def _features(config: RunConfig, knowledge: Knowledge) -> dict[str, Any]:
    """The LLM's vectors as columns beside x, by their place in `KnowledgeParts`."""
    options = config.llm_feature.model_dump(exclude={"of"})
    if config.llm_feature.kind == "match":
        assert knowledge.user is not None
        assert knowledge.item is not None
        dim, dropout = config.llm_feature.dim or MATCH_DIM, config.llm_feature.dropout
        moments = (knowledge.user.moments, knowledge.item.moments)
        return {"match": KnowledgeMatch(*moments, dim, dropout)}
    of = {"user": knowledge.user, "item": knowledge.item}
    found = {}
    for level in knowledge.feature_of:
        entity = of[level]
        assert entity is not None
        found[f"{level}_feature"] = KnowledgeFeature(*entity.moments, **options)
    return found


def _meta(config: RunConfig, in_dim: int, of: EntityKnowledge | None) -> UserMeta | None:
    if of is None:
        return None
    return UserMeta(in_dim, *of.moments, config.meta.options, config.meta.residual)


def _learned_users(
    config: RunConfig, schema: Schema, knowledge: Knowledge
) -> torch.nn.Embedding | None:
    if config.llm.control != "learned" or knowledge.user is None:
        return None
    return torch.nn.Embedding(schema.num_users, knowledge.user.dim)


def _scenario_meta(
    config: RunConfig, in_dim: int, num_tasks: int, knowledge: Knowledge
) -> ScenarioMeta | None:
    if knowledge.scenario is None:
        return None
    meta = config.meta
    return ScenarioMeta(in_dim, knowledge.scenario, num_tasks, meta.options, meta.fusion)


def table_spec(config: RunConfig) -> TableOptions:
    """How this run's tables are sharded and trained."""
    tables = config.embeddings
    return TableOptions(tables.optimizer, tables.lr, tables.row_wise_from, tables.sharding)
