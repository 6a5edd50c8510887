"""Lines of `msrec bench gpu` on speed and memory of a training step."""

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from msrec.data.loading.batch import Batch
from msrec.data.synthetic.random_rows import random_rows
from msrec.launch.config.run_config import RunConfig, save_config
from msrec.launch.distributed import Process
from msrec.launch.loaders import build_loader
from msrec.launch.training.trainer import Trainer
from msrec.tools.bench.gpu.setting import Found, Setting, synchronize
from msrec.tools.bench.gpu.training import first_batches, train
from msrec.tools.bench.harness.shapes import LARGE_DIM, large_tables
from msrec.tools.planner.command.build_request import request_from_options
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.search.make_plan import make_plan

IN_MEMORY, WARM_UP = 4, 5
"""Distinct batches of a measurement, and its steps that do not count."""
MODEL = (
    *("backbone.name=mmoe", "backbone.expert_dims=[512,256]", "embeddings.dim=32"),
    "interaction.bottom_dims=[128]",
)
TOLERANCE = 0.25
"""Share by which the estimate of a plan may miss the peak of the allocator."""
PLACES = 8
"""Places of synchronisation that the table shows; the JSON file has all."""


def sync(setting: Setting) -> Found:
    """Synchronising CUDA calls of a step, by torch's debug mode: their number and places."""
    setting.require_gpu("torch.cuda.set_sync_debug_mode")
    steps = 10
    with setting.one_rank() as process:
        trainer, batches = _trainer(setting, process, setting.size(4096, 256), WARM_UP + steps)
        steps_done = train(trainer, batches)
        for _ in range(WARM_UP):
            next(steps_done)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                count = sum(1 for _ in steps_done)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(each.filename).parent.name}/{Path(each.filename).name}:{each.lineno}"
        for each in caught
        if "synchroniz" in str(each.message)
    )
    per_step = {place: number / count for place, number in places.most_common()}
    shown = ", ".join(f"{place} {number:g}" for place, number in [*per_step.items()][:PLACES])
    return Found(f"{sum(per_step.values()):.1f} a step: {shown or 'none'}", {"per_step": per_step})


def profiled(setting: Setting) -> Found:
    """Thirty steps in batches of 4 k, 32 k and 128 k rows: rows/s, and idle share of the GPU."""
    sizes = (4_096, 32_768, 131_072) if setting.is_gpu else (256, 512)
    figures: dict[str, dict[str, float | None]] = {}
    with setting.one_rank() as process:
        for size in sizes:
            trainer, batches = _trainer(setting, process, size, IN_MEMORY)
            rate = rows_per_s(setting, trainer, batches)
            idle = _idle_share(trainer, batches) if setting.is_gpu else None
            figures[str(size)] = {"rows_per_s": rate, "idle": idle}
        files = trainer.train.batches()
        from_files = _rate(trainer, files, len(trainer.train) - 1, size)
    figures["from files"] = {"rows_per_s": from_files, "idle": None}
    shown = [
        f"{size}: {each['rows_per_s']:,.0f} rows/s"
        + ("" if each["idle"] is None else f", {each['idle']:.0%} idle")
        for size, each in figures.items()
    ]
    return Found("; ".join(shown), figures)


def precision(setting: Setting) -> Found:
    """TF32, bf16 and fp16 tables against fp32: rows/s, and the loss of a step after them."""
    size = setting.size(32_768, 512)
    options = {
        "fp32": "trainer.precision=fp32",
        "tf32": "trainer.precision=tf32",
        "bf16": "trainer.precision=bf16",
        "fp16 tables": "embeddings.dtype=fp16",
    }
    if not setting.is_gpu:
        del options["tf32"]
    figures = {}
    with setting.one_rank() as process:
        for name, option in options.items():
            trainer, batches = _trainer(setting, process, size, IN_MEMORY, option)
            rate = rows_per_s(setting, trainer, batches)
            (loss,) = train(trainer, batches[:1])
            figures[name] = {"rows_per_s": rate, "loss": float(loss)}
    shown = [
        f"{name} {each['rows_per_s']:,.0f} rows/s, loss {each['loss']:.4f}"
        for name, each in figures.items()
    ]
    return Found("; ".join(shown), figures)


def pinned(setting: Setting) -> Found:
    """Batches in pinned against pageable memory: rows/s of training, ms of the copy of a batch."""
    setting.require_gpu("pinned memory")
    size, figures = setting.size(32_768, 512), {}
    alone = Process(0, 1, 1, torch.device("cpu"))
    with setting.one_rank() as process:
        trainer, batches = _trainer(setting, process, size, IN_MEMORY)
        # The loader of a CPU rank does not pin.
        loader = build_loader(trainer.config, "train", alone, trainer.knowledge, size, shuffle=True)
        pageable = list(itertools.islice(loader.batches(), IN_MEMORY))
        for name, some in (("pinned", batches), ("pageable", pageable)):
            rate = rows_per_s(setting, trainer, some)
            figures[name] = {"rows_per_s": rate, "copy_ms": _copy_ms(some, process.device)}
    shown = [
        f"{name} {each['rows_per_s']:,.0f} rows/s, copy {each['copy_ms']:.2f} ms"
        for name, each in figures.items()
    ]
    return Found("; ".join(shown), figures)


def memory(setting: Setting) -> Found:
    """Peak of the allocator over some steps, against the estimate of `msrec plan`."""
    setting.require_gpu("the allocator's peak")
    data, size = setting.folder / "large", 8_192
    if not data.exists():
        random_rows(data, large_tables(rows=4_000_000, ids=10), rows=60_000)
    options = (*MODEL, f"embeddings.dim={LARGE_DIM}", f"trainer.global_batch={size}")
    config = setting.config("memory", data, *options)
    file = setting.folder / "memory.yaml"
    save_config(config, file)
    plan = make_plan(request_from_options(PlanOptions(file, nodes=1, gpus_per_node=1, gpu="h100")))
    with setting.one_rank() as process:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer = Trainer(config, process)
        for _ in train(trainer, trainer.train.batches()):
            pass
        peak = torch.cuda.max_memory_allocated() - before
        reserved = torch.cuda.max_memory_reserved()
    error = plan.peak_memory / peak - 1
    figures = {"estimate": plan.peak_memory, "peak": peak, "reserved": reserved, "error": error}
    text = (
        f"estimate {plan.peak_memory / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB ({error:+.0%})"
    )
    if abs(error) > TOLERANCE:
        raise ValueError(f"the estimate must be within {TOLERANCE:.0%} of the peak: {text}")
    return Found(text, figures)


def rows_per_s(setting: Setting, trainer: Trainer, batches: Sequence[Batch]) -> float:
    """Returns the speed of training on batches in memory, again and again."""
    steps = setting.size(30, 4)
    return _rate(trainer, itertools.cycle(batches), steps + WARM_UP, len(batches[0].label))


def _rate(trainer: Trainer, batches: Iterable[Batch], steps: int, rows: int) -> float:
    """Returns the rows per second of all steps but the first ones."""
    warm_up = min(WARM_UP, steps // 2)
    done = train(trainer, itertools.islice(batches, steps))
    for _ in range(warm_up):
        next(done)
    synchronize()
    started = time.perf_counter()
    for _ in done:
        pass
    synchronize()
    return (steps - warm_up) * rows / (time.perf_counter() - started)


def _idle_share(trainer: Trainer, batches: Sequence[Batch], steps: int = 30) -> float:
    """Returns the share of the time of some steps in which no kernel or copy ran on the GPU."""
    source = itertools.islice(itertools.cycle(batches), steps)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in train(trainer, source):
            pass
        synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        # An annotation of TorchRec spans kernels and the gaps between them.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return 1 - busy_share(spans)


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the share of the time from the first start to the last end that spans cover.

    Raises:
        ValueError: there is no span.

    Example:
        >>> busy_share([(0, 2), (1, 3), (8, 10)])
        0.5
    """
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("the profiler must see kernels of the GPU; it saw none.")
    first, busy, end = ordered[0][0], 0.0, ordered[0][0]
    for start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / (end - first)


def _trainer(
    setting: Setting, process: Process, size: int, count: int, *options: str
) -> tuple[Trainer, list[Batch]]:
    """Returns a training with batches of `size` rows in memory."""
    # 0.8 of the rows are for training; a few batches more for the line that reads files.
    data = setting.random_data(-(-size * max(count, setting.size(12, 6)) * 10 // 8))
    config: RunConfig = setting.config(
        "speed", data, *MODEL, f"trainer.global_batch={size}", *options
    )
    trainer = Trainer(config, process)
    return trainer, first_batches(trainer, count)


def _copy_ms(batches: Sequence[Batch], device: torch.device) -> float:
    """Returns the milliseconds of a copy of a batch to the device."""
    synchronize()
    started = time.perf_counter()
    copies: Iterator[Batch] = (each.to(device, non_blocking=True) for each in batches)
    kept = list(copies)
    synchronize()
    return 1e3 * (time.perf_counter() - started) / len(kept)
