"""The encoding job: prompts of a dataset through the frozen model into a knowledge store."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch

from msrec.data.llm.encoder import FrozenEncoder, Pooling, token_batches
from msrec.data.llm.parts import StoreWriter
from msrec.data.llm.prompts import Prompts, scenario_prompts, user_prompts
from msrec.data.llm.store import VERSION
from msrec.data.llm.templates import load_template
from msrec.data.llm.weights import DEFAULT_MODEL, model_folder, weights_sha256
from msrec.data.schema import load_schema

Level = Literal["scenario", "user"]
PROMPTS = {"scenario": scenario_prompts, "user": user_prompts}
Progress = Callable[[int, int, int], None]
"""Called with (prompts done, prompts of this rank, tokens encoded in this run)."""

WINDOW = 8192
"""Prompts that are tokenised, and sorted by length, together."""


def encode(
    dataset: Path | str,
    store: Path | str,
    *,
    model: str = DEFAULT_MODEL,
    pooling: Pooling = "mean",
    dtype: str = "bfloat16",
    storage: Literal["float16", "float32"] = "float16",
    max_tokens: int = 256,
    batch_tokens: int = 2048,
    template: str = "default",
    levels: tuple[Level, ...] = ("scenario", "user"),
    rank: int = 0,
    world_size: int = 1,
    device: str | None = None,
    save_every_s: float = 10.0,
    on_progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """Encode this rank's share of both levels; run it again to go on after a kill.

    Ranks need no process group, only a common `store` folder: the last one to finish a level
    merges it. Keys that any part in the folder holds are not encoded again.

    Args:
        dataset: the dataset folder.
        store: gets the folders `scenario` and `user`.
        model: a packaged model, a local folder or a Hugging Face name.
        pooling: `last` or `mean`, over the tokens of a prompt.
        dtype: of the model: bfloat16, float32 or float16.
        storage: of the vectors.
        max_tokens: longer prompts lose the end of their history, and are counted.
        batch_tokens: padded tokens of a batch.
        template: a name in templates.yaml.
        levels: which levels to encode.
        rank: this process, in [0, world_size).
        world_size: how many processes share the work.
        device: by default the CUDA device of LOCAL_RANK where there is one, else the CPU.
        save_every_s: seconds between two parts, the most that a kill loses.
        on_progress: called after every batch.

    Returns:
        For each level the counts of this rank's share: keys, encoded (in this run), truncated
        and tokens (likewise), no_history, left_out, and `merged`, 1 where the level is complete.

    Raises:
        FileNotFoundError: the dataset or the model is not there.
        ValueError: an option is wrong, the folder was begun with other settings, or a vector is
            not finite.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size); got {rank} of {world_size}.")
    if storage not in ("float16", "float32"):
        raise ValueError(f"storage must be 'float16' or 'float32'; got {storage!r}.")
    texts = load_template(template)
    folder = model_folder(model)
    settings = store_settings(
        Path(dataset),
        model=model,
        template=template,
        pooling=pooling,
        dtype=dtype,
        max_tokens=max_tokens,
    ) | {
        "version": VERSION,
        "model_sha256": weights_sha256(folder),
        "layer": "last",
        "storage": storage,
    }
    jobs: dict[str, _Job] = {}
    for level in levels:
        writer = StoreWriter(
            Path(store) / level, settings | {"level": level}, rank=rank, world_size=world_size
        )
        prompts = PROMPTS[level](dataset, texts, rank=rank, world_size=world_size)
        jobs[level] = _Job(writer, prompts, _left(writer, prompts))
    counter = _Counter(sum(len(job.prompts) for job in jobs.values()), on_progress)
    counter.add(sum(len(job.prompts) - job.left.height for job in jobs.values()), 0)
    encoder = None
    if any(job.left.height for job in jobs.values()):
        device = device or _default_device()
        encoder = FrozenEncoder.load(
            folder, pooling=pooling, dtype=dtype, max_tokens=max_tokens, device=device
        )
    results: dict[str, dict[str, int]] = {}
    for name, job in jobs.items():
        end = f"\n{texts.user_question}" if name == "user" else ""
        counts = _encode_level(encoder, job, texts.system, end, batch_tokens, save_every_s, counter)
        merged = job.writer.is_complete or job.writer.finish(job.prompts.counts)
        results[name] = job.prompts.counts | counts | {"merged": int(merged)}
    return results


@dataclass(frozen=True)
class _Job:
    """One level's share: all its prompts, and those that no part holds yet."""

    writer: StoreWriter
    prompts: Prompts
    left: pl.DataFrame


def _encode_level(
    encoder: FrozenEncoder | None,
    job: _Job,
    system: str,
    end: str,
    batch_tokens: int,
    save_every_s: float,
    counter: "_Counter",
) -> dict[str, int]:
    """Encode what is left of a level, if anything; counts of this run."""
    counts = {"encoded": job.left.height, "truncated": 0, "tokens": 0}
    for window in job.left.iter_slices(WINDOW):
        assert encoder is not None
        rows, cut = encoder.tokenize(window["text"].to_list(), system=system, keep_end=end)
        columns = _columns(window, rows, cut)
        _encode_window(encoder, job.writer, rows, columns, batch_tokens, save_every_s, counter)
        counts["truncated"] += sum(cut)
        counts["tokens"] += sum(map(len, rows))
    return counts


def _columns(window: pl.DataFrame, rows: list[list[int]], cut: list[bool]) -> dict[str, list[Any]]:
    """What a part says of each key, beside its vector."""
    columns = window.select("index", "key", "has_history").to_dict(as_series=False)
    return columns | {"tokens": [len(row) for row in rows], "truncated": cut}


def _encode_window(
    encoder: FrozenEncoder,
    writer: StoreWriter,
    rows: list[list[int]],
    columns: dict[str, list[Any]],
    batch_tokens: int,
    save_every_s: float,
    counter: "_Counter",
) -> None:
    """Encode some prompts in batches of like length; save a part every few seconds."""
    waiting: list[int] = []
    vectors: list[np.ndarray] = []
    saved = time.monotonic()
    batches = token_batches(columns["tokens"], batch_tokens)
    for number, batch in enumerate(batches):
        vectors.append(encoder.encode([rows[place] for place in batch]))
        waiting += batch
        is_last = number == len(batches) - 1
        if is_last or time.monotonic() - saved >= save_every_s:
            part = {name: [values[p] for p in waiting] for name, values in columns.items()}
            writer.write(part, np.concatenate(vectors))
            waiting, vectors, saved = [], [], time.monotonic()
        counter.add(len(batch), sum(columns["tokens"][place] for place in batch))


class _Counter:
    """Adds up what is done, and tells the caller."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self.done, self.total, self.tokens = 0, total, 0
        self.on_progress = on_progress

    def add(self, prompts: int, tokens: int) -> None:
        self.done += prompts
        self.tokens += tokens
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, self.tokens)


def _left(writer: StoreWriter, prompts: Prompts) -> pl.DataFrame:
    """The prompts that no part holds."""
    if writer.is_complete:
        return prompts.frame.clear()
    done = pl.Series(writer.done_index(), dtype=pl.Int64)
    return prompts.frame.filter(~pl.col("index").is_in(done.implode()))


def store_settings(
    dataset: Path, *, model: str, template: str, pooling: str, dtype: str, max_tokens: int
) -> dict[str, Any]:
    """What a config says of a store's vectors: how they are made, and of which training rows."""
    schema = load_schema(dataset)
    files = sorted((dataset / "train").glob("*.parquet"))
    return {
        "dataset": schema.name,
        "split": schema.split.model_dump(mode="json"),
        "num_users": schema.num_users,
        "num_items": schema.num_items,
        "train_rows": sum(pq.read_metadata(file).num_rows for file in files),
        "model": model,
        "template": template,
        "template_sha256": load_template(template).sha256,
        "pooling": pooling,
        "dtype": dtype,
        "max_tokens": max_tokens,
    }


def _default_device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"
