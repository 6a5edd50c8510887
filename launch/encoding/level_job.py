"""Work of one rank on one level of a store: vectors to reuse, prompts to encode, parts to write."""

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.prompt_batches import encoded_batches
from msrec.data.llm.prompts import Prompts
from msrec.data.llm.store import KEYS, KnowledgeStore, differences
from msrec.data.llm.store_writer import StoreWriter
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import SpeedCounter

WINDOW_PROMPTS = 8192
"""Prompts that are tokenised, and sorted by length, together."""
_STATE_SETTINGS = ("model_sha256", "template_sha256", "pooling", "layer", "dtype", "max_tokens")
REUSE_SETTINGS = (*_STATE_SETTINGS, "answer_tokens", "storage", "pca", "level", "version", "lsa")
"""Settings that must be equal for a vector of an earlier store to be reused."""


class LevelJob:
    """A rank's share of a level: its prompts, and those that have no vector yet.

    Args:
        writer: of the share.
        prompts: of the share.
        previous: folder of the level in an earlier store; its vectors of unchanged prompts are
            copied into parts at once. A folder that does not exist has none.

    Raises:
        ValueError: the earlier store has other settings.
    """

    def __init__(self, writer: StoreWriter, prompts: Prompts, previous: Path | None) -> None:
        self.writer, self.prompts = writer, prompts
        hashes = [_prompt_hash(text) for text in prompts.frame["text"].to_list()]
        frame = prompts.frame.with_columns(prompt=pl.Series(hashes, dtype=pl.String))
        done = pl.Series(writer.done_index(), dtype=pl.Int64)
        self.remaining = frame.filter(~pl.col("index").is_in(done.implode()))
        self.num_reused = 0
        if previous is not None and self.remaining.height and previous.is_dir():
            self._reuse(KnowledgeStore.open(previous))

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
        keys = pl.read_parquet(store.path / KEYS, glob=False).with_row_index("row")
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
        self,
        encoder: FrozenEncoder | None,
        options: EncodeOptions,
        counter: SpeedCounter,
        *,
        system: str = "",
        keep_end: str = "",
    ) -> dict[str, int]:
        """Encodes the remaining prompts, finishes the share, and returns its counts.

        Args:
            encoder: None if no prompt remains.
            options: size of the batches and time between two parts.
            counter: counts what is done.
            system: text of the system role.
            keep_end: end of every prompt, which stays when a prompt is cut.
        """
        counts = {"truncated": 0, "tokens": 0}  # of the prompts encoded below
        num_encoded = self.remaining.height
        for window in self.remaining.iter_slices(WINDOW_PROMPTS):
            assert encoder is not None
            rows, is_cut = encoder.tokens.tokenize(
                window["text"].to_list(), system=system, keep_end=keep_end
            )
            columns = window.drop("text").to_dict(as_series=False)
            columns |= {"tokens": [len(row) for row in rows], "truncated": is_cut}
            self._encode_window(encoder, options, rows, columns, counter)
            counts["truncated"] += sum(is_cut)
            counts["tokens"] += sum(map(len, rows))
        return self.finish(num_encoded) | counts

    def finish(self, num_encoded: int, **fields: Any) -> dict[str, int]:
        """Finishes the share, with more fields for the manifest, and returns its counts."""
        reused = {"reused": self.num_reused}
        is_merged = self.writer.finish(self.prompts.counts | reused | fields)
        counts = {"encoded": num_encoded} | reused | {"merged": int(is_merged)}
        return self.prompts.counts | counts

    def _encode_window(
        self,
        encoder: FrozenEncoder,
        options: EncodeOptions,
        rows: list[list[int]],
        columns: dict[str, list[Any]],
        counter: SpeedCounter,
    ) -> None:
        """Encodes prompts in batches, and saves a part every few seconds."""
        unsaved: list[int] = []
        vectors: list[np.ndarray] = []
        answers: list[str] = []
        saved_at, started = time.monotonic(), time.perf_counter()
        is_first = True
        for batch in encoded_batches(encoder, rows, options.batch_tokens):
            counter.seconds += time.perf_counter() - started
            if is_first:
                counter.expect(len(rows), batch.all_computed)
                is_first = False
            unsaved += batch.positions
            vectors.append(batch.encoded.vectors)
            answers += batch.encoded.texts or []
            if batch.is_last or time.monotonic() - saved_at >= options.save_every_s:
                part = {name: [column[p] for p in unsaved] for name, column in columns.items()}
                if answers:
                    part["text"] = answers
                self.writer.write(part, np.concatenate(vectors))
                unsaved, vectors, answers, saved_at = [], [], [], time.monotonic()
            num_prompts = len(batch.positions)
            num_tokens = sum(len(rows[position]) for position in batch.positions)
            counter.add(num_prompts, num_tokens, num_tokens - batch.computed_tokens)
            started = time.perf_counter()


def _prompt_hash(text: str) -> str:
    """Returns a hash by which a later encoding sees whether a prompt has changed."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
