"""Encoding job: prompts of a dataset through the frozen model into a knowledge store."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch

from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.model_weights import load_tokenizer, model_folder, weights_sha256
from msrec.data.llm.prompt_batches import encoded_batches
from msrec.data.llm.prompts import Prompts, level_prompts
from msrec.data.llm.store import (
    KEYS,
    VERSION,
    KnowledgeStore,
    VectorSettings,
    differences,
    store_settings,
)
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.llm.templates import Template, load_template
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.launch.encoding.speed import OnProgress, Speed, SpeedCounter

Level = Literal["scenario", "user", "item"]
LEVELS: tuple[Level, ...] = get_args(Level)

WINDOW_PROMPTS = 8192
"""Prompts that are tokenised, and sorted by length, together."""
_STATE_SETTINGS = ("model_sha256", "template_sha256", "pooling", "layer", "dtype", "max_tokens")
REUSE_SETTINGS = (*_STATE_SETTINGS, "answer_tokens", "storage", "pca", "level", "version")
"""Settings that must be equal for a vector of an earlier store to be reused."""


@dataclass(frozen=True)
class EncodeOptions:
    """Options of an encoding that do not change the vectors.

    Args:
        levels: levels to encode.
        previous: an earlier store; vectors of unchanged prompts are taken from it.
        trust_remote_code: run code that comes with the model.
        batch_tokens: most tokens of a padded batch.
        rank: of this process, in [0, world_size).
        world_size: number of processes that share the work.
        device: of the model; None takes the CUDA device of LOCAL_RANK if there is one, or the CPU.
        save_every_s: seconds between two parts, the most work that a kill loses.

    Raises:
        ValueError: `rank` is out of range.
    """

    levels: tuple[Level, ...] = ("scenario", "user")
    previous: Path | None = None
    trust_remote_code: bool = False
    batch_tokens: int = 2048
    rank: int = 0
    world_size: int = 1
    device: str | None = None
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be in [0, world_size); got {self.rank} of {self.world_size}."
            )


@dataclass(frozen=True)
class EncodeResult:
    """Counts of this rank's share by level, and the speed if anything was encoded.

    The counts are keys, encoded (by this run), reused (from the earlier store), truncated and
    tokens (of the encoded prompts), no_history, left_out, and merged (1 if the level is complete).
    """

    levels: dict[str, dict[str, int]]
    speed: Speed | None


def encode(
    dataset: AnyPath | str,
    store: Path | str,
    vectors: VectorSettings,
    options: EncodeOptions,
    on_progress: OnProgress | None = None,
) -> EncodeResult:
    """Encodes this rank's share of some levels; after a kill, the same call goes on.

    Ranks need no process group, only the same `store` folder, in which each level has a folder:
    the last rank to finish a level merges it. Keys of any part in there are not encoded again.

    Raises:
        FileNotFoundError: the dataset, the model or the earlier store does not exist.
        ValueError: an option is wrong, the folder was begun with other settings, the earlier store
            has other settings, or a vector is not finite.
    """
    folder = model_folder(vectors.model)
    settings = store_settings(to_path(dataset), vectors)
    settings |= {"version": VERSION, "model_sha256": weights_sha256(folder)}
    share = {"rank": options.rank, "world_size": options.world_size}
    writers = [
        StoreWriter(Path(store) / level, settings | {"level": level}, **share)
        for level in options.levels
    ]
    results = {w.folder.name: _counts_of(w) for w in writers if w.is_complete}
    open_writers = [writer for writer in writers if not writer.is_complete]
    if not open_writers:
        return EncodeResult(results, None)
    template = load_template(settings["template"])
    tokenizer = load_tokenizer(folder, options.trust_remote_code)
    tokens = PromptTokenizer(tokenizer, vectors.max_tokens)
    jobs = []
    for writer in open_writers:
        prompts = level_prompts(writer.folder.name, dataset, template, tokens, **share)
        jobs.append(_LevelJob(writer, prompts, options))
    counter = SpeedCounter(sum(len(job.prompts) for job in jobs), on_progress)
    counter.add(sum(len(job.prompts) - job.remaining.height for job in jobs), 0)
    needs_model = any(job.remaining.height for job in jobs)
    encoder = _load_encoder(folder, vectors, options) if needs_model else None
    for job in jobs:
        results[job.level] = job.run(encoder, template, counter)
    speed = counter.speed(encoder, vectors.dtype) if encoder else None
    return EncodeResult({level: results[level] for level in options.levels}, speed)


def _load_encoder(folder: Path, vectors: VectorSettings, options: EncodeOptions) -> FrozenEncoder:
    device = options.device
    if device is None:
        has_cuda = torch.cuda.is_available()
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_cuda else "cpu"
    return FrozenEncoder.load(
        folder,
        pooling=vectors.pooling,
        layer=vectors.layer,
        dtype=vectors.dtype,
        trust_remote_code=options.trust_remote_code,
        max_tokens=vectors.max_tokens,
        answer_tokens=vectors.answer_tokens,
        device=device,
    )


class _LevelJob:
    """A rank's share of a level: its prompts, and those that have no vector yet.

    With an earlier store, its vectors of unchanged prompts are copied into parts at once.
    """

    def __init__(self, writer: StoreWriter, prompts: Prompts, options: EncodeOptions) -> None:
        self.writer, self.prompts, self.options = writer, prompts, options
        self.level = writer.folder.name
        hashes = [_prompt_hash(text) for text in prompts.frame["text"].to_list()]
        frame = prompts.frame.with_columns(prompt=pl.Series(hashes, dtype=pl.String))
        done = pl.Series(writer.done_index(), dtype=pl.Int64)
        self.remaining = frame.filter(~pl.col("index").is_in(done.implode()))
        self.num_reused = 0
        previous = options.previous
        if previous is not None and self.remaining.height and (previous / self.level).is_dir():
            self._reuse(KnowledgeStore.open(previous / self.level))

    def _reuse(self, store: KnowledgeStore) -> None:
        """Copies the vectors of unchanged prompts."""
        expected = {name: self.writer.settings.get(name) for name in REUSE_SETTINGS}
        differing = differences(store.manifest, expected)
        # Parts hold the model's own vectors, which cannot be restored from projected ones.
        if expected["storage"] == "int8" or expected["pca"] is not None:
            differing = [
                f"storage {expected['storage']!r}, pca {expected['pca']!r}: not the model's vectors"
            ]
        if differing:
            raise ValueError(
                f"{store.path}: an earlier store must have vectors made the same way; it has "
                f"{'; '.join(differing)}. Leave llm.previous out."
            )
        keys = pl.read_parquet(store.path / KEYS).with_row_index("row")
        names = ["key", "prompt", "row", "tokens", "truncated", "text"]
        same = self.remaining.drop("text").join(
            keys.select(name for name in names if name in keys.columns), on=["key", "prompt"]
        )
        for part in same.iter_slices(WINDOW_PROMPTS):
            rows = part.drop("row").to_dict(as_series=False)
            self.writer.write(rows, np.asarray(store.vectors[part["row"].to_numpy()]))
        self.remaining = self.remaining.join(same.select("index"), on="index", how="anti")
        self.num_reused = same.height

    def run(
        self, encoder: FrozenEncoder | None, template: Template, counter: SpeedCounter
    ) -> dict[str, int]:
        """Encodes the remaining prompts, finishes the share, and returns its counts."""
        counts = {"encoded": self.remaining.height, "reused": self.num_reused}
        counts |= {"truncated": 0, "tokens": 0}  # of the prompts encoded below
        keep_end = f"\n{template.user_question}" if self.level == "user" else ""
        for window in self.remaining.iter_slices(WINDOW_PROMPTS):
            assert encoder is not None
            rows, is_cut = encoder.tokens.tokenize(
                window["text"].to_list(), system=template.system, keep_end=keep_end
            )
            columns = window.drop("text").to_dict(as_series=False)
            columns |= {"tokens": [len(row) for row in rows], "truncated": is_cut}
            self._encode_window(encoder, rows, columns, counter)
            counts["truncated"] += sum(is_cut)
            counts["tokens"] += sum(map(len, rows))
        is_merged = self.writer.finish(self.prompts.counts | {"reused": self.num_reused})
        return self.prompts.counts | counts | {"merged": int(is_merged)}

    def _encode_window(
        self,
        encoder: FrozenEncoder,
        rows: list[list[int]],
        columns: dict[str, list[Any]],
        counter: SpeedCounter,
    ) -> None:
        """Encodes prompts in batches of similar length, and saves a part every few seconds."""
        unsaved: list[int] = []
        vectors: list[np.ndarray] = []
        answers: list[str] = []
        saved_at, started = time.monotonic(), time.perf_counter()
        for batch in encoded_batches(encoder, rows, self.options.batch_tokens):
            counter.seconds += time.perf_counter() - started
            unsaved += batch.positions
            vectors.append(batch.encoded.vectors)
            answers += batch.encoded.texts or []
            if batch.is_last or time.monotonic() - saved_at >= self.options.save_every_s:
                part = {name: [column[p] for p in unsaved] for name, column in columns.items()}
                if answers:
                    part["text"] = answers
                self.writer.write(part, np.concatenate(vectors))
                unsaved, vectors, answers, saved_at = [], [], [], time.monotonic()
            num_prompts = len(batch.positions)
            num_tokens = sum(len(rows[position]) for position in batch.positions)
            counter.add(num_prompts, num_tokens, batch.shared_tokens * num_prompts)
            started = time.perf_counter()


def _prompt_hash(text: str) -> str:
    """Returns a hash by which a later encoding sees whether a prompt has changed."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _counts_of(writer: StoreWriter) -> dict[str, int]:
    """Returns the counts of a level that an earlier run completed."""
    manifest = KnowledgeStore.open(writer.folder, verify=False).manifest
    counts = {name: int(manifest[name]) for name in ("keys", "no_history", "left_out")}
    return counts | {"encoded": 0, "merged": 1}
