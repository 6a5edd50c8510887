"""`msrec bench managed`: managed tables against vocabularies and hashes while ids drift."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from sklearn.metrics import roc_auc_score

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.io.atomic_files import write_json
from msrec.data.io.outputs import check_output
from msrec.data.schema import SPLITS, load_schema
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.build_model import build_sharded, table_spec
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.distributed import Process, process_group
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.trained_run import unwrapped
from msrec.model.distributed.optimizers import optimizers
from msrec.model.managed.managed_ids import POLICIES, map_bytes
from msrec.tools.bench.drift.stream import DriftingStream, drifting_tables
from msrec.tools.bench.harness.report import BENCH_FILE, OUT, console, prepare, text_table

FIRST_SHARE = 0.25
"""Share of the rows after which AUC is measured; vocabularies have the ids of these rows."""
SPLIT = SplitChoice("time", fractions=(FIRST_SHARE, 0.01, 0.74))
EVERYTHING = SplitChoice("time", fractions=(0.998, 0.001, 0.001))
FLOAT_BYTES = 4


class Outcomes(NamedTuple):
    """Result of one way to give ids table rows, on one stream."""

    auc: float
    rows: int
    """Rows of both tables."""
    bytes: int
    """Tables, optimizer state and maps."""
    rows_per_s: float
    """By the processor's time."""
    evicted: int


def bench_managed(
    seeds: Annotated[int, typer.Option(min=1, help="Number of streams.")] = 5,
    days: Annotated[int, typer.Option(min=4, help="Days of a stream.")] = 20,
    day_rows: Annotated[int, typer.Option(min=1000, help="Rows of a day.")] = 10_000,
    user_turnover: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the users that leave every day.")
    ] = 0.2,
    item_turnover: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the items that leave every day.")
    ] = 0.1,
    eviction_every: Annotated[
        int, typer.Option(min=1, help="Steps of 500 rows between two updates of a map.")
    ] = 5,
) -> None:
    """Managed tables against vocabularies and hashes, on a stream of drifting ids.

    2,000 users and 1,000 items are present on a day; hashed and managed tables have 3,000 and 1,500
    rows, if not twice as many. A model takes each row once, in order. Its score of a row, before it
    learns from the row, counts: AUC of the rows after the first quarter. Writes
    runs/bench/managed.json.
    """
    check_output(OUT / "managed.json", BENCH_FILE)
    machine = prepare()
    stream = DriftingStream(days, day_rows, 2000, 1000, user_turnover, item_turnover)
    found: dict[str, list[Outcomes]] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder, process_group("cpu") as process:
            for name, config in _configs(Path(folder), stream, seed, eviction_every):
                found.setdefault(name, []).append(_train_once(config, process))
    console.print(text_table("ids that drift", [_row(*each) for each in found.items()]))
    findings = [{"what": n, "rounds": [o._asdict() for o in each]} for n, each in found.items()]
    (OUT / "managed.json").parent.mkdir(parents=True, exist_ok=True)
    content = {"bench": "managed", "machine": machine, "stream": stream._asdict()}
    write_json(OUT / "managed.json", content | {"findings": findings})
    console.print(f"wrote {OUT / 'managed.json'}")


def _configs(
    folder: Path, stream: DriftingStream, seed: int, eviction_every: int
) -> Iterator[tuple[str, RunConfig]]:
    """Yields the name and the config of each way to give ids table rows."""
    raw = drifting_tables(stream, seed)
    write_dataset(raw, folder / "everything", EVERYTHING)
    rows = {"user_id": stream.users * 3 // 2, "item_id": stream.items * 3 // 2}
    managed = {name: Managed(size) for name, size in rows.items()}
    datasets: Mapping[str, dict[str, Hashed] | dict[str, Managed] | None] = {
        "vocabulary of all days": None,
        "vocabulary of the first quarter": None,
        "hash": {name: Hashed(size) for name, size in rows.items()},
        "two hashes": {name: Hashed(size, 2) for name, size in rows.items()},
        "hash, twice the rows": {name: Hashed(2 * size) for name, size in rows.items()},
        **{f"managed, {eviction}": managed for eviction in POLICIES},
    }
    for number, (name, kinds) in enumerate(datasets.items()):
        out = folder / str(number)
        known = folder / "everything" if name == "vocabulary of all days" else None
        write_dataset(raw, out, SPLIT, table_kinds=kinds, grow_from=known)
        options = [f"dataset={out}", f"seed={seed}", "trainer.global_batch=500"]
        options += ["embeddings.dim=8", "embeddings.lr=0.1", "interaction.mode=concat_dot"]
        if name.startswith("managed"):
            options += [f"embeddings.eviction={name.split()[-1]}"]
            options += [f"embeddings.eviction_every_steps={eviction_every}"]
        yield name, load_config(None, options)


def _train_once(config: RunConfig, process: Process) -> Outcomes:
    """Trains on all splits in order of time; the AUC is of the rows of the test split."""
    schema = load_schema(config.dataset)
    knowledge = KnowledgeInputs(config, schema)
    model, _ = build_sharded(config, schema, knowledge, process, None)
    rates, options = config.optimizer, table_spec(config)
    pipeline = BatchPipeline(
        model, process, optimizers(model, options, rates.lr, rates.weight_decay)
    )
    model.train()
    scores, labels, started, num_rows = [], [], time.process_time(), 0
    for split in SPLITS:
        size = config.trainer.global_batch
        loader = build_loader(config, split, process, knowledge, size, shuffle=False)
        num_rows += loader.reader.num_rows
        for outcome in pipeline.outcomes(loader.batches()):
            if split == "test":
                is_row = outcome.row_id >= 0
                scores.append(outcome.outputs[is_row, 0].numpy())
                labels.append(outcome.label[is_row, 0].numpy())
    seconds = time.process_time() - started
    auc = float(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))
    tables = sum(schema.tables.values())
    managed = unwrapped(model).ranker.embeddings.managed
    maps = 0 if managed is None else map_bytes(managed)
    # Row-wise Adagrad keeps one number for each row.
    size = tables * (config.embeddings.dim + 1) * FLOAT_BYTES + maps
    counts = {} if managed is None else managed.named_counts()
    evicted = sum(count for name, count in counts.items() if name.startswith("ids_evicted/"))
    return Outcomes(auc, tables, size, num_rows / seconds, evicted)


def _row(name: str, found: list[Outcomes]) -> dict[str, str]:
    aucs = [each.auc for each in found]
    deviation = statistics.stdev(aucs) if len(aucs) > 1 else 0.0
    evicted = statistics.mean(each.evicted for each in found)
    return {
        "table rows by": name,
        "AUC": f"{statistics.mean(aucs):.4f} ±{deviation:.4f}",
        "rows": f"{statistics.mean(each.rows for each in found):,.0f}",
        "KB": f"{statistics.mean(each.bytes for each in found) / 1024:,.0f}",
        "rows/s of CPU time": f"{statistics.median(each.rows_per_s for each in found):,.0f}",
        "evicted": f"{evicted:,.0f}" if evicted else "",
    }
