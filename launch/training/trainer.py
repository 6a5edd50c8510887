"""The training loop: fit with early stopping and resume, evaluate, keep what was reached."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from msrec.data.io.atomic_files import write_json
from msrec.data.loading.batch import Batch
from msrec.data.loading.loader import Loader
from msrec.data.schema import Split, load_schema
from msrec.launch.build import (
    Knowledge,
    build_loader,
    build_sharded,
    eval_batch,
    table_spec,
)
from msrec.launch.checkpointing.checkpoint import Checkpoints, load_checkpoint
from msrec.launch.config import RunConfig
from msrec.launch.distributed import Process, seed_step
from msrec.launch.training.heartbeat import Heartbeat
from msrec.launch.training.metric_accumulator import MetricAccumulator, add_rows, all_reduce_counts
from msrec.launch.training.metric_logger import MetricLogger
from msrec.launch.training.preemption import Preempted, Preemption
from msrec.launch.training.repeated_failure import begin, forget
from msrec.launch.training.skipped_rows import gather_bad_rows, report_bad_rows
from msrec.launch.training.table_trace import TRACE_FILE, trace_tables
from msrec.launch.training.train_step import train_pipeline
from msrec.launch.training.warm_start import parts_record, parts_table, warm_start
from msrec.model.distributed.optimizers import Schedule, optimizers
from msrec.model.distributed.sharding_plan import plan_to_dict
from msrec.model.metrics.definitions import ScenarioMetrics
from msrec.model.metrics.streaming import HistogramMetrics
from msrec.model.ranker import Outcome

HISTOGRAM = "train_histogram"
"""Name of the unlogged metrics in a checkpoint."""
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    `batch` is the number of global batches of `epoch` that were trained on: with the global order
    this is all that a loader needs to go on.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_auc: float | None = None
    best_step: int | None = None
    epochs_without_gain: int = 0
    """Validations, of which there may be several an epoch."""
    validated_step: int | None = None
    order: dict[str, int] = field(default_factory=dict)
    """What the global order depends on: a resumed run must have the same."""
    unlogged: list[float] = field(default_factory=list)
    """Losses of the global batches since the last log line."""


@dataclass
class FitResult:
    """What `Trainer.fit` did."""

    progress: Progress
    resumed_from: int | None
    rows_per_s: float
    """Training rows a second, evaluation and checkpoints left out."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each global batch that this call trained on."""
    preempted: bool = False
    """SIGTERM came; a checkpoint says where to go on."""


class Trainer:
    """Builds a run and trains it.

    Raises:
        FileNotFoundError, ValueError: of the dataset, the store, the plan or a checkpoint.
    """

    def __init__(self, config: RunConfig, process: Process) -> None:
        self.config, self.process = config, process
        self.schema = load_schema(config.dataset)
        self._names = [scenario.name for scenario in self.schema.scenarios]
        self.knowledge = Knowledge(config, self.schema)
        trainer = config.trainer
        self.train = self._loader("train", trainer.global_batch, shuffle=True)
        self.valid = self._loader("valid", eval_batch(config, process.world_size), shuffle=False)
        self.model, self.plan = build_sharded(
            config, self.schema, self.knowledge, process, config.plan
        )
        rates, steps = config.optimizer, len(self.train)
        self.optimizer = optimizers(
            self.model, table_spec(config), rates.lr, rates.weight_decay, rates.meta_lr
        )
        self.schedule = Schedule(
            self.optimizer,
            rates.warmup_steps,
            int((rates.decay_epochs or trainer.epochs) * steps),
            rates.decay,
            rates.frozen_steps(steps),
        )
        self.pipeline = train_pipeline(self.model, self.optimizer, process)
        self.checkpoints = Checkpoints(config.run_dir / "checkpoints", trainer.keep)
        self._unlogged = MetricAccumulator(len(self._names))
        self._preemption = Preemption()
        self._heartbeat = Heartbeat(
            config.run_dir, process, self._total_steps(), config.trainer.hang_s
        )
        self._saved_step: int | None = None
        self._told: dict[Split, int] = {}

    def resume(self) -> Progress:
        """Load the newest committed checkpoint of this run, if there is one.

        Raises:
            ValueError: it is of another model, or its run read the rows in another order.
        """
        order = self.train.order
        now = {
            "rows": order.num_rows,
            "row_groups": len(order.group_rows),
            "global_batch": order.global_batch,
            "seed": order.seed,
            "window_rows": order.window_rows,
        }
        newest = self.checkpoints.newest()
        if newest is None:
            if self.config.init_from is not None:
                self._warm_start(self.config.init_from)
            return Progress(order=now)
        counts = torch.from_numpy(HistogramMetrics(len(self._names)).counts)
        state = load_checkpoint(newest, self.model, self.optimizer, {HISTOGRAM: counts})
        progress = Progress(**state)
        self._saved_step = progress.step
        self._unlogged.restore(counts, progress.unlogged)
        for name, value in now.items():
            if progress.order[name] != value:
                raise ValueError(
                    f"{newest}: a run goes on with the same rows in the same order; its {name} was "
                    f"{progress.order[name]} and is {value} now. Put it back or use another run_id."
                )
        return progress

    def _warm_start(self, source: Path) -> None:
        parts = warm_start(source, self.model, self.config.strict)
        if self.process.is_main:
            Console(stderr=True).print(parts_table(source, parts))
            self.config.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.config.run_dir / "init_from.json", parts_record(source, parts))

    def fit(self, progress: Progress | None = None) -> FitResult:
        """Train on from what `resume` returned until done, or until SIGTERM asks to stop.

        Raises:
            RepeatedFailure: the last two starts failed at the same step.
        """
        config = self.config
        progress = progress or self.resume()
        self._heartbeat.begin(progress.step, begin(config.run_dir, self.train))
        result = FitResult(progress, progress.step or None, 0.0)
        if self.process.is_main:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            ranks = (self.process.world_size, self.process.local_world_size)
            write_json(config.run_dir / "plan.json", plan_to_dict(self.plan, *ranks))
        rows, seconds = 0, 0.0
        steps = (self._total_steps(), progress.step)
        with (
            MetricLogger(config.run_dir, self.process, *steps) as journal,
            self.checkpoints,
            self._preemption,
            self._heartbeat,
        ):
            try:
                while not self._is_finished(progress):
                    started = time.perf_counter()
                    saving_before = journal.seconds_aside
                    first = progress.step
                    self._train_until_validation(progress, journal, result.losses)
                    aside = journal.seconds_aside - saving_before
                    seconds += time.perf_counter() - started - aside
                    rows += (progress.step - first) * config.trainer.global_batch
                    self._validate(progress, journal)
            except Preempted:
                self._save(progress)
                self.checkpoints.wait()
                result.preempted = True
            self._heartbeat.beat("stopped" if result.preempted else "done", progress.step)
            if self.process.is_main:
                forget(config.run_dir)
        result.rows_per_s = rows / seconds if seconds else 0.0
        if config.trainer.trace and not result.preempted:
            self._time_tables(config.trainer.trace)
        return result

    def _time_tables(self, repeats: int) -> None:
        """Time the tables; after the last checkpoint, for it changes what an optimizer holds."""
        batch = next(self.train.batches()).to(self.process.device)
        self.pipeline.detach()  # which sends ids in a way of its own
        ranks = trace_tables(self.model, batch, repeats)
        self.pipeline.attach()
        if self.process.is_main:
            rows = self.config.trainer.global_batch // self.process.world_size
            traced = {"device": self.process.device.type, "batch": rows, "ranks": ranks}
            write_json(self.config.run_dir / TRACE_FILE, traced)

    def evaluate(self, loader: Loader) -> ScenarioMetrics:
        """Streaming metrics of a split, the same on every rank."""
        histogram = HistogramMetrics(len(self._names))
        self.model.eval()
        self._heartbeat.beat("validates")
        with torch.no_grad():
            for outcome in self._outcomes(loader.batches()):
                add_rows(histogram, outcome)
                self._heartbeat.beat("validates")
                self._preemption.check()
        self.model.train()
        all_reduce_counts(histogram)
        return histogram.compute(self._names)

    def _train_until_validation(
        self, progress: Progress, journal: MetricLogger, losses: list[float]
    ) -> None:
        """To the end of the epoch, or to a step in it that is to be validated."""
        trainer = self.config.trainer
        self._heartbeat.beat("trains", progress.step)  # no validation any more
        batches = self._heartbeat.waiting(self.train.batches(progress.epoch, progress.batch))
        last_step = self._next_validation(progress)
        if last_step is not None:
            batches = itertools.islice(batches, max(0, last_step - progress.step))
        self.model.train()
        every = trainer.checkpoint_every_steps

        def before_step() -> None:
            self.schedule.apply(progress.step)
            seed_step(self.config.seed, progress.step, self.process.rank)

        for outcome in self._outcomes(batches, before_step):
            progress.step += 1
            progress.batch += 1
            self._check_finite(outcome.loss, progress)
            self._unlogged.add(outcome)
            # The last step's checkpoint is the one after validation.
            is_last = progress.batch == len(self.train) or progress.step == last_step
            if progress.step % trainer.log_every == 0 or is_last:
                losses += self._log(journal, progress)
            if every and progress.step % every == 0 and not is_last:
                with journal.aside():
                    self._save(progress)
            self._heartbeat.beat("trains", progress.step)
            self._preemption.check()
        if not self._unlogged.is_empty():
            losses += self._log(journal, progress)

    def _next_validation(self, progress: Progress) -> int | None:
        """The next step after which to validate within an epoch; None where its end comes first.

        A run that was stopped between such a step and its validation has that step before it.
        """
        step, every = progress.step, self.config.trainer.validate_every_steps
        known = [] if self.config.trainer.max_steps is None else [self.config.trainer.max_steps]
        if every is not None:
            is_due = step > 0 and step % every == 0 and progress.validated_step != step
            known.append(step if is_due else (step // every + 1) * every)
        return min(known, default=None)

    def _validate(self, progress: Progress, journal: MetricLogger) -> None:
        """Note whether this is the best, save."""
        with journal.aside():
            metrics = self.evaluate(self.valid)  # where SIGTERM may still come
            self._keep_bad_rows()
        if progress.batch == len(self.train):
            progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.validated_step = progress.step
        auc = metrics.all.auc
        if auc is None:
            raise ValueError(
                f"{self.config.dataset}/valid must hold both labels to stop early; it has one "
                "class."
            )
        if progress.best_auc is None or auc > progress.best_auc:
            progress.best_auc, progress.best_step = auc, progress.step
            progress.epochs_without_gain = 0
        else:
            progress.epochs_without_gain += 1
        journal.write("valid", progress.step, progress.epoch, metrics.named())
        with journal.aside():
            self._save(progress)

    def _keep_bad_rows(self) -> None:
        splits: dict[Split, Loader] = {"train": self.train, "valid": self.valid}
        for split, loader in splits.items():
            groups = gather_bad_rows(loader.reader.quarantine)
            if self.process.is_main and len(groups) > self._told.get(split, 0):
                report_bad_rows(groups, loader.reader.quarantine, self.config.run_dir, split)
                self._told[split] = len(groups)

    def _is_finished(self, progress: Progress) -> bool:
        trainer = self.config.trainer
        return (
            progress.epoch >= trainer.epochs
            or progress.epochs_without_gain >= trainer.patience
            or (
                trainer.max_steps is not None
                and progress.step >= trainer.max_steps
                and progress.validated_step == progress.step
            )
        )

    def _save(self, progress: Progress) -> None:
        self._heartbeat.pause()
        histogram, progress.unlogged = self._unlogged.reduced()
        if progress.step == self._saved_step and self.checkpoints.amend(vars(progress)):
            return
        self._saved_step = progress.step
        metrics = {HISTOGRAM: torch.from_numpy(histogram.counts)}
        self.checkpoints.save(self.model, self.optimizer, vars(progress), metrics)

    def _outcomes(
        self, batches: Iterator[Batch], before_step: Callable[[], None] | None = None
    ) -> Iterator[Outcome]:
        """Run batches through the pipeline, which only scores in eval mode."""
        while True:
            if before_step is not None:
                before_step()
            try:
                yield Outcome(*self.pipeline.progress(batches))
            except StopIteration:
                return

    def _log(self, journal: MetricLogger, progress: Progress) -> list[float]:
        """Write one training line; returns the global batches' losses since the last one."""
        histogram, losses = self._unlogged.reduced()
        self._unlogged.clear()
        values = {"loss": sum(losses) / len(losses)} | histogram.compute(self._names).named()
        rows = len(losses) * self.config.trainer.global_batch
        journal.train_line(progress.step, progress.epoch, rows, values)
        return losses

    def _check_finite(self, loss: torch.Tensor, progress: Progress) -> None:
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss must be finite; it is {loss.item()} at step {progress.step} (epoch "
                f"{progress.epoch}). Lower optimizer.lr or embeddings.lr; the newest checkpoint is "
                "intact."
            )

    def _loader(self, split: Split, global_batch: int, shuffle: bool) -> Loader:
        return build_loader(
            self.config, split, self.process, self.knowledge, global_batch, shuffle=shuffle
        )

    def _total_steps(self) -> int:
        whole = self.config.trainer.epochs * len(self.train)
        return min(whole, self.config.trainer.max_steps or whole)
