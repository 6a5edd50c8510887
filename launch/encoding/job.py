"""Encodes the dataset of a config into its knowledge store, as `msrec encode` does."""

import os
from dataclasses import replace
from pathlib import Path

from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.outputs import check_apart
from msrec.data.llm.item_source.codebook import item_codebook
from msrec.data.llm.item_source.settings import LSA
from msrec.data.llm.item_vectors import item_projection
from msrec.data.llm.models.model_weights import model_folder
from msrec.data.llm.remote_store import written_store
from msrec.data.llm.store import MANIFEST, KnowledgeStore, VectorSettings, item_source_folder
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import RunConfig
from msrec.launch.devices import rank_device
from msrec.launch.distributed import end_with_launcher
from msrec.launch.encoding.encode import EncodeResult, encode
from msrec.launch.encoding.item_sources import encode_items
from msrec.launch.encoding.options import BATCH_TOKENS, LEVELS, EncodeOptions, Level
from msrec.launch.encoding.speed import OnProgress


def encode_config(config: RunConfig, on_progress: OnProgress | None = None) -> EncodeResult:
    """Encodes this rank's share of scenarios, users and, with `llm.items`, items.

    With `llm.sources`, the items are encoded once per source, and of the levels only those that the
    run reads. Under a launcher such as torchrun, RANK and WORLD_SIZE name the share.

    Args:
        config: `dataset` and `llm`, of which `llm.store` is the folder to write.
        on_progress: called after every batch.

    Raises:
        FileNotFoundError: the dataset, the model or `llm.previous` does not exist.
        ValueError: `llm.store` is not given, the device is not there, or the folder was begun with
            other settings.
    """
    llm = config.llm
    if llm.store is None:
        raise ValueError("llm.store must name a folder; it is not given.")
    check_apart(llm.store, [config.dataset, llm.previous])
    end_with_launcher()
    with written_store(llm.store, lambda store: _fit_shared(store, llm)) as store:
        return _encode(config, store, on_progress)


def _fit_shared(store: Path, llm: LLMConfig) -> None:
    """Fits what all readers of a remote store share: they cannot write it."""
    for source in llm.sources:
        folder = item_source_folder(store, source)
        if not (folder / MANIFEST).is_file():
            continue
        opened = KnowledgeStore.open(folder, verify=False)
        item_projection(opened, llm.item_dim)
        if llm.semantic_ids is not None and llm.semantic_ids.source == source:
            item_codebook(opened, llm.item_dim, llm.semantic_ids.levels, llm.semantic_ids.codes)


def _encode(config: RunConfig, store: Path, on_progress: OnProgress | None) -> EncodeResult:
    llm = config.llm
    rank, world_size = environment_rank()
    device = rank_device(config.device, has_tables=False)
    options = EncodeOptions(
        levels=_levels(config),
        previous=llm.previous,
        trust_remote_code=llm.trust_remote_code,
        batch_tokens=llm.batch_tokens or BATCH_TOKENS[device.type],
        device=str(device),
        rank=rank,
        world_size=world_size,
    )
    vectors = VectorSettings(**llm.encoding)
    result = EncodeResult({}, None)
    for source in set(llm.sources) - {LSA}:
        model_folder(source)  # refuses one that is not there before the others are encoded
    # Ranks encode without a process group, so each has a lock; another job has a rank 0 too.
    share = store / f"share-{rank}"
    with exclusive(share, f"share {rank} of {llm.store} must be encoded"):
        if options.levels:
            result = encode(config.dataset, store, vectors, options, on_progress)
        sources = {
            source: encode_items(config.dataset, store, source, vectors, options, on_progress)
            for source in llm.sources
        }
    return replace(result, sources=sources)


def _levels(config: RunConfig) -> tuple[Level, ...]:
    used = config.knowledge_levels if config.llm.sources else ["scenario", "user"]
    used = [*used, *(["item"] if config.llm.items else [])]
    return tuple(level for level in LEVELS if level in used)


def environment_rank() -> tuple[int, int]:
    """Returns rank and world size from RANK and WORLD_SIZE; 0 and 1 without a launcher."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
