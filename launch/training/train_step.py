"""What takes batches through forward, backward and update."""

from collections.abc import Iterator

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from msrec.data.loading.batch import Batch
from msrec.launch.distributed import Process
from msrec.model.ranker import Outcome


class DirectPipeline:
    """One batch after another, on one CPU rank, where nothing is sent and nothing overlaps.

    It computes what TorchRec's pipeline does, without what that does to send ids ahead.
    """

    def __init__(self, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> None:
        self._model, self._optimizer = model, optimizer

    def progress(self, batches: Iterator[Batch]) -> Outcome:
        """One step, or in eval mode one forward pass.

        Raises:
            StopIteration: no batch is left.
        """
        batch = next(batches)
        if self._model.training:
            self._optimizer.zero_grad()
        loss, outcome = self._model(batch)
        if self._model.training:
            torch.autograd.backward(loss)
            self._optimizer.step()
        return Outcome(*outcome)

    def detach(self) -> None:
        """The model is as it was."""

    def attach(self) -> None:
        """Nothing is to be put back."""


def train_pipeline(
    model: DistributedModelParallel, optimizer: CombinedOptimizer, process: Process
) -> DirectPipeline | TrainPipelineSparseDist:
    """TorchRec's pipeline, and on one CPU rank, which it only slows down, none."""
    if process.world_size == 1 and process.device.type == "cpu":
        return DirectPipeline(model, optimizer)
    return TrainPipelineSparseDist(model, optimizer, process.device)
