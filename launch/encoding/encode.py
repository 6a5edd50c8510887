"""Encoding: prompts of a dataset through the frozen model into a knowledge store, in blocks."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msrec.data.engines.engines import OneProcess
from msrec.data.engines.tasks import Engine, Task
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.item_source.settings import LSA
from msrec.data.llm.models.model_weights import model_folder
from msrec.data.llm.store import KnowledgeStore, VectorSettings
from msrec.data.llm.store_writer import WORK, Block, StoreWriter
from msrec.data.llm.text.prompts import check_user_keys
from msrec.launch.encoding.block_job import EncodeBlocks, PrepareInputs, forget_encoder
from msrec.launch.encoding.item_sources import copy_fitted, encode_lsa
from msrec.launch.encoding.levels import LevelSpec, level_specs, source_spec
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import OnProgress, SpeedCounter, Work

COUNTED = ("keys", "no_history", "left_out")
SAY_EVERY_S = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodeResult:
    """Counts of each level, and the work of this run.

    The counts are keys (vectors of the level), no_history and left_out, and of this run encoded,
    reused (from the earlier store), truncated and tokens (of the encoded prompts).
    """

    levels: dict[str, dict[str, int]]
    """Level, or source of item vectors and level -> its counts."""
    work: Work


def encode(
    dataset: AnyPath | str,
    store: Path | str,
    vectors: VectorSettings,
    options: EncodeOptions,
    sources: Sequence[str] = (),
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> EncodeResult:
    """Encodes levels and sources of item vectors; after a kill, the same call goes on.

    Each level has a folder in the store. The keys that a part in there has are not encoded again.
    With `options.previous`, keys whose prompt is unchanged keep their vectors bit by bit, and new
    items get theirs by what was fitted for the earlier store.

    Args:
        dataset: with the texts.
        store: folder, which all workers see under the same path.
        vectors: decide the vectors of the levels; a source has a model of its own.
        options: of the job.
        sources: of item vectors: models as in `llm.model`, or `lsa`.
        engine: encodes the blocks of keys; None is this process.
        on_progress: called after every batch of this process, or block of others.

    Raises:
        FileNotFoundError: the dataset, a model or the earlier store does not exist.
        ValueError: an option is wrong, a folder was begun with other settings, the earlier store
            has other settings, `lsa` finds no term, or a vector is not finite.
    """
    dataset, store = to_path(dataset), Path(store)
    for source in set(sources) - {LSA}:
        model_folder(source)  # refuses one that is not there before the others are encoded
    specs = level_specs(dataset, store, vectors, options)
    specs += [source_spec(dataset, store, source, vectors, options) for source in sources]
    writers = [spec.writer() for spec in specs]
    levels = [Level(s, w) for s, w in zip(specs, writers, strict=True) if not w.is_complete]
    total = sum(block.stop - block.start for level in levels for block in level.missing)
    counter = SpeedCounter(total, on_progress)
    counter.add(Work())
    for level in levels:
        if level.missing and level.spec.earlier is not None:
            level.spec.earlier.prepare(level.spec.settings)
            copy_fitted(level.spec)
    try:
        _encode_blocks(levels, options, engine or OneProcess(), counter)
    finally:
        forget_encoder()
    for level in levels:
        if level.spec.source == LSA and level.missing:
            encode_lsa(level.spec, level.missing[0], options, counter)
    works = {level.spec.name: level.finish() for level in levels}
    counts = {spec.name: _counts(spec, works.get(spec.name, Work())) for spec in specs}
    return EncodeResult(counts, counter.work)


class Level:
    """A level that is not finished, and its blocks that are not done."""

    def __init__(self, spec: LevelSpec, writer: StoreWriter) -> None:
        self.spec, self._writer = spec, writer
        self._blocks = spec.blocks()
        done = writer.done_blocks()
        self.missing = [block for block in self._blocks if block.number not in done]

    def work_of(self, block: Block) -> Work:
        """Returns the work on a block that is done."""
        return Work(**self._writer.counts(block.number)[WORK])

    def finish(self) -> Work:
        """Merges the blocks; returns the work of this run."""
        work = sum(map(self.work_of, self.missing), Work())
        self._writer.merge(len(self._blocks))
        return work


def _encode_blocks(
    levels: Sequence[Level], options: EncodeOptions, engine: Engine, counter: SpeedCounter
) -> None:
    """Encodes the blocks that are missing, those of one model after another."""
    is_here = isinstance(engine, OneProcess)
    parts = [
        (number, block)
        for number, level in enumerate(levels)
        if level.spec.source != LSA
        for block in level.missing
    ]
    users = [level for level in levels if level.spec.level == "user" and level.missing]
    for level in users:
        check_user_keys(level.spec.dataset)
    is_prepared = any(len(level.missing) > 1 for level in users)
    if is_prepared:
        _prepare_users(users[0].spec, options, engine)
    specs = tuple(level.spec for level in levels)
    function = EncodeBlocks(specs, options, is_prepared, counter if is_here else None)
    started = time.monotonic()
    for number in engine.run(function, [Task(n, part) for n, part in enumerate(parts)]):
        if not is_here:
            level_number, block = parts[number]
            work = levels[level_number].work_of(block)
            counter.expect(work.prompts, work.tokens - work.shared_tokens)
            elapsed = time.monotonic() - started - counter.work.seconds
            counter.add(replace(work, seconds=elapsed))


def _prepare_users(spec: LevelSpec, options: EncodeOptions, engine: Engine) -> None:
    """Writes what the prompts of all blocks of users read, so that no worker reads all of it."""
    schema = spec.schema()
    parts = spec.prepared.parts(spec.dataset, schema)
    tasks = [Task(number, part) for number, part in enumerate(parts)]
    said_at = time.monotonic()
    for done, _ in enumerate(engine.run(PrepareInputs(spec, options), tasks), 1):
        if done == len(tasks) or time.monotonic() - said_at >= SAY_EVERY_S:
            log.info("sorted the training rows by user: %d of %d files and parts", done, len(tasks))
            said_at = time.monotonic()
    spec.prepared.finish(spec.dataset, schema)


def _counts(spec: LevelSpec, work: Work) -> dict[str, int]:
    """Returns the counts of a finished level, and of the work of this run."""
    manifest: dict[str, Any] = KnowledgeStore.open(spec.folder, verify=False).manifest
    counts = {name: int(manifest[name]) for name in COUNTED}
    counts |= {"encoded": work.prompts, "reused": work.reused}
    return counts | {"truncated": work.truncated, "tokens": work.tokens}
