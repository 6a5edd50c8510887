"""Training loop of a run: steps, validations with early stopping, checkpoints, resume."""

import hashlib
import itertools
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from msrec.data.io.atomic_files import write_json
from msrec.data.loading.loader import Loader
from msrec.data.schema import Schema, Split, load_schema
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.build_model import build_model, build_sharded, init_item_table, table_spec
from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS
from msrec.launch.checkpointing.loading import load_checkpoint
from msrec.launch.checkpointing.run_store import RunStore
from msrec.launch.config.run_config import CONFIG_FILE, RunConfig, check_run_folder, save_config
from msrec.launch.daily.progressive import PROGRESSIVE, progressive_batches
from msrec.launch.daily.warm_start import saved_rows, warm_start
from msrec.launch.distributed import Process, exclusive_job, seed_step
from msrec.launch.job_tracker import JobTracker
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader, eval_batch
from msrec.launch.rank_errors import MAY_PASS
from msrec.launch.trained_run import unwrapped
from msrec.launch.training.heartbeat import Heartbeat
from msrec.launch.training.metric_accumulator import MetricAccumulator, TaskMetrics
from msrec.launch.training.metric_log import load_metric_log
from msrec.launch.training.metric_logger import MetricLogger
from msrec.launch.training.preemption import Preempted, Preemption
from msrec.launch.training.progress import Progress, order_settings
from msrec.launch.training.repeated_failure import check_last_start, forget_failures
from msrec.launch.training.skipped_rows import BadRowReporter
from msrec.launch.training.table_trace import write_table_times
from msrec.launch.training.validation import Validation
from msrec.launch.versions import installed_versions
from msrec.model.distributed.collectives import from_rank_0
from msrec.model.distributed.kernels import set_update_count
from msrec.model.distributed.memory_limit import check_memory, machine_bytes
from msrec.model.distributed.optimizers import Schedule, accumulator, optimizers
from msrec.model.distributed.plan_files.sharding_plan import plan_to_dict
from msrec.model.distributed.replicas import TableReplicas
from msrec.model.layers.precision import check_precision, tf32_products

logger = logging.getLogger(__name__)
FEW_ROWS = 4096
"""Rows of a step on one GPU below which most of a step is its launch, not its work: a guess until
it is measured."""


@dataclass
class FitResult:
    """Result of `Trainer.fit`."""

    progress: Progress
    resumed_from: int | None
    rows_per_s: float = 0.0
    """Training rows per second, without the time of validations and checkpoints."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each global batch that this call trained."""
    preempted: bool = False
    """Whether SIGTERM stopped it; the last checkpoint has its position."""


class Trainer:
    """Builds a run and trains it.

    Raises:
        FileNotFoundError, ValueError: of the dataset, the store, the plan or a checkpoint.
    """

    def __init__(self, config: RunConfig, process: Process) -> None:
        self.config, self.process = config, process
        self.schema = load_schema(config.dataset)
        self._scenarios = [scenario.name for scenario in self.schema.scenarios]
        self.knowledge = KnowledgeInputs(config, self.schema)
        trainer = config.trainer
        check_precision(trainer.precision, process.device)
        _check_memory(config, self.schema, self.knowledge, process)
        _warn_of_few_rows(trainer.global_batch, process)
        self.train = self._loader("train", trainer.global_batch, shuffle=True)
        self.valid = self._loader("valid", eval_batch(config, process.world_size), shuffle=False)
        self.model, self.plan = build_sharded(
            config, self.schema, self.knowledge, process, config.plan
        )
        rates, epoch_steps = config.optimizer, len(self.train)
        self.optimizer = optimizers(
            self.model,
            table_spec(config),
            rates.lr,
            rates.weight_decay,
            rates.meta_lr,
            trainer.max_grad_norm,
            trainer.accumulate,
        )
        self._accumulator = accumulator(self.optimizer)
        self.schedule = Schedule(
            self.optimizer,
            rates.warmup_steps,
            int((rates.decay_epochs or trainer.epochs) * epoch_steps),
            rates.decay,
            rates.frozen_steps(epoch_steps),
        )
        self.pipeline = BatchPipeline(self.model, process, self.optimizer)
        self.checkpoints = Checkpoints(config.run_dir / CHECKPOINTS, trainer.keep)
        all_steps = trainer.epochs * epoch_steps
        self._total_steps = min(all_steps, trainer.max_steps or all_steps)
        self._preemption = Preemption()
        self._heartbeat = Heartbeat(config.run_dir, process, self._total_steps, trainer.hang_s)
        self._validation = Validation(
            config, self.schema, process, self.model, self.pipeline, self._after_scored_batch
        )
        self._metric = self._validation.metric
        self._managed = unwrapped(self.model).ranker.embeddings.managed
        scales = unwrapped(self.model).loss.scales
        self._unlogged = MetricAccumulator(len(self._scenarios), scales, process.device)
        self._bad_rows = BadRowReporter(
            config.run_dir, process, {"train": self.train, "valid": self.valid}
        )
        self._replicas = TableReplicas(self.model, config.embeddings.sync_every)
        self._saved_step: int | None = None

    def resume(self) -> Progress:
        """Loads the newest committed checkpoint of this run or, without one, starts the run.

        Raises:
            ValueError: the checkpoint is of another model, or the rows have another order now.
        """
        order = order_settings(self.train.order)
        newest = self.checkpoints.newest()
        if newest is None:
            config = self.config
            init_item_table(config, self.schema, self.knowledge, self.model, self.plan)
            if config.init_from is not None:
                warm_start(config, self.model, self.optimizer)
            return Progress(order=order, metric=self._metric.name)
        counts = self._unlogged.empty_counts()
        gradients = self._gradients()
        tensors = counts | gradients
        state = load_checkpoint(newest, self.model, self.optimizer, tensors)
        progress = Progress.of_state(state)
        self._saved_step = progress.step
        self._unlogged.restore(counts, progress.unlogged)
        if self._accumulator is not None:
            self._accumulator.resume(progress.step, gradients)
        progress.require_order(order, newest)
        progress.require_metric(self._metric.name, newest)
        return progress

    def fit(self, progress: Progress | None = None) -> FitResult:
        """Trains on from what `resume` returned to the end of the run, or until SIGTERM.

        Raises:
            RepeatedFailure: the last two starts failed at the same step.
        """
        config = self.config
        progress = progress or self.resume()
        digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
        start = check_last_start(config.run_dir, self.train, digest)
        self._heartbeat.start_from(progress.step, start, digest)
        if self.process.is_main:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            ranks = config.embeddings.group_ranks or self.process.world_size
            per_node = min(self.process.local_world_size, ranks)
            plan = plan_to_dict(self.plan, ranks, per_node)
            plan["copies"] = self.process.world_size // ranks
            write_json(config.run_dir / "plan.json", plan)
        result = FitResult(progress, progress.step or None)
        metric_logger = MetricLogger(config.run_dir, self.process, self._total_steps, progress.step)
        with metric_logger, self.checkpoints, self._preemption, self._heartbeat:
            try:
                self._train(result, metric_logger)
            except Preempted:
                self._save(progress)
                result.preempted = True
            except (ValueError, OSError) as error:
                vars(error)[MAY_PASS] = True  # see `repeated_failure`: a step gets another start
                raise
            self.checkpoints.wait()  # "done" says that the last checkpoint is committed
            self._heartbeat.beat("stopped" if result.preempted else "done", progress.step)
            if self.process.is_main:
                forget_failures(config.run_dir)
        if config.trainer.trace and not result.preempted:
            # After the last checkpoint, because it changes the optimizer's state.
            batch = next(self.train.batches()).to(self.process.device)
            with self.pipeline.detached():
                write_table_times(self.model, batch, config.trainer.trace, config.run_dir)
        return result

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """Returns the metrics of a split, see `Validation.metrics`."""
        return self._validation.metrics(loader)

    def _after_scored_batch(self) -> None:
        self._heartbeat.beat("validates")
        self._preemption.check()

    def _train(self, result: FitResult, metric_logger: MetricLogger) -> None:
        progress, trainer = result.progress, self.config.trainer
        started, first_step = time.perf_counter(), progress.step
        if trainer.progressive and progress.step == 0:
            with metric_logger.paused():
                self._validate_progressively(metric_logger)
        while not progress.is_finished(trainer):
            with tf32_products(trainer.precision == "tf32"):
                self._train_until_validation(progress, metric_logger, result.losses)
            with metric_logger.paused():
                self._validate(progress, metric_logger)
        if progress.step > first_step:
            seconds = time.perf_counter() - started - metric_logger.paused_s
            result.rows_per_s = (progress.step - first_step) * trainer.global_batch / seconds

    def _validate_progressively(self, metric_logger: MetricLogger) -> None:
        """Evaluates the initial model on the rows that it will learn, once in the life of a run.

        The line in the log says that it is done.
        """
        config, run_dir = self.config, self.config.run_dir
        if from_rank_0(lambda: PROGRESSIVE in load_metric_log(run_dir).steps):
            return
        rows = from_rank_0(lambda: saved_rows(run_dir))
        batches = progressive_batches(config, self.schema, self.process, self.knowledge, rows)
        metric_logger.log(PROGRESSIVE, 0, 0, self._validation.streaming(batches))

    def _train_until_validation(
        self, progress: Progress, metric_logger: MetricLogger, losses: list[float]
    ) -> None:
        """Trains to the end of the epoch, or to a step in it that is to be validated."""
        trainer = self.config.trainer
        self._heartbeat.beat("trains", progress.step)  # no longer in a validation
        batches = self._heartbeat.waiting(self.train.batches(progress.epoch, progress.batch))
        last_step = progress.next_validation(trainer)
        if last_step is not None:
            batches = itertools.islice(batches, max(0, last_step - progress.step))
        self.model.train()
        set_update_count(self.model, progress.step)
        save_every = trainer.checkpoint_every_steps

        def before_step() -> None:
            self.schedule.apply(progress.step)
            seed_step(self.config.seed, progress.step, self.process.rank)

        for outcome in self.pipeline.outcomes(batches, before_step):
            progress.step += 1
            progress.batch += 1
            self._replicas.sync_after(progress.step)
            self._unlogged.add(outcome)
            # After the last step comes a validation, and the checkpoint comes after that.
            is_last = progress.batch == len(self.train) or progress.step == last_step
            if progress.step % trainer.log_every == 0 or is_last:
                losses += self._log(metric_logger, progress)
            if save_every and progress.step % save_every == 0 and not is_last:
                with metric_logger.paused():
                    self._save(progress)
            self._heartbeat.beat("trains", progress.step)
            self._preemption.check()
        # A checkpoint's values are left if no step is left to train before the validation.
        if not self._unlogged.is_empty():
            losses += self._log(metric_logger, progress)

    def _validate(self, progress: Progress, metric_logger: MetricLogger) -> None:
        self._replicas.sync(progress.step)
        metrics = self.evaluate(self.valid)
        # SIGTERM stops a run up to here. `progress` is unchanged so far, so that the checkpoint
        # that is saved then makes the next start repeat this validation.
        self._bad_rows.report()
        value = metrics.get(self._metric.name)
        if value is None:
            raise ValueError(
                f"{self.config.dataset}/valid must hold rows of both classes for "
                f"{self._metric.name}, which chooses the best checkpoint; it does not. Choose "
                "another trainer.metric."
            )
        progress.note_validation(value, self._metric.sign, len(self.train))
        metric_logger.log("valid", progress.step, progress.epoch, metrics)
        self._save(progress)

    def _save(self, progress: Progress) -> None:
        self._heartbeat.pause()
        unlogged, progress.unlogged = self._read_unlogged(progress)
        if progress.step == self._saved_step and self.checkpoints.amend(vars(progress)):
            return
        self._saved_step = progress.step
        self._replicas.sync(progress.step)
        tensors = unlogged.counts() | self._gradients()
        self.checkpoints.save(self.model, self.optimizer, vars(progress), tensors)

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Returns the gradients that no step has used yet."""
        return {} if self._accumulator is None else self._accumulator.gradients()

    def _log(self, metric_logger: MetricLogger, progress: Progress) -> list[float]:
        """Logs the steps since the last log line; returns their losses."""
        metrics, losses = self._read_unlogged(progress)
        self._unlogged.clear()
        values = {"loss": sum(losses) / len(losses)} | metrics.named(self._scenarios)
        if self._managed is not None:
            values |= self._managed.named_counts()
        rows = len(losses) * self.config.trainer.global_batch
        metric_logger.log_training(progress.step, progress.epoch, rows, values)
        return losses

    def _read_unlogged(self, progress: Progress) -> tuple[TaskMetrics, list[float]]:
        """Returns metrics and losses since the last log line; the steps before did not wait.

        Raises:
            ValueError: a loss or a logit is not finite; on every rank.
        """
        metrics, losses, bad = self._unlogged.reduced()
        if bad is not None:
            steps_ago, values = bad
            step = progress.step - steps_ago + 1
            self._heartbeat.beat("trains", step - 1)  # that is the step that failed, not this one
            raise ValueError(
                f"the loss must be finite; it is {', '.join(f'{loss:g}' for loss in values)} at "
                f"step {step} (epoch {progress.epoch}). Lower optimizer.lr or embeddings.lr; the "
                "newest checkpoint is intact."
            )
        metrics.check()
        return metrics, losses

    def _loader(self, split: Split, global_batch: int, shuffle: bool) -> Loader:
        return build_loader(
            self.config, split, self.process, self.knowledge, global_batch, shuffle=shuffle
        )


def _check_memory(
    config: RunConfig, schema: Schema, knowledge: KnowledgeInputs, process: Process
) -> None:
    """Builds the model without storage, and refuses one that cannot fit."""
    with torch.device("meta"):
        model = build_model(config, schema, knowledge)
    rows = -(-config.trainer.global_batch // process.world_size)
    memory = machine_bytes(process.device, process.local_world_size)
    sharing = config.embeddings.group_ranks or process.world_size
    check_memory(model, rows, sharing, memory // process.local_world_size)


def _warn_of_few_rows(global_batch: int, process: Process) -> None:
    """Warns on rank 0 of a batch that keeps no GPU busy; it is not changed, as results would be."""
    rows = global_batch // process.world_size
    if process.is_main and process.device.type == "cuda" and rows < FEW_ROWS:
        logger.warning(
            "a step has %s rows per GPU (trainer.global_batch=%s on %s ranks); a GPU needs about "
            "%s to be busy. A larger batch is another training: choose its learning rates anew.",
            *(f"{value:,}" for value in (rows, global_batch, process.world_size, FEW_ROWS)),
        )


def train_run(config: RunConfig, process: Process) -> FitResult:
    """Trains a run, or continues it, and saves its config and versions in the run folder.

    Raises:
        FileNotFoundError, ValueError: as `Trainer` and `Trainer.resume`, or another job trains the
            run.
    """
    copy = config.remote_run_dir
    with (
        exclusive_job(config.run_dir, "trained"),
        nullcontext() if copy is None else exclusive_job(copy, "trained", CONFIG_FILE),
    ):
        return _train_run(config, process)


def _train_run(config: RunConfig, process: Process) -> FitResult:
    if process.is_main:
        check_run_folder(config)
    store = run_store(config, process)
    if store is not None:
        store.fetch()
    trainer = Trainer(config, process)
    trainer.checkpoints.store = store
    progress = trainer.resume()  # a config that does not fit the run must not replace its own
    if process.is_main:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.run_dir / CONFIG_FILE)
        write_json(config.run_dir / "versions.json", installed_versions())
        tracker = JobTracker(config, progress.step, process.world_size)
        trainer.checkpoints.on_commit = tracker.record_checkpoint
    result = trainer.fit(progress)
    if store is not None:
        store.finish()
    return result


def run_store(config: RunConfig, process: Process) -> RunStore | None:
    """Returns the copy of a run in an object store; None if `trainer.copy_to` names none."""
    remote = config.remote_run_dir
    if remote is None:
        return None
    is_first = process.rank % process.local_world_size == 0
    return RunStore(config.run_dir, remote, config.trainer.keep, is_first=is_first)
