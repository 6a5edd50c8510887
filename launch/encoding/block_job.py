"""Work on one block of a level: vectors to reuse, prompts to encode, parts to write."""

import gc
import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from msrec.data.engines.tasks import Task
from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.prompt_batches import encoded_batches
from msrec.data.llm.store import VectorSettings
from msrec.data.llm.store_writer import WORK, Block
from msrec.data.llm.text.prompts import Prompts
from msrec.data.llm.vllm_encoder import VllmEncoder
from msrec.launch.devices import rank_device
from msrec.launch.encoding.levels import LevelSpec
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import SpeedCounter, Work, matmul_peak


@dataclass(frozen=True)
class EncodeBlocks:
    """Function of a task, whose part is the number of a level and one of its blocks.

    Args:
        levels: that the tasks name.
        options: of the encoding.
        is_prepared: whether the inputs of users are in a folder, see `PreparedInputs`.
        counter: counts every batch, if this process does the tasks.
    """

    levels: tuple[LevelSpec, ...]
    options: EncodeOptions
    is_prepared: bool = False
    counter: SpeedCounter | None = None

    def __call__(self, task: Task) -> None:
        """Encodes what the block lacks and marks it as done."""
        number, block = task.part
        level: LevelSpec = self.levels[number]
        prompts = level.prompts(block, self.options, is_prepared=self.is_prepared)
        job = BlockJob(level, block, prompts, self.counter)
        if job.remaining.height:
            is_chat = level.template is not None
            encoder = load_encoder(level.model_folder, level.vectors, self.options, is_chat)
            job.encode(encoder, self.options)
        job.finish()


class BlockJob:
    """The prompts of a block, and those that have no vector yet.

    Vectors of unchanged prompts are taken from the earlier store at once.

    Args:
        level: of the block.
        block: its keys.
        prompts: of the keys.
        counter: counts what is done.
    """

    def __init__(
        self, level: LevelSpec, block: Block, prompts: Prompts, counter: SpeedCounter | None
    ) -> None:
        self.level, self.prompts, self.work = level, prompts, Work()
        self._counter = counter
        self.writer = level.writer(block.number)
        hashes = [_prompt_hash(text) for text in prompts.frame["text"].to_list()]
        frame = prompts.frame.with_columns(prompt=pl.Series(hashes, dtype=pl.String))
        done = pl.Series(self.writer.done_index(), dtype=pl.Int64)
        self.remaining = frame.filter(~pl.col("index").is_in(done.implode()))
        reused = 0
        if (earlier := level.earlier) is not None and self.remaining.height:
            same, vectors = earlier.unchanged(self.remaining.drop("text"))
            if reused := same.height:
                self.writer.write(same.to_dict(as_series=False), vectors)
            self.remaining = self.remaining.join(same, on="index", how="anti")
        self._add(Work(keys=block.stop - block.start - self.remaining.height, reused=reused))

    def encode(self, encoder: FrozenEncoder | VllmEncoder, options: EncodeOptions) -> None:
        """Encodes the remaining prompts in batches, and saves a part every few seconds."""
        template, device = self.level.prompt_template(), encoder.device
        is_user = template is not None and self.level.level == "user"
        rows, is_cut = encoder.tokens.tokenize(
            self.remaining["text"].to_list(),
            system=template.system if template else "",
            keep_end=f"\n{template.user_question}" if template and is_user else "",
        )
        unsaved: list[int] = []
        vectors: list[np.ndarray] = []
        answers: list[str] = []
        batches = encoded_batches(encoder, rows, options.tokens_of_batch(device.type))
        peak = matmul_peak(self.level.vectors.dtype, device)
        saved_at, started = time.monotonic(), time.perf_counter()
        for number, batch in enumerate(batches):
            seconds = time.perf_counter() - started
            if number == 0 and self._counter is not None:
                self._counter.expect(len(rows), batch.all_computed)
            unsaved += batch.positions
            vectors.append(batch.encoded.vectors)
            answers += batch.encoded.texts or []
            if batch.is_last or time.monotonic() - saved_at >= options.save_every_s:
                of_part = self.remaining[unsaved].drop("text").to_dict(as_series=False)
                of_part["tokens"] = [len(rows[position]) for position in unsaved]
                of_part["truncated"] = [is_cut[position] for position in unsaved]
                if answers:
                    of_part["text"] = answers
                self.writer.write(of_part, np.concatenate(vectors))
                unsaved, vectors, answers, saved_at = [], [], [], time.monotonic()
            tokens = sum(len(rows[position]) for position in batch.positions)
            prompts, cut = len(batch.positions), sum(is_cut[place] for place in batch.positions)
            shared, flops = tokens - batch.computed_tokens, encoder.flops_per_token
            flops *= batch.computed_tokens
            done = (prompts, prompts, 0, cut, tokens, shared)
            self._add(Work(*done, seconds, flops, seconds * peak))
            started = time.perf_counter()

    def add_part(self, columns: dict[str, list[Any]], vectors: np.ndarray) -> None:
        """Writes vectors that another source than a model made, as one part."""
        self.writer.write(columns, vectors)
        tokens, size = sum(columns["tokens"]), len(vectors)
        self._add(Work(keys=size, prompts=size, tokens=tokens))

    def finish(self, **fields: Any) -> None:
        """Marks the block as done, with more fields for the manifest."""
        counts = {"reused": self.work.reused, WORK: asdict(self.work)}
        self.writer.finish(self.prompts.counts | counts | fields)

    def _add(self, work: Work) -> None:
        self.work += work
        if self._counter is not None:
            self._counter.add(work)


def load_encoder(
    folder: Path, vectors: VectorSettings, options: EncodeOptions, is_chat: bool
) -> FrozenEncoder | VllmEncoder:
    """Loads the frozen model on this worker's device; a worker keeps it from block to block."""
    key = (folder, vectors, options, is_chat)
    if key not in _loaded:
        forget_encoder()
        device = rank_device(options.device, has_tables=False)
        shared: dict[str, Any] = {
            "pooling": vectors.pooling,
            "layer": vectors.layer,
            "dtype": vectors.dtype,
            "trust_remote_code": options.trust_remote_code,
            "max_tokens": vectors.max_tokens,
            "is_chat": is_chat,
            "device": device,
        }
        if options.backend == "vllm":
            _loaded[key] = VllmEncoder(folder, **shared)
        else:
            _loaded[key] = FrozenEncoder.load(folder, answer_tokens=vectors.answer_tokens, **shared)
    return _loaded[key]


_loaded: dict[Any, FrozenEncoder | VllmEncoder] = {}
"""The model of this worker, at most one."""


def forget_encoder() -> None:
    """Frees the model of this process and its memory, also that of a GPU."""
    _loaded.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class PrepareInputs:
    """Function of a task, whose part is one of the inputs of the prompts of users."""

    level: LevelSpec
    options: EncodeOptions

    def __call__(self, task: Task) -> None:
        """Writes the part."""
        level, template = self.level, self.level.prompt_template()
        assert template is not None
        tokens = level.tokens(self.options)
        level.prepared.write(task.part, level.dataset, level.schema(), template, tokens)


def _prompt_hash(text: str) -> str:
    """Returns a hash by which a later encoding sees whether a prompt has changed."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
