"""`msrec bench meta`, `interest`: cost of generated layers and of interest blocks."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from msrec.data.io.paths import local_path
from msrec.data.llm.store import VERSION, VectorSettings, store_settings
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.schema import load_schema
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import load_config
from msrec.launch.devices import rank_device
from msrec.launch.distributed import process_group
from msrec.model.layers.generated_linear import GeneratedLinear, make_codes
from msrec.tools.bench.harness.measure import (
    Case,
    Finding,
    Seconds,
    compare_all,
    compare_times,
    compare_values,
    interleaved,
)
from msrec.tools.bench.harness.options import Batch, Repeats, Steps
from msrec.tools.bench.harness.processes import peak_memory
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import movielens_tables, write_random
from msrec.tools.bench.harness.training import IN_MEMORY, Training

VECTOR_DIM = 576
"""Size of the knowledge vectors, as of SmolLM2-135M."""
WIDTH, RANK = 64, 16
"""Of the single layer."""
MMOE = "backbone.name=mmoe"
NARROW = [MMOE, "backbone.expert_dims=[64]", "backbone.tower_dims=[64]"]
SIZES: dict[str, tuple[list[str], float]] = {"default": ([MMOE], 1.3), "narrow": (NARROW, 1.6)}
"""Options of the bare model, and the largest time of a step with meta networks against it."""
FORMS = ("contracted", "W per row")
MIB = 1 << 20


def bench_meta(batch: Batch = 4096, steps: Steps = 10, repeats: Repeats = 7) -> None:
    """A training step with meta networks, against the bare model.

    The MMoE has its default layers or narrow ones (experts and towers of 64), the meta networks
    their default width, generated in full or factored.

    Also runs one generated layer in its contracted form, against a weight matrix per row.
    """
    on = prepare()
    with tempfile.TemporaryDirectory() as scratch:
        findings = _compare_training(Path(scratch), batch, steps, repeats)
    findings += _compare_forms(batch, repeats)
    report("meta", f"user and scenario meta networks, {batch:,} rows, 3 scenarios", findings, on)


def bench_interest(
    config: Annotated[
        Path, typer.Argument(help="Config of a run with interest blocks.", parser=local_path)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options that replace those of the file.")
    ] = None,
    steps: Steps = 10,
    repeats: Repeats = 7,
) -> None:
    """A training step with interest blocks, against the same model without them.

    Batches are those of the config's data set, with its histories, in memory.

    Raises:
        ValueError: the config has no interest blocks.
    """
    run = load_config(config, overrides or [])
    if not run.interest.enabled:
        raise ValueError(f"{config} must have interest.enabled=true; it is false.")
    on = prepare()
    off = ["interest.enabled=false", "llm.sources=[]", "sequence.protocol=null"]
    with tempfile.TemporaryDirectory() as root, process_group() as process:
        cases: dict[str, Case] = {}
        for name, options in {"interest": [], "bare": off}.items():
            options = [*(overrides or []), *options, f"run_id={name}"]
            training = Training(run.dataset, Path(root), options, process, config)
            cases[name] = training.in_memory(steps)
        rounds = interleaved(cases, repeats)
    what = f"{', '.join(run.llm.sources)}: a step"
    both = rounds["interest"], rounds["bare"]
    findings = [compare_times(what, *both, steps, ("at most", 1.35))]
    rows, events = run.trainer.global_batch, run.sequence.max_len
    report("interest", f"interest blocks, {rows:,} rows, {events} events", findings, on)


def _compare_training(root: Path, batch: int, steps: int, repeats: int) -> list[Finding]:
    data = write_random(root / "data", movielens_tables(), IN_MEMORY, batch)
    store = write_random_store(data, root / "store")
    findings = []
    with process_group() as process:
        for size, (bare, aim) in SIZES.items():
            meta = [*bare, "meta.user=true", "meta.scenario=true", f"llm.store={store}"]
            arms = {"generated": meta, "factored": [*meta, "meta.form=factored"], "bare": bare}
            cases: dict[str, Case] = {}
            gflop, mib = dict[str, float](), dict[str, float]()
            for name, arm in arms.items():
                options = [*arm, f"run_id={size}-{name}", f"trainer.global_batch={batch}"]
                training = Training(data, root, options, process)
                cases[name] = training.in_memory(steps)
                gflop[name] = _gflop_per_step(training)
                mib[name] = peak_memory(few_steps, data, root, options) / MIB
            rounds = interleaved(cases, repeats)
            for name in ("generated", "factored"):
                what, both = f"{size} MMoE, {name}", (rounds[name], rounds["bare"])
                findings += [
                    compare_times(f"{what}: a step", *both, steps, ("at most", aim)),
                    compare_values(
                        f"{what}: operations", gflop[name], gflop["bare"], "GFLOP a step"
                    ),
                    compare_values(f"{what}: memory", mib[name], mib["bare"], "MiB"),
                ]
    return findings


def _gflop_per_step(training: Training) -> float:
    batches = training.batches(2)
    with FlopCounterMode(display=False) as counter:
        training.run(lambda: iter(batches), len(batches))
    return float(counter.get_total_flops()) / len(batches) / 1e9


def few_steps(dataset: Path, run_root: Path, options: list[str]) -> Iterator[Seconds]:
    """Trains four steps once, for `peak_memory`."""
    with process_group("cpu") as process:  # whose memory is that of the process
        training = Training(dataset, run_root, options, process)
        batches = training.batches(2)
        yield training.run(lambda: itertools.cycle(batches), 4)


def _compare_forms(batch: int, repeats: int) -> list[Finding]:
    device = rank_device()
    rounds = interleaved({form: _layer(form, batch, device) for form in FORMS}, repeats)
    contracted, per_row = (peak_memory(one_layer, form, batch) / MIB for form in FORMS)
    return [
        *compare_all("contracted", rounds, batch, aims={"W per row": ("at least", 2.5)}),
        compare_values("contracted: memory", contracted, per_row, "MiB", ("at most", RANK / WIDTH)),
    ]


def one_layer(form: str, batch: int) -> Iterator[None]:
    """Runs a layer forward and backward once, for `peak_memory`."""
    _layer(form, batch, torch.device("cpu"))()
    yield None


def _layer(form: str, batch: int, device: torch.device) -> Case:
    """Returns forward and backward of a generated layer with another vector in each row."""
    torch.manual_seed(0)
    linear = GeneratedLinear(WIDTH, WIDTH, RANK).to(device)
    x = torch.randn(batch, WIDTH, requires_grad=True, device=device)
    z = torch.randn(batch, RANK + 1, requires_grad=True, device=device)
    key = torch.arange(batch, device=device)

    def contracted() -> None:
        torch.autograd.backward(linear(x, make_codes(z, key, "contracted")).sum())

    def per_row() -> None:
        weight = (z @ linear.weight.flatten(1)).view(batch, WIDTH, WIDTH)
        y = torch.bmm(x.unsqueeze(1), weight).squeeze(1) + z @ linear.bias
        torch.autograd.backward(y.sum())

    return contracted if form == "contracted" else per_row


def write_random_store(dataset: Path, store: Path) -> Path:
    """Writes a knowledge store of normal numbers for all users and scenarios."""
    settings = store_settings(dataset, VectorSettings(**LLMConfig().encoding))
    settings |= {"version": VERSION, "model_sha256": "0" * 64}
    keys: dict[str, list[Any]] = {
        "user": pl.read_parquet(dataset / "users.parquet", glob=False)["user_key"].to_list(),
        "scenario": [scenario.name for scenario in load_schema(dataset).scenarios],
    }
    rng = np.random.default_rng(0)
    for level, names in keys.items():
        writer = StoreWriter(store / level, settings | {"level": level})
        rows = {
            "index": list(range(len(names))),
            "key": names,
            "tokens": [1] * len(names),
            "truncated": [False] * len(names),
            "has_history": [True] * len(names),
        }
        writer.write(rows, rng.normal(size=(len(names), VECTOR_DIM)).astype(np.float32))
        writer.finish({"keys": len(names), "no_history": 0, "left_out": 0})
        writer.merge()
    return store
