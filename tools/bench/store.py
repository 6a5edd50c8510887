"""`msrec bench store`: gathering vectors from a knowledge store, against a stream copy."""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.store import KnowledgeStore
from msrec.tools.bench.harness.measure import Finding, Seconds, compare_rates, interleaved, timed
from msrec.tools.bench.harness.options import Repeats
from msrec.tools.bench.harness.report import prepare, report

VECTOR_DIM = 576
"""Size of a vector, as of SmolLM2-135M."""
COPY_BYTES = 1 << 28
BLOCK_ROWS = 1 << 16


def bench_store(
    keys: Annotated[int, typer.Option(min=1000, help="keys of a random store")] = 500_000,
    batch: Annotated[int, typer.Option(min=1, help="distinct keys at a time")] = 4096,
    repeats: Repeats = 50,
) -> None:
    """Gathering the vectors of a batch from a store, against a stream copy.

    Runs on one thread, for each type that vectors are stored in; counts the bytes that are read.
    """
    on, findings = prepare(), list[Finding]()
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (np.float32, np.float16, np.int8):
            store = _random_store(Path(folder), keys, dtype)

            def gather(store: KnowledgeStore = store) -> Seconds:
                rows = np.sort(rng.choice(keys, batch, replace=False))
                return timed(lambda: read_vectors(store, rows))

            rounds = interleaved({"gather": gather, "copy": lambda: target.copy_(source)}, repeats)
            read = batch * VECTOR_DIM * store.vectors.itemsize
            gigabytes = (read / 1e9, COPY_BYTES / 1e9)
            what = f"{np.dtype(dtype).name}, {store.vectors.nbytes / 1e9:.2f} GB"
            findings.append(
                compare_rates(what, rounds["gather"], rounds["copy"], gigabytes, "GB/s")
            )
            del store, gather  # the next store overwrites the file
    title = f"{keys:,} keys, {VECTOR_DIM} numbers each, {batch} distinct keys at a time"
    report("store", title, findings, on)


def _random_store(folder: Path, keys: int, dtype: type) -> KnowledgeStore:
    path = folder / "vectors.npy"
    path.unlink(missing_ok=True)
    vectors = np.lib.format.open_memmap(path, "w+", dtype, (keys, VECTOR_DIM))
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((min(keys, BLOCK_ROWS), VECTOR_DIM))
    block: np.ndarray = (30 * normal).astype(dtype)
    for start in range(0, keys, len(block)):
        vectors[start : start + len(block)] = block[: keys - start]
    scales = np.ones(keys, np.float32) if dtype is np.int8 else None
    mean, std = np.zeros(VECTOR_DIM), np.ones(VECTOR_DIM)
    return KnowledgeStore(folder, {}, vectors, scales, mean, std)
