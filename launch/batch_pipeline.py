"""Runs batches through a sharded model: training steps, validation and prediction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import (
    EvalPipelineSparseDist,
    PrefetchTrainPipelineSparseDist,
    TrainPipelineSparseDist,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.loading.batch import Batch
from msrec.launch.distributed import Process
from msrec.model.distributed.managed_tables import update_managed
from msrec.model.managed.managed_ids import ManagedIds
from msrec.model.ranker import Outcome


def pipeline_kind(plan: ShardingPlan, *, trains: bool) -> type[TrainPipelineSparseDist]:
    """Returns TorchRec's pipeline for a plan.

    One that trains with a table in host memory fetches the rows of the next batch into the cache of
    the GPU while the model computes this one, if the table's cache allows it.
    """
    caches = [table.cache_params for module in plan.plan.values() for table in module.values()]
    prefetches = any(cache is not None and cache.prefetch_pipeline for cache in caches)
    kind: type[TrainPipelineSparseDist] = EvalPipelineSparseDist
    if trains:
        kind = PrefetchTrainPipelineSparseDist if prefetches else TrainPipelineSparseDist
    return kind


class BatchPipeline:
    """Takes batches through forward and, in training mode, backward and update.

    In eval mode (`model.eval()`) it only scores. TorchRec's pipelines send the ids of the next
    batch while the model computes this one. On one CPU rank there is nothing to send and they only
    cost time, so the model is called directly; the results are the same.

    Args:
        model: the sharded model.
        process: this rank.
        optimizer: None for a pipeline that only scores, one sequence of batches.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        process: Process,
        optimizer: CombinedOptimizer | None = None,
    ) -> None:
        self._model, self._optimizer, self._device = model, optimizer, process.device
        self._managed = [each for each in model.modules() if isinstance(each, ManagedIds)]
        self._torchrec: TrainPipelineSparseDist | None = None
        if process.world_size > 1 or process.device.type != "cpu":
            kind = pipeline_kind(model.plan, trains=optimizer is not None)
            self._torchrec = kind(model, optimizer, process.device)

    def outcomes(
        self, batches: Iterator[Batch], before_step: Callable[[], None] | None = None
    ) -> Iterator[Outcome]:
        """Yields the outcome of each batch; `before_step` is called before each of them."""
        while True:
            if before_step is not None:
                before_step()
            try:
                outcome = self.progress(batches)
            except StopIteration:
                return
            yield outcome

    def outcomes_on_host(self, batches: Iterator[Batch]) -> Iterator[Outcome]:
        """Yields the outcomes as CPU tensors; a GPU runs the next batch while one is used.

        The copy of an outcome is queued behind its batch and ends while the next batch runs.
        """
        if self._device.type == "cpu":
            yield from self.outcomes(batches)
            return
        waiting: tuple[Outcome, torch.cuda.Event] | None = None
        for outcome in self.outcomes(batches):
            copied = Outcome(*(value.to("cpu", non_blocking=True) for value in outcome))
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
            if waiting is not None:
                waiting[1].synchronize()
                yield waiting[0]
            waiting = copied, done
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]

    def progress(self, batches: Iterator[Batch]) -> Outcome:
        """Runs the next batch.

        Raises:
            StopIteration: no batch is left.
        """
        with torch.set_grad_enabled(self._model.training):
            if self._torchrec is not None:
                outcome = Outcome(*self._torchrec.progress(batches))
            else:
                outcome = self._run_directly(next(batches))
        for managed in self._managed:
            update_managed(self._model, managed)
        return outcome

    def _run_directly(self, batch: Batch) -> Outcome:
        if not self._model.training:
            return Outcome(*self._model(batch)[1])
        assert self._optimizer is not None
        self._optimizer.zero_grad()
        loss, outcome = self._model(batch)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return Outcome(*outcome)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Gives the sharded tables their own forward back, which TorchRec's pipeline replaces."""
        if self._torchrec is not None:
            self._torchrec.detach()
        yield
        if self._torchrec is not None:
            self._torchrec.attach()
