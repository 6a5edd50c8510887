"""What the meta networks add to a bare step, and the form of them that makes no matrices."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

from msrec.data.llm.store import VERSION, VectorSettings, store_settings
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.loading.batch import Batch
from msrec.data.schema import load_schema
from msrec.launch.config import LLMConfig
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.model.layers.generated_linear import GeneratedLinear, make_codes
from msrec.tools.bench.harness.measure import Case, Took, interleaved, rates, sizes, times
from msrec.tools.bench.harness.processes import peak_memory
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.harness.shapes import movielens_tables, shaped
from msrec.tools.bench.harness.training import Training
from msrec.tools.bench.step import IN_MEMORY, SKIP

DIM = 576
WIDTH, RANK = 64, 16
BARE = ["backbone.name=mmoe", "backbone.expert_dims=[64]", "backbone.tower_dims=[64]"]
FORMS = ("contracted", "per row")
MIB = 1 << 20
META = [f"meta.width={WIDTH}", "meta.user=true", "meta.scenario=true"]


def bench_meta(batch: int, steps: int, repeats: int) -> None:
    """Steps with and without the meta networks; one generated layer in two forms.

    Args:
        batch: rows of a step.
        steps: of a round.
        repeats: rounds.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    on = machine()
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        root = Path(scratch)
        data = shaped(root / "data", movielens_tables(), IN_MEMORY, batch)
        store = made_up_store(data, root / "store")
        arms = {"meta": [*BARE, *META, f"llm.store={store}"], "bare": BARE}
        arms = {n: [*o, f"run_id={n}", f"trainer.global_batch={batch}"] for n, o in arms.items()}
        rounds: dict[str, Case] = {}
        operations = []
        for name, options in arms.items():
            training = Training(data, root, options, process)
            batches = training.batches(IN_MEMORY)
            rounds[name] = _steps(training, batches, steps)
            with FlopCounterMode(display=False) as counter:
                training.run(lambda batches=batches: iter(batches[:2]), 2)  # type: ignore[misc]
            operations.append(counter.get_total_flops() / 2e9)
        took = interleaved(rounds, repeats)
        forms = interleaved({name: _layer(name, batch) for name in FORMS}, repeats)
        memory = [peak_memory(some_steps, data, root, options) / MIB for options in arms.values()]
        of_forms = [peak_memory(one_layer, name, batch) / MIB for name in FORMS]
    findings = [
        times(
            "user + scenario on: a step",
            took["meta"],
            took["bare"],
            aim=("at most", 1.3),
            limit="the operations forbid less than their own ratio, next line",
            calls=steps,
        ),
        sizes("user + scenario on: operations", operations[0], operations[1], "GFLOP a step"),
        sizes("user + scenario on: memory", memory[0], memory[1], "MiB", ("at most", 1.2)),
        rates(
            "contracted against W per row",
            forms["contracted"],
            forms["per row"],
            batch,
            aim=("at least", 2.5),
        ),
        sizes("contracted: memory", of_forms[0], of_forms[1], "MiB", ("at most", RANK / WIDTH)),
    ]
    report("meta", f"meta networks of width {WIDTH}, {batch:,} rows, 3 scenarios", findings, on)


def made_up_store(dataset: Path, store: Path) -> Path:
    """A knowledge store of normal numbers for all users and scenarios."""
    settings = store_settings(dataset, VectorSettings(**LLMConfig().encoding))
    settings |= {"version": VERSION, "model_sha256": "0" * 64}
    keys: dict[str, list[Any]] = {
        "user": pl.read_parquet(dataset / "users.parquet")["user_key"].to_list(),
        "scenario": [scenario.name for scenario in load_schema(dataset).scenarios],
    }
    rng = np.random.default_rng(0)
    for level, names in keys.items():
        writer = StoreWriter(store / level, settings | {"level": level}, rank=0, world_size=1)
        rows = {
            "index": list(range(len(names))),
            "key": names,
            "tokens": [1] * len(names),
            "truncated": [False] * len(names),
            "has_history": [True] * len(names),
        }
        writer.write(rows, rng.normal(size=(len(names), DIM)).astype(np.float32))
        writer.finish({"keys": len(names), "no_history": 0, "left_out": 0})
    return store


def some_steps(dataset: Path, folder: Path, options: list[str]) -> Iterator[Took]:
    """Some steps, for their memory."""
    with process_group("cpu") as process:
        training = Training(dataset, folder, options, process)
        batches = training.batches(2)
        yield training.run(lambda: itertools.cycle(batches), 4)


def one_layer(name: str, batch: int) -> Iterator[None]:
    """A layer's forward and backward, for their memory."""
    _layer(name, batch)()
    yield None


def _steps(training: Training, batches: list[Batch], steps: int) -> Callable[[], Took]:
    return lambda: training.run(lambda: itertools.cycle(batches), steps + SKIP, SKIP)


def _layer(name: str, batch: int) -> Callable[[], None]:
    """Forward and backward of a generated layer with a vector of its own for each row."""
    torch.manual_seed(0)
    linear = GeneratedLinear(WIDTH, WIDTH, RANK)
    x = torch.randn(batch, WIDTH, requires_grad=True)
    z = torch.randn(batch, RANK + 1, requires_grad=True)
    key = torch.arange(batch)

    def contracted() -> None:
        torch.autograd.backward(linear(x, make_codes(z, key, "contracted")).sum())

    def per_row() -> None:
        weight = (z @ linear.weight.flatten(1)).view(batch, WIDTH, WIDTH)
        y = torch.bmm(x.unsqueeze(1), weight).squeeze(1) + z @ linear.bias
        torch.autograd.backward(y.sum())

    return {"contracted": contracted, "per row": per_row}[name]
