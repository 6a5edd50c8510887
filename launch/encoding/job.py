"""Encodes the dataset of a config into its knowledge store, as `msrec encode` does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msrec.data.engines.engines import OneProcess, WorkerEngine, make_engine
from msrec.data.engines.tasks import Engine
from msrec.data.io.exclusive_files import exclusive
from msrec.data.io.outputs import check_apart
from msrec.data.io.paths import is_remote
from msrec.data.llm.item_source.codebook import item_codebook
from msrec.data.llm.item_vectors import item_projection
from msrec.data.llm.remote_store import written_store
from msrec.data.llm.store import MANIFEST, KnowledgeStore, VectorSettings, item_source_folder
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import Device, RunConfig
from msrec.launch.devices import rank_device
from msrec.launch.distributed import end_with_launcher
from msrec.launch.encoding.encode import EncodeResult, encode
from msrec.launch.encoding.options import LEVELS, EncodeOptions, Level
from msrec.launch.encoding.speed import OnProgress


@dataclass(frozen=True)
class EncodeWorkers:
    """Workers that encode the blocks of keys.

    Args:
        engine: this process, several of this machine, Ray, or the ranks of this job; None is the
            ranks under a launcher such as torchrun, and else this process.
        count: number of workers on this machine; one for each core if None.
        address: of a Ray cluster.
    """

    engine: Literal["one"] | WorkerEngine | None = None
    count: int | None = None
    address: str | None = None


def encode_config(
    config: RunConfig,
    on_progress: OnProgress | None = None,
    workers: EncodeWorkers | None = None,
) -> EncodeResult | None:
    """Encodes scenarios, users and, with `llm.items`, items.

    With `llm.sources`, the items are encoded once per source, and of the levels only those that the
    run reads.

    Args:
        config: `dataset` and `llm`, of which `llm.store` is the folder to write.
        on_progress: called after every batch, or block of another worker.
        workers: encode the blocks; see `EncodeWorkers`.

    Returns:
        The counts; None on a rank that worked for rank 0.

    Raises:
        FileNotFoundError: the dataset, the model or `llm.previous` does not exist.
        ValueError: `llm.store` is not given, the device is not there, or the folder was begun with
            other settings.
    """
    llm, workers = config.llm, workers or EncodeWorkers()
    if llm.store is None:
        raise ValueError("llm.store must name a folder; it is not given.")
    check_apart(llm.store, [config.dataset, llm.previous])
    end_with_launcher()
    if workers.engine != "ray":
        rank_device(config.device, has_tables=False)  # refuses a GPU that is not there
    name = workers.engine or ("ranks" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "one")
    if name == "ranks" and int(os.environ.get("RANK", 0)) > 0:
        from msrec.data.engines.rank_workers import work

        work()
        return None
    if is_remote(llm.store) and workers.address is not None:
        raise ValueError(
            f"llm.store must be a folder that all hosts of Ray share; {llm.store} is in an object "
            "store. Encode into a shared folder and copy it, or encode on one host."
        )
    with (
        written_store(llm.store, lambda store: _fit_shared(store, llm)) as store,
        exclusive(store / "encoding", f"{llm.store} must be encoded"),
        _engine(name, workers, config.device) as engine,
    ):
        options = EncodeOptions(
            levels=_levels(config),
            previous=llm.previous,
            trust_remote_code=llm.trust_remote_code,
            backend=llm.backend,
            batch_tokens=llm.batch_tokens,
            device=config.device,
        )
        vectors = VectorSettings(**llm.encoding)
        return encode(config.dataset, store, vectors, options, llm.sources, engine, on_progress)


@contextmanager
def _engine(
    name: Literal["one"] | WorkerEngine, workers: EncodeWorkers, device: Device
) -> Iterator[Engine]:
    """Yields the engine that encodes the blocks."""
    if name != "one":
        gpus = int(name == "ray" and device == "cuda")
        with make_engine(name, workers.count, workers.address, gpus) as engine:
            yield engine
        return
    if workers.count is not None or workers.address is not None:
        raise ValueError("--workers and --address are for --engine processes or ray.")
    yield OneProcess()


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


def _levels(config: RunConfig) -> tuple[Level, ...]:
    used = config.knowledge_levels if config.llm.sources else ["scenario", "user"]
    used = [*used, *(["item"] if config.llm.items else [])]
    return tuple(level for level in LEVELS if level in used)
