"""The encoding job: prompts of a dataset through the frozen model into a knowledge store."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.encoder import FrozenEncoder, Pooling
from msrec.data.llm.model_weights import DEFAULT_MODEL, load_tokenizer, model_folder, weights_sha256
from msrec.data.llm.prompt_batches import encoded_batches
from msrec.data.llm.prompts import Prompts
from msrec.data.llm.store import KEYS, VERSION, KnowledgeStore, Layer, differences
from msrec.data.llm.store_settings import store_settings
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.llm.templates import load_template
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.launch.encoding.run_prompts import level_prompts
from msrec.launch.encoding.speed import Counter, Progress, Speed

Level = Literal["scenario", "user", "item"]
LEVELS: tuple[Level, ...] = ("scenario", "user", "item")

WINDOW = 8192
"""Prompts that are tokenised, and sorted by length, together."""
OF_PROMPT = ("model_sha256", "template_sha256", "pooling", "layer", "dtype", "max_tokens")
OF_VECTOR = (*OF_PROMPT, "answer_tokens", "storage", "pca", "level", "version")
"""Settings by which an earlier store must agree for a vector to be taken over."""


@dataclass(frozen=True)
class EncodeResult:
    """For each level the counts of this rank's share; the speed where anything was encoded.

    Counts: keys, encoded (in this run), reused (from an earlier store), truncated and tokens (of
    those encoded), no_history, left_out, and `merged`, 1 where the level is complete.
    """

    levels: dict[str, dict[str, int]]
    speed: Speed | None


def encode(
    dataset: AnyPath | str,
    store: Path | str,
    *,
    model: str = DEFAULT_MODEL,
    pooling: Pooling = "mean",
    layer: Layer = "last",
    answer_tokens: int = 32,
    dtype: str = "bfloat16",
    storage: Literal["float16", "float32", "int8"] = "float16",
    pca: int | None = None,
    max_tokens: int = 512,
    batch_tokens: int = 2048,
    template: str = "auto",
    trust_remote_code: bool = False,
    previous: Path | None = None,
    levels: tuple[Level, ...] = ("scenario", "user"),
    rank: int = 0,
    world_size: int = 1,
    device: str | None = None,
    save_every_s: float = 10.0,
    on_progress: Progress | None = None,
) -> EncodeResult:
    """Encode this rank's share of some levels; run it again to go on after a kill.

    Ranks need no process group, only a common `store` folder: the last one to finish a level
    merges it. Keys that any part in the folder holds are not encoded again.

    Args:
        dataset: the dataset folder.
        store: gets a folder for each level.
        model: a packaged model, a local folder or a Hugging Face name.
        pooling: mean or last of the prompt's tokens, or generate an answer first.
        layer: last, middle, or how many layers to run.
        answer_tokens: with generate, the longest answer.
        dtype: of the model: bfloat16, float32 or float16.
        storage: of the vectors; int8 ones are standardised first.
        pca: keep so many principal components; None keeps all numbers.
        max_tokens: of a prompt; a history has as many items as there is room for.
        batch_tokens: padded tokens of a batch.
        template: a name in templates.yaml; auto is the one made for the data set.
        trust_remote_code: run code that comes with the model.
        previous: an earlier store, whose vectors are taken where the prompt is still the same.
        levels: which levels to encode.
        rank: this process, in [0, world_size).
        world_size: how many processes share the work.
        device: by default the CUDA device of LOCAL_RANK where there is one, else the CPU.
        save_every_s: seconds between two parts, the most that a kill loses.
        on_progress: called after every batch.

    Raises:
        FileNotFoundError: the dataset, the model or the earlier store is not there.
        ValueError: an option is wrong, the folder was begun with other settings, the earlier store
            was made otherwise, or a vector is not finite.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size); got {rank} of {world_size}.")
    folder = model_folder(model)
    settings = store_settings(
        to_path(dataset),
        model=model,
        template=template,
        pooling=pooling,
        layer=layer,
        answer_tokens=answer_tokens,
        dtype=dtype,
        max_tokens=max_tokens,
        storage=storage,
        pca=pca,
    ) | {"version": VERSION, "model_sha256": weights_sha256(folder)}
    writers = {
        level: StoreWriter(
            Path(store) / level, settings | {"level": level}, rank=rank, world_size=world_size
        )
        for level in levels
    }
    results: dict[str, dict[str, int]] = {n: _told(w) for n, w in writers.items() if w.is_complete}
    open_levels = {n: w for n, w in writers.items() if not w.is_complete}
    if not open_levels:
        return EncodeResult(results, None)
    texts = load_template(settings["template"])
    tokens = PromptTokenizer(load_tokenizer(folder, trust_remote_code), max_tokens)
    shares = {"rank": rank, "world_size": world_size}
    jobs = {}
    for level, writer in open_levels.items():
        prompts = level_prompts(level, dataset, texts, tokens, **shares)
        jobs[level] = _Job(writer, prompts, previous)
    counter = Counter(sum(len(job.prompts) for job in jobs.values()), on_progress)
    counter.add(sum(len(job.prompts) - job.left.height for job in jobs.values()), 0)
    encoder = None
    if any(job.left.height for job in jobs.values()):
        encoder = FrozenEncoder.load(
            folder,
            pooling=pooling,
            layer=layer,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            max_tokens=max_tokens,
            answer_tokens=answer_tokens,
            device=device or _default_device(),
        )
    for name, job in jobs.items():
        end = f"\n{texts.user_question}" if name == "user" else ""
        counts = _encode_level(encoder, job, texts.system, end, batch_tokens, save_every_s, counter)
        merged = job.writer.finish(job.prompts.counts | {"reused": job.reused})
        results[name] = job.prompts.counts | counts | {"merged": int(merged)}
    ordered: dict[str, dict[str, int]] = {level: results[level] for level in levels}
    return EncodeResult(ordered, counter.speed(encoder, dtype) if encoder else None)


class _Job:
    """One level's share: all its prompts, and those that no part and no earlier store holds."""

    def __init__(self, writer: StoreWriter, prompts: Prompts, previous: Path | None) -> None:
        self.writer, self.prompts = writer, prompts
        hashes = [prompt_hash(text) for text in prompts.frame["text"].to_list()]
        frame = prompts.frame.with_columns(prompt=pl.Series(hashes, dtype=pl.String))
        done = pl.Series(writer.done_index(), dtype=pl.Int64)
        self.left = frame.filter(~pl.col("index").is_in(done.implode()))
        self.reused = 0
        level = str(writer.settings["level"])
        if previous is not None and self.left.height and (previous / level).is_dir():
            self._take_over(KnowledgeStore.open(previous / level))

    def _take_over(self, store: KnowledgeStore) -> None:
        """Write the vectors of the prompts that are still the same as parts of this store."""
        expected = {name: self.writer.settings.get(name) for name in OF_VECTOR}
        differ = differences(store.manifest, expected)
        if expected["storage"] == "int8" or expected["pca"] is not None:
            differ = [f"storage {expected['storage']!r}, pca {expected['pca']!r}: not the raw ones"]
        if differ:
            raise ValueError(
                f"{store.path}: an earlier store must have vectors made the same way; it has "
                f"{'; '.join(differ)}. Leave llm.previous out."
            )
        keys = pl.read_parquet(store.path / KEYS).with_row_index("row")
        columns = [
            "prompt",
            "row",
            "tokens",
            "truncated",
            *(c for c in ["text"] if c in keys.columns),
        ]
        same = self.left.drop("text").join(keys.select("key", *columns), on=["key", "prompt"])
        for part in same.iter_slices(WINDOW):
            rows = part.drop("row").to_dict(as_series=False)
            self.writer.write(rows, np.asarray(store.vectors[part["row"].to_numpy()]))
        self.left = self.left.join(same.select("index"), on="index", how="anti")
        self.reused = same.height


def prompt_hash(text: str) -> str:
    """What tells whether a prompt has changed."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _told(writer: StoreWriter) -> dict[str, int]:
    """Counts of a level that was complete before."""
    manifest = KnowledgeStore.open(writer.folder, verify=False).manifest
    names = ("keys", "no_history", "left_out")
    return {name: int(manifest[name]) for name in names} | {"encoded": 0, "merged": 1}


def _encode_level(
    encoder: FrozenEncoder | None,
    job: _Job,
    system: str,
    end: str,
    batch_tokens: int,
    save_every_s: float,
    counter: Counter,
) -> dict[str, int]:
    """Encode what is left of a level, if anything; counts of this run."""
    counts = {"encoded": job.left.height, "reused": job.reused, "truncated": 0, "tokens": 0}
    for window in job.left.iter_slices(WINDOW):
        assert encoder is not None
        rows, cut = encoder.tokens.tokenize(window["text"].to_list(), system=system, keep_end=end)
        columns = window.select("index", "key", "has_history", "prompt").to_dict(as_series=False)
        columns |= {"tokens": [len(row) for row in rows], "truncated": cut}
        _encode_window(encoder, job.writer, rows, columns, batch_tokens, save_every_s, counter)
        counts["truncated"] += sum(cut)
        counts["tokens"] += sum(map(len, rows))
    return counts


def _encode_window(
    encoder: FrozenEncoder,
    writer: StoreWriter,
    rows: list[list[int]],
    columns: dict[str, list[Any]],
    batch_tokens: int,
    save_every_s: float,
    counter: Counter,
) -> None:
    """Encode some prompts in batches of like length; save a part every few seconds."""
    started = time.perf_counter()
    waiting: list[int] = []
    vectors: list[np.ndarray] = []
    answers: list[str] = []
    saved = time.monotonic()
    for made in encoded_batches(encoder, rows, batch_tokens):
        vectors.append(made.encoded.vectors)
        answers += made.encoded.texts or []
        waiting += made.places
        counter.seconds += time.perf_counter() - started
        if made.is_last or time.monotonic() - saved >= save_every_s:
            part = {name: [values[p] for p in waiting] for name, values in columns.items()}
            if answers:
                part["text"] = answers
            writer.write(part, np.concatenate(vectors))
            waiting, vectors, answers, saved = [], [], [], time.monotonic()
        done = len(made.places)
        counter.add(done, sum(columns["tokens"][p] for p in made.places), made.shared * done)
        started = time.perf_counter()


def _default_device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"
