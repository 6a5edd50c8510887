"""FBGEMM's lookup and update alone, against the memory's bandwidth."""

from collections.abc import Sequence
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from msrec.launch.distributed import quiet_libraries
from msrec.tools.bench.harness.measure import Aim, Case, Finding, Took, interleaved, rates, timed
from msrec.tools.bench.harness.report import machine, report

COPY_BYTES = 1 << 28
AIMS: dict[tuple[str, int], Aim] = {
    ("forward", 64): ("at least", 0.6),
    ("update", 64): ("at least", 0.3),
}
FLOAT = 4


def bench_tables(
    dims: Sequence[int], gib: float, tables: int, batch: int, ids: int, repeats: int
) -> None:
    """Bytes of table rows a second, forward and in the fused backward, beside a stream copy.

    Counted are the rows read and the vectors written (forward), the rows read and written (update);
    of a copy what is read and written. Ids are uniform: the tables do not fit the caches.

    Args:
        dims: sizes of a vector.
        gib: GiB of all tables.
        tables: how many, one feature each.
        batch: rows of a step.
        ids: of a bag.
        repeats: rounds.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on, findings = machine(), list[Finding]()
    source = torch.ones(COPY_BYTES // FLOAT)
    target = torch.empty_like(source)
    for dim in dims:
        rows = int(gib * 2**30) // (FLOAT * dim * tables)
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * tables,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.01,
        )
        lookups = tables * batch * ids
        values = torch.randint(rows, (lookups,))
        offsets = torch.arange(0, lookups + 1, ids)
        gradient = torch.ones(batch, tables * dim)
        cases: dict[str, Case] = {
            "copy": lambda: timed(lambda: target.copy_(source)),
            "forward": _forward(kernel, values, offsets),
            "update": _update(kernel, values, offsets, gradient),
        }
        took = interleaved(cases, repeats)
        read = lookups * dim * FLOAT / 1e9
        copied = 2 * COPY_BYTES / 1e9
        moved = {"forward": read + gradient.nbytes / 1e9, "update": 2 * read}
        for part, gigabytes in moved.items():
            aim = AIMS.get((part, dim))
            work = (gigabytes, copied)
            findings.append(rates(f"D={dim} {part}", took[part], took["copy"], work, "GB/s", aim))
    title = f"{tables} tables of {gib:g} GiB together, {ids} ids a bag, {batch:,} rows, one thread"
    report("tables", title, findings, on)


def _forward(kernel: Any, values: torch.Tensor, offsets: torch.Tensor) -> Case:
    def run() -> Took:
        with torch.no_grad():
            return timed(lambda: kernel(values, offsets))

    return run


def _update(
    kernel: Any, values: torch.Tensor, offsets: torch.Tensor, gradient: torch.Tensor
) -> Case:
    def run() -> Took:
        vectors = kernel(values, offsets)
        return timed(lambda: vectors.backward(gradient))

    return run
