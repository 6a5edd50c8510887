"""Builds the model of a run, plans the sharding of its tables, and shards it."""

import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from msrec.data.features.vocabulary import UNKNOWN, item_table_rows
from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.semantic_ids import with_semantic_ids
from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.run_tasks import check_calibrator, loss_options, run_tasks
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import make_backbone
from msrec.model.distributed.filling import fill_frozen, fill_projected
from msrec.model.distributed.managed_tables import check_managed
from msrec.model.distributed.plan_files.sharding_plan import load_plan
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.replicas import sharding_env
from msrec.model.distributed.sharding import shard
from msrec.model.distributed.table_options import TableOptions
from msrec.model.distributed.tables import freeze, frozen_tables, fuse_optimizer
from msrec.model.embeddings import Embeddings
from msrec.model.frozen_items import FrozenItems, item_table
from msrec.model.interest.block import InterestOptions
from msrec.model.interest.interest import Interest
from msrec.model.layers.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.losses import RankLoss
from msrec.model.managed.managed_options import ManagedOptions
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch, KnowledgeParts, Ranker, RankerTrain
from msrec.model.sequence_encoder import SequenceEncoder
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS
from msrec.model.sequence_items import SequenceItems
from msrec.model.tasks import TaskScales

MATCH_DIM = 16
"""Columns of `llm_feature.kind=match` if `llm_feature.dim` is null."""


def build_sharded(
    config: RunConfig,
    schema: Schema,
    knowledge: KnowledgeInputs,
    process: Process,
    plan: Path | None,
    *,
    scored: bool = False,
) -> tuple[DistributedModelParallel, ShardingPlan]:
    """Returns the sharded model and its plan, see `plan_model`."""
    model, sharding = plan_model(config, schema, knowledge, process, plan, scored=scored)
    tables = config.embeddings
    group = process.world_size if scored else tables.group_ranks or process.world_size
    if not scored:
        shared_by = group if group < process.world_size else None
        check_managed(model.ranker.embeddings.managed, sharding, shared_by)
    env = sharding_env(group, process.local_world_size, process.device)
    over = model.ranker.over
    over.knowledge = {side: each.to(process.device) for side, each in over.knowledge.items()}
    options = (tables.init_std, config.seed, env, tables.comms)
    sharded = shard(model, sharding, process.device, *options)
    chunks = {item_table(each.name): each.chunks for each in knowledge.item_sources}
    fill_frozen(sharded, sharding, chunks)
    return sharded, sharding


def init_item_table(
    config: RunConfig,
    schema: Schema,
    knowledge: KnowledgeInputs,
    model: DistributedModelParallel,
    plan: ShardingPlan,
) -> None:
    """Writes item vectors to the table of `item_id`, if `llm.init_items` names their source.

    A row is `init_std` * vector @ P, with P (item_dim, dim) drawn from N(0, 1). Vectors have length
    1, so that each number of a row has the standard deviation `init_std`. Cosines of rows are about
    those of the vectors. Row 0 and the rows of items without a vector keep their values.

    Raises:
        FileNotFoundError: `llm.store` is not given, or lacks the source.
        ValueError: the table does not have one row for each item.
    """
    source = config.llm.init_items
    if source is None:
        return
    if config.scale != 1 or config.embeddings.per_scenario:
        raise ValueError(
            "llm.init_items needs scale=1 and embeddings.per_scenario=false, so that the table has "
            f"one row for each item; got scale={config.scale:g} and "
            f"per_scenario={str(config.embeddings.per_scenario).lower()}."
        )
    rows = item_table_rows(config.dataset)
    items = knowledge.item_source(source)
    rng = np.random.default_rng([config.seed, zlib.crc32(f"init_items/{source}".encode())])
    shape = (items.dim, config.embeddings.dim)
    projection = config.embeddings.init_std * rng.standard_normal(shape, np.float32)
    filled = np.flatnonzero(items.has & (rows != UNKNOWN))
    fill_projected(
        model,
        plan,
        schema.table_of("item_id"),
        torch.from_numpy(rows[filled].astype(np.int64)),
        lambda at: items.rows(filled[at]),
        torch.from_numpy(projection),
    )


def plan_model(
    config: RunConfig,
    schema: Schema,
    knowledge: KnowledgeInputs,
    process: Process,
    plan: Path | None,
    *,
    scored: bool = False,
) -> tuple[RankerTrain, ShardingPlan]:
    """Returns the model before sharding and its plan: from a plan file, or by the planner if None.

    The tables of a model that is only `scored` have one copy, and may be in host memory if the GPUs
    have no room for them.

    Raises:
        ValueError: the plan does not fit the model, the ranks or the optimizer.
    """
    model = build_model(config, schema, knowledge)
    spec = table_spec(config)
    is_fused = fuse_optimizer(model.ranker.embeddings.ebc, spec, process.device)
    if not is_fused:
        _check_replicated(config, scored=scored)
    if model.ranker.sequence_items is not None:
        fuse_optimizer(model.ranker.sequence_items.ebc, spec, process.device)
    if model.ranker.items is not None:
        freeze(model.ranker.items)
    if plan is None:
        local = process.local_world_size
        spec = replace(spec, group_ranks=None) if scored else spec
        return model, plan_sharding(model, spec, process.device, local, host_memory=scored)
    ranks = spec.group_ranks or process.world_size
    per_node = min(process.local_world_size, ranks)
    sharding = load_plan(plan, model, ranks, per_node, process.device.type)
    frozen = frozen_tables(model)
    kernels = {
        table.compute_kernel
        for tables in sharding.plan.values()
        for name, table in tables.items()
        if name not in frozen
    }
    if spec.group_ranks is not None and kernels != {"fused"}:
        raise ValueError(
            f"{plan}: with embeddings.group_ranks={spec.group_ranks} every table must have the "
            f"kernel fused, because copies in host memory are not averaged; this plan has "
            f"{', '.join(sorted(kernels))}."
        )
    if not is_fused and kernels != {"dense"}:
        # A fused kernel without a fused optimizer would silently train with SGD.
        raise ValueError(
            f"{plan}: with embeddings.optimizer={spec.optimizer} on {process.device.type} every "
            f"table must be data_parallel (kernel dense); this plan has {', '.join(kernels)}."
        )
    return model, sharding


def _check_replicated(config: RunConfig, *, scored: bool) -> None:
    """Refuses options that only tables with a fused optimizer have; scoring needs few of them."""
    tables = config.embeddings
    plain: dict[str, object] = {"dtype": "fp32"}
    if not scored:
        plain |= {"comms": "fp32", "group_ranks": None, "sharding": {}}
    for option, default in plain.items():
        if (value := getattr(tables, option)) != default:
            raise ValueError(
                f"embeddings.{option}={value} needs embeddings.optimizer=rowwise_adagrad on a CPU; "
                f"{tables.optimizer} keeps plain copies on all ranks."
            )


def table_spec(config: RunConfig) -> TableOptions:
    """Returns optimizer and sharding of the tables."""
    tables = config.embeddings
    shared = {field.name for field in fields(TableOptions)} - {"eps"}
    return TableOptions(**tables.model_dump(include=shared))


def model_schema(config: RunConfig, schema: Schema) -> Schema:
    """Returns the schema with the features that the run adds to those of a dataset."""
    options = config.llm.semantic_ids
    return schema if options is None else with_semantic_ids(schema, options.levels, options.codes)


def table_schema(config: RunConfig, schema: Schema) -> Schema:
    """Returns the schema with the tables of the run: scaled, and one per scenario if requested."""
    schema = model_schema(config, schema).scaled(config.scale)
    return schema.per_scenario() if config.embeddings.per_scenario else schema


def build_model(config: RunConfig, schema: Schema, knowledge: KnowledgeInputs) -> RankerTrain:
    """Builds the model before sharding: tables on the meta device, the rest seeded by the run."""
    torch.manual_seed(config.seed)
    tables = table_schema(config, schema)
    dim = config.embeddings.dim
    managed, dtype = _managed_options(config, tables), config.embeddings.dtype
    embeddings = Embeddings(tables, dim, config.history.of, managed=managed, dtype=dtype)
    tasks = run_tasks(config, schema)
    check_calibrator(config, tasks)
    num_tasks = len(tasks)
    interaction = Interaction(
        num_sparse=len(embeddings.names),
        dim=dim,
        num_dense=len(schema.dense),
        bottom_dims=config.interaction.bottom_dims,
        mode=config.interaction.mode,
    )
    features = _llm_features(config, knowledge)
    interest = _interest(config, schema, knowledge, num_tasks)
    in_dim = interaction.out_dim + sum(feature.out_dim for feature in features.values())
    in_dim += 0 if interest is None else interest.out_dim
    encoder = _sequence_encoder(config, schema)
    in_dim += 0 if encoder is None else encoder.out_dim
    # The dot mode passes no vector on to the backbone: one that needs a vector raises an error.
    names = () if config.interaction.mode == "dot" else embeddings.names
    layout = FeatureLayout(names, dim, interaction.dense_dim)
    parents = tuple(task.parent for task in tasks)
    shape = BackboneShape(in_dim, schema.num_scenarios, num_tasks, layout, parents)
    backbone = make_backbone(shape=shape, **config.backbone.model_dump())
    # Modules draw their initial weights from one generator, so their order here is part of a run.
    parts = KnowledgeParts(
        user_meta=_user_meta(config, in_dim, knowledge.user) if config.meta.user else None,
        item_meta=_user_meta(config, in_dim, knowledge.item) if config.meta.item else None,
        scenario_meta=_scenario_meta(config, in_dim, num_tasks, knowledge),
        learned_users=_learned_users(config, schema, knowledge.user),
        interest=interest,
        **features,
    )
    dropout = config.interaction.dropout
    precision = config.trainer.precision
    dense_arch = DenseArch(interaction, backbone, parts, dropout, encoder, precision)
    loss = RankLoss(TaskScales(tasks), loss_options(config, tasks, backbone.entire_space))
    items, sequence_items = None, None
    if interest is not None:
        dims = {each.name: each.dim for each in knowledge.item_sources}
        items = FrozenItems(schema.num_items, dims)
    if encoder is not None:
        sequence_items = SequenceItems(schema.num_items, dim, dtype=dtype)
    if config.llm.vectors_on == "device":
        sides: dict[Side, EntityKnowledge | None] = {"user": knowledge.user, "item": knowledge.item}
        dense_arch.knowledge = {side: each for side, each in sides.items() if each is not None}
    return RankerTrain(Ranker(embeddings, dense_arch, items, sequence_items), loss)


def _managed_options(config: RunConfig, schema: Schema) -> ManagedOptions | None:
    if not schema.managed:
        return None
    if config.embeddings.per_scenario:
        raise ValueError(
            f"embeddings.per_scenario must be false with the managed feature "
            f"{schema.managed[0].name!r}, whose ids have one table row for all scenarios."
        )
    tables = config.embeddings
    return ManagedOptions(
        tables.eviction,
        tables.eviction_every_steps,
        config.trainer.global_batch,
        tables.dim,
        tables.init_std,
        config.seed,
    )


def _sequence_encoder(config: RunConfig, schema: Schema) -> SequenceEncoder | None:
    sequence = config.sequence
    if sequence.encoder == "none":
        return None
    return SEQUENCE_ENCODERS[sequence.encoder](
        config.embeddings.dim, sequence.max_len, schema.num_scenarios, sequence.encoder_options
    )


def _interest(
    config: RunConfig, schema: Schema, knowledge: KnowledgeInputs, num_tasks: int
) -> Interest | None:
    if not config.interest.enabled:
        return None
    return Interest(
        [each.dim for each in knowledge.item_sources],
        config.sequence.max_len,
        schema.num_scenarios,
        num_tasks,
        InterestOptions(**config.interest.model_dump(exclude={"enabled"})),
        knowledge.scenario,
    )


def _llm_features(config: RunConfig, knowledge: KnowledgeInputs) -> dict[str, Any]:
    """Returns the modules of `llm_feature` by their field of `KnowledgeParts`."""
    options = config.llm_feature
    moments = {
        side: entity.moments
        for side, entity in (("user", knowledge.user), ("item", knowledge.item))
        if entity is not None
    }
    if options.kind == "match":
        dim = options.dim or MATCH_DIM
        return {"match": KnowledgeMatch(moments["user"], moments["item"], dim, options.dropout)}
    arguments = options.model_dump(exclude={"of"})
    return {
        f"{side}_feature": KnowledgeFeature(*moments[side], **arguments)
        for side in knowledge.feature_of
    }


def _user_meta(config: RunConfig, in_dim: int, entity: EntityKnowledge | None) -> UserMeta:
    assert entity is not None
    return UserMeta(in_dim, *entity.moments, config.meta.options, config.meta.residual)


def _scenario_meta(
    config: RunConfig, in_dim: int, num_tasks: int, knowledge: KnowledgeInputs
) -> ScenarioMeta | None:
    if not config.meta.scenario:
        return None
    assert knowledge.scenario is not None
    options, fusion = config.meta.options, config.meta.fusion
    return ScenarioMeta(in_dim, knowledge.scenario, num_tasks, options, fusion)


def _learned_users(
    config: RunConfig, schema: Schema, user: EntityKnowledge | None
) -> torch.nn.Embedding | None:
    if config.llm.control != "learned" or user is None:
        return None
    return torch.nn.Embedding(schema.num_users, user.dim)
