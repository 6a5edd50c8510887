"""Levels of a store that are encoded: what each is made of and with which settings."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from msrec.data.io.paths import AnyPath, is_file
from msrec.data.llm.item_source.settings import LSA, source_settings
from msrec.data.llm.models.model_limits import check_model
from msrec.data.llm.models.model_weights import load_tokenizer, model_folder, weights_sha256
from msrec.data.llm.store import (
    MANIFEST,
    VERSION,
    VectorSettings,
    item_source_folder,
    store_settings,
)
from msrec.data.llm.store_writer import Block, StoreWriter, blocks_of
from msrec.data.llm.text.prompts import Prompts, level_prompts, num_keys, require_text
from msrec.data.llm.text.templates import Template, load_template
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.llm.text.user_inputs import PreparedInputs
from msrec.data.schema import Schema, load_schema
from msrec.launch.encoding.earlier_store import EarlierStore
from msrec.launch.encoding.options import EncodeOptions


@dataclass(frozen=True)
class LevelSpec:
    """A level, or a source of item vectors: small, since each task of a worker carries it.

    Args:
        dataset: with the texts.
        folder: of the level in the store.
        level: user, scenario or item.
        source: name of the source of item vectors; "" for a level.
        settings: of the manifest.
        vectors: model and how it is read.
        template: name of the template of the prompts; None for the plain texts of items.
        previous: the same level in an earlier store, if there is one.
    """

    dataset: AnyPath
    folder: Path
    level: str
    source: str
    settings: dict[str, Any]
    vectors: VectorSettings
    template: str | None
    previous: AnyPath | None

    @property
    def name(self) -> str:
        """Name for the user."""
        return f"{self.source} {self.level}".strip()

    @property
    def model_folder(self) -> Path:
        """Folder of the model."""
        return model_folder(self.vectors.model)

    @property
    def earlier(self) -> EarlierStore | None:
        """The level in the earlier store, with an index among the parts."""
        folder = self.folder / "parts" / "earlier"
        return None if self.previous is None else EarlierStore(self.previous, folder)

    @property
    def prepared(self) -> PreparedInputs:
        """Inputs of the prompts of users, which several blocks share."""
        return PreparedInputs(self.folder / "parts" / "inputs")

    def writer(self, block: int = 0) -> StoreWriter:
        """Returns a writer of a block."""
        return StoreWriter(self.folder, self.settings, block)

    def blocks(self) -> list[Block]:
        """Returns all blocks; `lsa` is fitted to all items and has one."""
        keys = num_keys(self.level, self.schema())
        return [Block(0, 0, keys)] if self.source == LSA else blocks_of(self.level, keys)

    def schema(self) -> Schema:
        """Returns the schema of the dataset."""
        return load_schema(self.dataset)

    def prompt_template(self) -> Template | None:
        """Returns the template of the prompts."""
        return None if self.template is None else load_template(self.template)

    def tokens(self, options: EncodeOptions) -> PromptTokenizer:
        """Returns the tokenizer of the prompts."""
        vectors = self.vectors
        return _tokenizer(self.model_folder, vectors.max_tokens, options.trust_remote_code)

    def prompts(self, block: Block, options: EncodeOptions, *, is_prepared: bool) -> Prompts:
        """Returns the prompts of a block."""
        keys = range(block.start, block.stop)
        template = self.prompt_template()
        tokens = self.tokens(options) if self.level == "user" else None
        prepared = self.prepared if is_prepared and self.level == "user" else None
        return level_prompts(self.level, self.dataset, template, tokens, keys, prepared)


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, max_tokens: int, trust: bool) -> PromptTokenizer:
    return PromptTokenizer(load_tokenizer(folder, trust), max_tokens)


def level_specs(
    dataset: AnyPath, store: Path, vectors: VectorSettings, options: EncodeOptions
) -> list[LevelSpec]:
    """Returns the levels of the options.

    Raises:
        FileNotFoundError: the dataset or the model does not exist.
        ValueError: the dataset lacks texts, or the model cannot read so many tokens.
    """
    if not options.levels:
        return []
    for level in options.levels:
        require_text(dataset, level)
    folder = model_folder(vectors.model)
    check_vectors(folder, vectors, options)
    settings = store_settings(dataset, vectors)
    settings |= {"version": VERSION, "model_sha256": weights_sha256(folder)}
    return [
        LevelSpec(
            dataset,
            store / level,
            level,
            "",
            settings | {"level": level},
            vectors,
            settings["template"],
            _earlier_level(options.previous / level if options.previous else None),
        )
        for level in options.levels
    ]


def source_spec(
    dataset: AnyPath, store: Path, source: str, vectors: VectorSettings, options: EncodeOptions
) -> LevelSpec:
    """Returns the level of a source of item vectors.

    Args:
        dataset: whose items are encoded, as plain texts.
        store: folder of the knowledge store; the source has a folder in it.
        source: a model as in `llm.model`, or `lsa`.
        vectors: pooling, layer, dtype and max_tokens of a model; the rest is not used.
        options: of the job.

    Raises:
        FileNotFoundError: the dataset or the model does not exist.
        ValueError: the dataset lacks texts, or the model cannot read so many tokens.
    """
    require_text(dataset, "item")
    vectors = replace(vectors, model=source, storage="float16", pca=None)
    settings = source_settings(dataset, source, vectors) | {"version": VERSION}
    settings["num_items"] = load_schema(dataset).num_items
    if source != LSA:
        folder = model_folder(source)
        check_vectors(folder, vectors, options)
        settings["model_sha256"] = weights_sha256(folder)
    previous = options.previous and item_source_folder(options.previous, source)
    folder = item_source_folder(store, source)
    return LevelSpec(
        dataset, folder, "item", source, settings, vectors, None, _earlier_level(previous)
    )


def _earlier_level(level: AnyPath | None) -> AnyPath | None:
    """Returns a level of the earlier store, if it has it."""
    if level is None:
        return None
    is_there = level.is_dir() if isinstance(level, Path) else is_file(level / MANIFEST)
    return level if is_there else None


def check_vectors(folder: Path, vectors: VectorSettings, options: EncodeOptions) -> None:
    """Checks that a model can encode prompts as the settings say, see `check_model`."""
    answer = vectors.answer_tokens if vectors.pooling == "generate" else 0
    trust = options.trust_remote_code
    check_model(folder, vectors.max_tokens, answer, trust_remote_code=trust)
