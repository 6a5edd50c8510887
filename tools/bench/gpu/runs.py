"""Lines of `msrec bench gpu` on whole runs: validation, resume, plans, evaluation, export."""

import json
import math
from collections.abc import Sequence

import msrec
from msrec.data.io.atomic_files import write_json
from msrec.launch.config.run_config import RunConfig, with_overrides
from msrec.launch.distributed import Process, process_group
from msrec.launch.serving.export import export as export_run
from msrec.launch.training.table_trace import TRACE_FILE
from msrec.launch.training.trainer import FitResult, Trainer, train_run
from msrec.tools.bench.gpu.setting import Found, Kind, Setting
from msrec.tools.bench.gpu.training import (
    LIMIT,
    largest_difference,
    local_tensors,
    require_below,
)

RUN = ("embeddings.dim=16", "embeddings.lr=0.05", "backbone.name=mmoe", "trainer.log_every=5")
SCORE_LIMIT = 1e-4
"""Largest difference of a metric between the device and the CPU."""


def validation(setting: Setting) -> Found:
    """Fifty steps with a validation after every 20, both meta networks on."""
    data = setting.random_data(setting.size(200_000, 8_000))
    config = _config(setting, "validation", setting.size(50, 8), setting.size(20, 3), meta=True)
    with setting.one_rank() as process:
        result = train_run(config, process)
    steps, auc = result.progress.step, result.progress.best_value
    if steps != config.trainer.max_steps or not all(map(math.isfinite, result.losses)):
        raise ValueError(f"{config.trainer.max_steps} finite losses must be there; got {result}.")
    if auc is None or not auc > 0.5:
        raise ValueError(f"the validation AUC must be above 0.5 on {data.name}; got {auc}.")
    figures = {"rows_per_s": result.rows_per_s, "auc": auc, "losses": result.losses}
    text = f"{steps} steps, loss {result.losses[0]:.4f} to {result.losses[-1]:.4f}, AUC {auc:.4f}"
    return Found(text, figures)


def resume(setting: Setting) -> Found:
    """A checkpoint and a resumed run, against an undisturbed one; row-wise Adagrad."""
    return _resume(setting, "rowwise_adagrad")


def resume_adam(setting: Setting) -> Found:
    """A checkpoint and a resumed run, against an undisturbed one; Adam for the tables."""
    return _resume(setting, "adam")


def _resume(setting: Setting, optimizer: str) -> Found:
    """Trains a run twice without a stop, and once with one in the middle."""
    steps = setting.size(30, 4)
    of_tables = (f"embeddings.optimizer={optimizer}", "embeddings.lr=0.01")
    options = (*of_tables, "optimizer.warmup_steps=5", "optimizer.decay=cosine")
    with setting.one_rank() as process:

        def undisturbed() -> tuple[list[float], Trainer]:
            config = _config(setting, f"whole-{optimizer}", 2 * steps, steps, *options)
            return _fit(config, process)

        expected, whole = undisturbed()
        repeated, _ = undisturbed()
        config = _config(setting, f"parts-{optimizer}", steps, steps, *options)
        first, _ = _fit(config, process)
        second, resumed = _fit(with_overrides(config, [f"trainer.max_steps={2 * steps}"]), process)
        of_losses = largest_difference(expected, [*first, *second])
        ours, theirs = local_tensors(resumed.model), local_tensors(whole.model)
        of_weights = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    noise = largest_difference(expected, repeated)
    figures = {"losses": of_losses, "weights": of_weights, "repeat": noise}
    require_below(max(LIMIT, 3 * noise) if setting.is_gpu else 0.0, of_losses, "the losses")
    text = (
        f"largest difference of a loss {of_losses:.1e}, of a weight {of_weights:.1e}; two runs "
        f"without a stop differ by {noise:.1e}"
    )
    return Found(text, figures)


def _fit(config: RunConfig, process: Process) -> tuple[list[float], Trainer]:
    trainer = Trainer(config, process)
    return trainer.fit().losses, trainer


def export(setting: Setting) -> Found:
    """A run of the device, loaded on the CPU, exported, and compared with the export."""
    config, _ = _trained(setting, "export")
    out = setting.folder / f"{config.run_id}-served"
    with process_group("cpu") as process:
        manifest = export_run(config.run_dir, out, process, compiled=False)
    parity = manifest.parity
    assert parity is not None
    figures = {"mean": parity.mean_difference, "largest": parity.largest_difference}
    text = f"{parity.rows:,} rows, scores differ by {parity.mean_difference:.1e} on average"
    return Found(text, figures)


def uvm(setting: Setting) -> Found:
    """Tables in host memory with a fifth of the rows cached: trained, saved, evaluated."""
    config, plain = _trained(setting, "fused", trace=0)
    plan = json.loads((config.run_dir / "plan.json").read_text())
    cache = {"compute_kernel": "fused_uvm_caching", "load_factor": 0.2}
    for tables in plan["modules"].values():
        for entry in tables.values():
            entry |= cache if setting.is_gpu else {}  # a CPU has no such kernel
    file = setting.folder / f"{config.run_id}-uvm.json"
    write_json(file, plan)
    cached = with_overrides(config, [f"plan={file}", f"run_id={config.run_id}-uvm"])
    with setting.one_rank() as process:
        result = train_run(cached, process)
    difference = largest_difference(plain.losses, result.losses)
    require_below(LIMIT, difference, "losses of tables in host memory and of others")
    aucs = [_auc(run, setting.kind) for run in (config, cached)]
    require_below(SCORE_LIMIT, abs(aucs[0] - aucs[1]), "test AUCs of both")
    figures = {"loss": difference, "auc": aucs, "rows_per_s": [plain.rows_per_s, result.rows_per_s]}
    return Found(f"losses differ by {difference:.1e}, test AUC {aucs[1]:.4f}", figures)


def evaluate(setting: Setting) -> Found:
    """Metrics, scores of files and traced tables of a run, on the device and on the CPU."""
    config, _ = _trained(setting, "evaluate", trace=3)
    here, on_cpu = _auc(config, setting.kind), _auc(config, "cpu")
    require_below(SCORE_LIMIT, abs(here - on_cpu), "test AUCs on both devices")
    scores = setting.folder / f"{config.run_id}-scores"
    files = config.dataset / "test"
    summary = msrec.predict(config.run_dir, str(files), scores, device=setting.kind)
    assert summary is not None
    trace = json.loads((config.run_dir / TRACE_FILE).read_text())
    times = {name: sum(ms.values()) for name, ms in trace["ranks"][0]["tables"].items()}
    if not all(0 < ms < math.inf for ms in times.values()):
        raise ValueError(f"traced times must be above 0 ms; got {times}.")
    figures = {"auc": here, "auc_on_cpu": on_cpu, "table_ms": times}
    tables = f"{len(times)} tables {sum(times.values()):.2f} ms"
    text = f"test AUC {here:.5f}, on the CPU {on_cpu:.5f}; {summary.rows:,} rows scored; {tables}"
    return Found(text, figures)


def _auc(config: RunConfig, device: Kind) -> float:
    """Evaluates a run on the test split and returns the AUC."""
    results = msrec.evaluate(config.run_dir, resamples=0, device=device)
    assert results is not None
    auc = results.metrics.all.auc
    assert auc is not None
    return float(auc)


def _trained(setting: Setting, name: str, trace: int = 0) -> tuple[RunConfig, FitResult]:
    steps = setting.size(40, 5)
    config = _config(setting, name, steps, steps, f"trainer.trace={trace}")
    with setting.one_rank() as process:
        return config, train_run(config, process)


def _config(
    setting: Setting, name: str, steps: int, validate: int, *options: str, meta: bool = False
) -> RunConfig:
    data = setting.random_data(setting.size(200_000, 8_000))
    limits = [f"trainer.max_steps={steps}", f"trainer.validate_every_steps={validate}"]
    limits += [f"trainer.global_batch={setting.size(4096, 512)}", "trainer.epochs=100"]
    with_meta: Sequence[str] = ()
    if meta:
        with_meta = ("meta.user=true", "meta.scenario=true", f"llm.store={setting.store_of(data)}")
    return setting.config(name, data, *RUN, *limits, "trainer.patience=100", *with_meta, *options)
