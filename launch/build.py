"""From a `RunConfig` to the model, its loaders and its knowledge."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from msrec.data.knowledge import UserKnowledge, scenario_vectors
from msrec.data.llm.store import KnowledgeStore
from msrec.data.loader import Loader
from msrec.data.schema import Schema, Split
from msrec.launch.config import RunConfig
from msrec.launch.encode import store_settings
from msrec.launch.process import Process
from msrec.model.backbones import make_backbone
from msrec.model.embeddings import Embeddings
from msrec.model.fields import Fields
from msrec.model.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.plan import load_plan
from msrec.model.ranker import DenseArch, Ranker, RankerTrain, RankLoss
from msrec.model.sharding import TableSpec, fuse_optimizer, make_plan, shard


class Knowledge:
    """The stores a run reads; a level that the run does not use is None.

    Raises:
        FileNotFoundError: a level is used and `llm.store` is not given or not there.
        ValueError: the store was made with other settings than the config says.
    """

    def __init__(self, config: RunConfig, schema: Schema) -> None:
        self.user: UserKnowledge | None = None
        self.scenario: torch.Tensor | None = None
        by_user = config.meta.user or config.llm_feature.kind != "none"
        if not (by_user or config.meta.scenario):
            return
        if config.llm.store is None:
            raise FileNotFoundError(
                "meta.user, meta.scenario and llm_feature need llm.store=FOLDER, which "
                "`msrec encode` writes."
            )
        expected = store_settings(config.dataset, **config.llm.encoding)
        if by_user:
            store = KnowledgeStore.open(config.llm.store / "user")
            store.check(expected)
            self.user = UserKnowledge(config.dataset, store, config.llm.missing)
        if config.meta.scenario:
            store = KnowledgeStore.open(config.llm.store / "scenario")
            store.check(expected)
            self.scenario = torch.from_numpy(scenario_vectors(store, schema))


def build_loader(
    config: RunConfig,
    split: Split,
    process: Process,
    knowledge: Knowledge,
    global_batch: int,
    *,
    shuffle: bool,
    extra: Sequence[str] = (),
) -> Loader:
    """The loader of one split for this rank."""
    return Loader(
        config.dataset,
        split,
        global_batch,
        rank=process.rank,
        world_size=process.world_size,
        seed=config.seed,
        shuffle=shuffle,
        window_rows=config.trainer.window_rows,
        knowledge=knowledge.user,
        prefetch=config.trainer.prefetch,
        per_scenario=config.embeddings.per_scenario,
        extra=extra,
    )


def eval_batch(config: RunConfig, world_size: int) -> int:
    """Rows of an evaluation step over all ranks: `trainer.eval_batch`, up to a multiple of them."""
    return -(-config.trainer.eval_batch // world_size) * world_size


def build_model(config: RunConfig, schema: Schema, knowledge: Knowledge) -> RankerTrain:
    """The model before sharding: tables on the meta device, the rest seeded by `config.seed`."""
    torch.manual_seed(config.seed)
    tables = schema.per_scenario() if config.embeddings.per_scenario else schema
    embeddings = Embeddings(tables, config.embeddings.dim)
    interaction = Interaction(
        num_sparse=len(schema.sparse),
        dim=config.embeddings.dim,
        num_dense=len(schema.dense),
        bottom_dims=config.interaction.bottom_dims,
        mode=config.interaction.mode,
    )
    feature = _llm_feature(config, knowledge)
    in_dim = interaction.out_dim + (0 if feature is None else feature.out_dim)
    backbone = make_backbone(
        **config.backbone.model_dump(),
        fields=_fields(config, schema, interaction),
        in_dim=in_dim,
        num_scenarios=schema.num_scenarios,
        num_tasks=len(schema.labels),
    )
    over = DenseArch(
        interaction,
        backbone,
        _user_meta(config, in_dim, knowledge),
        _scenario_meta(config, in_dim, len(schema.labels), knowledge),
        feature,
        input_dropout=config.interaction.dropout,
    )
    return RankerTrain(Ranker(embeddings, over), RankLoss(config.embeddings.l2))


def plan_model(
    config: RunConfig, schema: Schema, knowledge: Knowledge, process: Process, plan: Path | None
) -> tuple[RankerTrain, ShardingPlan]:
    """The model before sharding, and where its tables go: by a plan file or by the planner."""
    model = build_model(config, schema, knowledge)
    spec = table_spec(config)
    fuse_optimizer(model.ranker.embeddings.ebc, spec, process.device)
    sharding = (
        load_plan(plan, model, process.world_size)
        if plan is not None
        else make_plan(model, spec, process.device, process.local_world_size)
    )
    return model, sharding


def build_sharded(
    config: RunConfig, schema: Schema, knowledge: Knowledge, process: Process, plan: Path | None
) -> tuple[DistributedModelParallel, ShardingPlan]:
    """The model over the ranks."""
    model, sharding = plan_model(config, schema, knowledge, process, plan)
    std = config.embeddings.init_std
    return shard(model, sharding, process.device, std, config.seed), sharding


def _fields(config: RunConfig, schema: Schema, interaction: Interaction) -> Fields:
    """Where the vectors stand in the interaction's output; nowhere if it gives dot products alone.

    A backbone that needs a vector then says which names it knows: none.
    """
    names = () if config.interaction.mode == "dot" else tuple(f.name for f in schema.sparse)
    return Fields(names, config.embeddings.dim, interaction.dense_dim)


def _llm_feature(config: RunConfig, knowledge: Knowledge) -> KnowledgeFeature | None:
    if config.llm_feature.kind == "none" or knowledge.user is None:
        return None
    return KnowledgeFeature(
        mean=torch.from_numpy(knowledge.user.mean),
        std=torch.from_numpy(knowledge.user.std),
        **config.llm_feature.model_dump(),
    )


def _user_meta(config: RunConfig, in_dim: int, knowledge: Knowledge) -> UserMeta | None:
    if not config.meta.user or knowledge.user is None:
        return None
    return UserMeta(
        in_dim=in_dim,
        knowledge_dim=knowledge.user.dim,
        mean=torch.from_numpy(knowledge.user.mean),
        std=torch.from_numpy(knowledge.user.std),
        **config.meta.layer_options,
    )


def _scenario_meta(
    config: RunConfig, in_dim: int, num_tasks: int, knowledge: Knowledge
) -> ScenarioMeta | None:
    if knowledge.scenario is None:
        return None
    return ScenarioMeta(
        in_dim=in_dim,
        knowledge=knowledge.scenario,
        num_tasks=num_tasks,
        **config.meta.layer_options,
    )


def table_spec(config: RunConfig) -> TableSpec:
    """How this run's tables are sharded and trained."""
    tables = config.embeddings
    return TableSpec(tables.optimizer, tables.lr, tables.row_wise_from, tables.sharding)


def write_json(path: Path, value: object) -> None:
    """Write JSON in one step: a reader sees the old file or the whole new one."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.replace(path)
