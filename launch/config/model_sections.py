"""Sections of a run's config on the model: tables, layers, histories."""

import dataclasses
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from msrec.data.io.validation import (
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
from msrec.model.distributed.table_options import MIN_COLUMNS, TableSharding
from msrec.model.managed.managed_options import Eviction
from msrec.model.meta import Fusion, MetaOptions
from msrec.model.sequence_encoder import EncoderOptions


class EmbeddingsConfig(StrictModel):
    """The embedding tables: size, optimizer, regularisation and sharding."""

    dim: VectorSize = 16
    """Length of every embedding vector."""
    optimizer: Literal["rowwise_adagrad", "adam"] = "rowwise_adagrad"
    """Optimizer of the tables. `rowwise_adagrad` is fused into the backward pass; `adam` is for
    small tables, because on a CPU its gradient is as large as the table."""
    lr: Positive = 0.02
    """Learning rate of the tables."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of the stored values. `fp16` halves the tables; the optimizer's state stays fp32. GPUs
    round updates at random, CPUs to the nearest number."""
    comms: Literal["fp32", "fp16"] = "fp32"
    """Type in which ranks send each other the vectors. With `fp16` their gradients are sent in
    bfloat16. One rank sends nothing."""
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
    sharding: dict[TableName, TableSharding] = {}
    """Table -> sharding: `table_wise` (one rank), `row_wise` (rows over all ranks), `column_wise`
    (columns over ranks), `table_row_wise` (rows over the ranks of one node), `table_column_wise`
    (columns over the ranks of one node), `grid` (columns over nodes, their rows over the ranks of
    each node). It overrides `row_wise_from`."""
    min_columns: Width = MIN_COLUMNS
    """Smallest number of columns of a shard of a `column_wise`, `table_column_wise` or `grid`
    table. A shard has the next multiple of 4 that divides `dim`."""
    group_ranks: Count | None = None
    """Number of consecutive ranks that share one copy of the tables; null is all ranks. With fewer,
    each group of ranks has a copy, and the copies are averaged every `sync_every` steps."""
    sync_every: Count = 1
    """Steps between averages of the copies of `group_ranks`. They are also averaged before each
    validation and checkpoint."""
    eviction: Eviction = "lfu"
    """Rule by which an id of a managed feature loses its table row to a new one: `lfu` the fewest
    occurrences, `lru` the oldest last occurrence, `distance` the fewest occurrences divided by the
    steps since the last one."""
    eviction_every_steps: Steps = 50
    """Steps after which new ids of a managed feature get rows, and old ones lose them."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _check_dtype(cls, dtype: object) -> object:
        if dtype == "bf16":
            raise ValueError("must be fp32 or fp16: FBGEMM has no kernel that trains bf16 tables")
        return dtype


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
    form: Literal["auto", "contracted", "distinct", "factored"] = "auto"
    """Order of the computation, which does not change the result: `distinct` makes the weights once
    per distinct user or scenario, `contracted` never makes them, `auto` takes the cheaper one.
    `factored` is another, cheaper layer: the vector scales the columns between two learned layers
    that all users or scenarios share."""
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
