"""`msrec bench tables`: FBGEMM's lookup and update, against the memory's bandwidth."""

from typing import Annotated, Any

import torch
import typer
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)

from msrec.launch.devices import rank_device
from msrec.tools.bench.harness.measure import (
    Aim,
    Case,
    Finding,
    Seconds,
    compare_rates,
    interleaved,
    timed,
)
from msrec.tools.bench.harness.options import Batch, Repeats, comma_list
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.device_probe import PLACES

COPY_BYTES = 1 << 28
FLOAT_BYTES = 4
AIMS: dict[tuple[str, int], Aim] = {
    ("forward", 64): ("at least", 0.6),
    ("update", 64): ("at least", 0.3),
}


def bench_tables(
    dims: Annotated[str, typer.Option(help="vector sizes, separated by commas")] = "16,64,128",
    gib: Annotated[float, typer.Option(min=0.001, help="GiB of all tables together")] = 1.0,
    tables: Annotated[int, typer.Option(min=1, help="tables with one feature each")] = 4,
    batch: Batch = 4096,
    ids: Annotated[int, typer.Option(min=1, help="ids of a bag")] = 20,
    repeats: Repeats = 9,
) -> None:
    """FBGEMM's lookup and update of table rows, against a stream copy.

    Counts the rows read and the vectors written (forward), or the rows read and written (update).
    Ids are uniform, and the tables are larger than the caches.
    """
    on, findings = prepare(), list[Finding]()
    device = rank_device()
    place = PLACES[device.type]
    source = torch.ones(COPY_BYTES // FLOAT_BYTES, device=device)
    target = torch.empty_like(source)
    copied_gb = 2 * COPY_BYTES / 1e9  # read and written
    for dim in comma_list("dims", dims, int):
        rows = int(gib * 2**30) // (FLOAT_BYTES * dim * tables)
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, *place)] * tables,
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.01,
        )
        lookups = tables * batch * ids
        bags = (
            torch.randint(rows, (lookups,), device=device),
            torch.arange(0, lookups + 1, ids, device=device),
        )
        gradient = torch.ones(batch, tables * dim, device=device)
        rounds = interleaved(
            {
                "copy": lambda: target.copy_(source),
                "forward": _forward(kernel, bags),
                "update": _update(kernel, bags, gradient),
            },
            repeats,
        )
        read_gb = lookups * dim * FLOAT_BYTES / 1e9
        moved_gb = {"forward": read_gb + gradient.nbytes / 1e9, "update": 2 * read_gb}
        for name, amount in moved_gb.items():
            amounts, aim = (amount, copied_gb), AIMS.get((name, dim))
            what = f"D={dim} {name}"
            findings.append(compare_rates(what, rounds[name], rounds["copy"], amounts, "GB/s", aim))
    title = f"{tables} tables of {gib:g} GiB together, {ids} ids a bag, {batch:,} rows, one thread"
    report("tables", title, findings, on)


def _forward(kernel: Any, bags: tuple[torch.Tensor, torch.Tensor]) -> Case:
    def run() -> Seconds:
        with torch.no_grad():
            return timed(lambda: kernel(*bags))

    return run


def _update(kernel: Any, bags: tuple[torch.Tensor, torch.Tensor], gradient: torch.Tensor) -> Case:
    def run() -> Seconds:
        vectors = kernel(*bags)
        return timed(lambda: vectors.backward(gradient))

    return run
