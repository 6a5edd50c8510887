"""Prompts a second beside a plain loop, and how fast a batch's vectors come out of a store."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompt_batches import encoded_batches, shared_prefix
from msrec.data.llm.prompts import user_prompts
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.templates import load_template, template_of
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.data.schema import load_schema
from msrec.launch.config import load_config

DIM = 576
COPY_BYTES = 1 << 28


def bench_encode(
    config: Path, overrides: Sequence[str], prompts: int, batch: int, repeats: int
) -> None:
    """Users' prompts in our order and with their common beginning shared, and as one writes it.

    The plain loop takes prompts as they come, `batch` at a time, pads them to the longest and runs
    the same model in the same type; pooling is the mean in both.
    """
    run = load_config(config, overrides)
    schema = load_schema(run.dataset)
    template = load_template(template_of(schema.name, run.llm.template))
    folder = model_folder(run.llm.model)
    tokenizer = load_tokenizer(folder, run.llm.trust_remote_code)
    tokens = PromptTokenizer(tokenizer, run.llm.max_tokens)
    found = user_prompts(run.dataset, template, tokens).frame["text"]
    texts = found.sample(min(prompts, len(found)), seed=0).to_list()
    rows, _ = tokens.tokenize(texts, system=template.system, keep_end=f"\n{template.user_question}")
    encoder = FrozenEncoder.load(folder, dtype=run.llm.dtype, max_tokens=run.llm.max_tokens)
    cases: dict[str, Callable[[], np.ndarray]] = {
        "plain loop": lambda: _plain(encoder.lm, rows, batch),
        "msrec": lambda: _ours(encoder, rows, run.llm.batch_tokens),
    }
    for case in cases.values():  # once unmeasured: threads and memory
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    vectors: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name, case in cases.items():
            started = time.perf_counter()
            vectors[name] = case()
            seconds[name].append(time.perf_counter() - started)
    plain, ours = vectors.values()
    cosine = (plain * ours).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(ours, axis=1)
    table = Table(title=f"{schema.name}: {len(rows)} users, {run.llm.model}, {run.llm.dtype}")
    for column in ("", "prompts/s", "tokens/s", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    length = sum(map(len, rows))
    for name, taken in seconds.items():
        told = "" if name == "plain loop" else f"{median(ratios):.2f}"
        per_s = 1 / median(taken)
        table.add_row(name, f"{len(rows) * per_s:.1f}", f"{length * per_s:,.0f}", told)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"ratio in the rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; smallest cosine of "
        f"the two vectors of a user: {cosine.min():.6f}",
        highlight=False,
    )
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    padded = sum(len(part) * max(map(len, part)) for part in parts)
    computed = length - (len(rows) - 1) * len(shared_prefix(encoder, rows))
    console.print(
        f"tokens computed: {padded:,} by the plain loop, {computed:,} by msrec; by them alone the "
        f"ratio would be {padded / computed:.2f}",
        highlight=False,
    )


def _plain(model: nn.Module, rows: Sequence[Sequence[int]], batch: int) -> np.ndarray:
    found = []
    for start in range(0, len(rows), batch):
        part = [torch.tensor(row) for row in rows[start : start + batch]]
        ids = nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask.unsqueeze(2).float()
        found.append((states.float() * real).sum(1) / real.sum(1))
    return np.asarray(torch.cat(found).numpy())


def _ours(encoder: FrozenEncoder, rows: list[list[int]], batch_tokens: int) -> np.ndarray:
    batches = list(encoded_batches(encoder, rows, batch_tokens))
    order = np.argsort(np.concatenate([batch.positions for batch in batches]))
    return np.concatenate([batch.encoded.vectors for batch in batches])[order]


def bench_store(keys: int, batch: int, repeats: int) -> None:
    """Bytes a second of `read_vectors` for random keys of a cached store, on one thread."""
    torch.set_num_threads(1)
    table = Table(title=f"{keys:,} keys, {DIM} numbers each, {batch} distinct keys at a time")
    for column in ("stored as", "GB", "gathered, GB/s", "of a stream copy"):
        table.add_column(column, justify="right" if table.columns else "left")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (np.float32, np.float16, np.int8):
            store = _made_up(Path(folder), keys, dtype)
            speeds, copies = list[float](), list[float]()
            rng = np.random.default_rng(0)
            for _ in range(repeats):
                rows = np.sort(rng.choice(keys, batch, replace=False))
                started = time.perf_counter()
                read_vectors(store, rows)
                seconds = time.perf_counter() - started
                speeds.append(batch * DIM * store.vectors.itemsize / seconds)
                copies.append(_stream_copy() if len(copies) < 5 else copies[-1])
            ratio = median(speeds) / median(copies[:5])
            size = f"{store.vectors.nbytes / 1e9:.2f}"
            name = np.dtype(dtype).name
            table.add_row(name, size, f"{median(speeds) / 1e9:.1f}", f"{ratio:.0%}")
            del store
    Console(width=100).print(table)


def _made_up(folder: Path, keys: int, dtype: type) -> KnowledgeStore:
    path = folder / "vectors.npy"
    path.unlink(missing_ok=True)
    vectors = np.lib.format.open_memmap(path, "w+", dtype, (keys, DIM))
    rng = np.random.default_rng(0)
    block: np.ndarray = (rng.standard_normal((min(keys, 65_536), DIM)) * 30).astype(dtype)
    for start in range(0, keys, len(block)):
        vectors[start : start + len(block)] = block[: keys - start]
    scales = np.ones(keys, np.float32) if dtype is np.int8 else None
    return KnowledgeStore(folder, {}, vectors, scales, np.arange(keys), np.zeros(DIM), np.ones(DIM))


def _stream_copy() -> float:
    """Bytes a second that are read when a large array is copied to another."""
    a = torch.ones(COPY_BYTES // 4)
    b = torch.empty_like(a)
    b.copy_(a)  # pages of b come into being
    started = time.perf_counter()
    b.copy_(a)
    return COPY_BYTES / (time.perf_counter() - started)
