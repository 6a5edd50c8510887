"""Inputs of a run besides rows: vectors of the knowledge store, histories, rare ids."""

import torch

from msrec.data.histories.index import HistoryIndex
from msrec.data.io.paths import AnyPath
from msrec.data.llm.item_source.codebook import item_codebook
from msrec.data.llm.item_source.settings import source_settings
from msrec.data.llm.item_vectors import ItemVectors, load_item_vectors
from msrec.data.llm.knowledge import EntityKnowledge, scenario_vectors
from msrec.data.llm.store import KnowledgeStore, VectorSettings, store_settings
from msrec.data.loading.behaviour_history import BehaviourHistory
from msrec.data.loading.id_transforms import rare_ids, require_single_valued
from msrec.data.loading.semantic_ids import SemanticIds
from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig


class KnowledgeInputs:
    """Vectors, histories and rare ids of a run; None for those that the run does not use.

    Args:
        config: of the run.
        schema: of the dataset that the run is trained on.
        scored: another dataset to score; its users and items get the vectors, and its index has the
            ordered histories.

    Raises:
        FileNotFoundError: a level is used and `llm.store` is not given or does not exist, or
            `sequence.protocol` is given and the dataset has no such index.
        ValueError: the store was made with other settings than those of the config, or the index
            of histories is damaged or of other rows.
    """

    def __init__(self, config: RunConfig, schema: Schema, scored: AnyPath | None = None) -> None:
        rare, dropout = config.embeddings.rare, config.embeddings.id_dropout
        require_single_valued(schema, rare, dropout)
        self.is_rare = rare_ids(config.dataset, schema, rare, config.faults)
        """Feature -> (rows of its table,), true for ids that count as unknown."""
        self.history = _history(config, schema)
        _check_encoder(config)
        kind, of = config.llm_feature.kind, config.llm_feature.of
        self.feature_of = tuple(of) if kind in ("concat", "experts") else ()
        """Entities whose vectors are features of the backbone."""
        stores = _open_stores(config)
        args = (config.llm.missing, config.llm.control, config.seed)
        scored = scored or config.dataset
        self.sequences: HistoryIndex | None = None
        """Ordered histories of the dataset to score, mapped into memory."""
        if config.sequence.protocol is not None:
            self.sequences = HistoryIndex.open(scored, config.sequence.protocol)
        self._config, self._scored = config, scored
        self._sources: dict[str, ItemVectors] = {}
        names = config.llm.sources if config.interest.enabled else ()
        self.item_sources = tuple(self.item_source(name) for name in names)
        """Frozen vectors of the items, by source."""
        self.semantic_ids = self._semantic_ids()
        """Codes of the items."""
        self.user = self.item = self.scenario = None
        if "user" in stores:
            self.user = EntityKnowledge(scored, "user", stores["user"], *args)
        if "item" in stores:
            self.item = EntityKnowledge(scored, "item", stores["item"], *args)
        if "scenario" in stores:
            self.scenario = torch.from_numpy(scenario_vectors(stores["scenario"], schema))

    def item_source(self, name: str) -> ItemVectors:
        """Returns the vectors of a source, opened once; see `item_sources`."""
        if name not in self._sources:
            self._sources[name] = _source_vectors(self._config, name, self._scored)
        return self._sources[name]

    def _semantic_ids(self) -> SemanticIds | None:
        """Returns the codes of a dataset's items; a control of the source changes them too."""
        options = self._config.llm.semantic_ids
        if options is None:
            return None
        items = self.item_source(options.source)
        codebook = item_codebook(items.store, items.dim, options.levels, options.codes)
        return SemanticIds(codebook.item_codes(items), options.codes)


def item_sources(config: RunConfig) -> tuple[ItemVectors, ...]:
    """Returns the vectors of each of `llm.sources`, or of its control, for the dataset's items.

    Raises:
        FileNotFoundError: `llm.store` is not given, or lacks a source.
        ValueError: a source was made with other settings than those of the config.
    """
    return tuple(_source_vectors(config, source, config.dataset) for source in config.llm.sources)


def _source_vectors(config: RunConfig, source: str, dataset: AnyPath) -> ItemVectors:
    llm = config.llm
    if llm.store is None:
        raise FileNotFoundError(
            "llm.sources needs llm.store=FOLDER, which `msrec encode` writes; it is not given."
        )
    expected = source_settings(config.dataset, source, VectorSettings(**llm.encoding))
    control = llm.source_controls.get(source)
    return load_item_vectors(
        dataset, llm.store, source, llm.item_dim, control, config.seed, expected
    )


def _history(config: RunConfig, schema: Schema) -> BehaviourHistory | None:
    if not config.history.of:
        return None
    if config.embeddings.per_scenario or config.scale != 1:
        raise ValueError(
            "history.of must be empty with embeddings.per_scenario=true and with scale: a history "
            "has one full-sized table for all scenarios."
        )
    return BehaviourHistory(
        config.dataset, schema, config.history.of, config.history.max_len, config.faults
    )


def _check_encoder(config: RunConfig) -> None:
    is_changed = config.embeddings.per_scenario or config.scale != 1
    if config.sequence.encoder != "none" and is_changed:
        raise ValueError(
            "sequence.encoder must be none with embeddings.per_scenario=true and with scale: its "
            f"table has every item, for all scenarios; got {config.sequence.encoder}."
        )


def _open_stores(config: RunConfig) -> dict[str, KnowledgeStore]:
    """Opens the levels that the run reads and compares their settings with the config."""
    if not config.knowledge_levels:
        return {}
    if config.llm.store is None:
        raise FileNotFoundError(
            "meta.user, meta.item, meta.scenario and llm_feature need llm.store=FOLDER, which "
            "`msrec encode` writes."
        )
    expected = store_settings(config.dataset, VectorSettings(**config.llm.encoding))
    stores = {}
    for level in config.knowledge_levels:
        stores[level] = KnowledgeStore.open(config.llm.store / level)
        stores[level].check(expected)
    return stores
