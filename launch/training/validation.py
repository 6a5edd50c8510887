"""Validation of a run: metrics of the validation rows, and of new rows before they are learned."""

from collections.abc import Callable, Iterator

from torchrec.distributed.model_parallel import DistributedModelParallel

from msrec.data.loading.batch import Batch
from msrec.data.loading.loader import Loader
from msrec.data.schema import Schema
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.run_tasks import combined_score
from msrec.launch.trained_run import unwrapped
from msrec.launch.training.chosen_metric import ValidationRows, choose_metric, valid_impressions
from msrec.launch.training.metric_accumulator import TaskMetrics
from msrec.model.distributed.managed_tables import take_lookup_counts
from msrec.model.ranker import Outcome
from msrec.model.score_head import ScoreHead


class Validation:
    """Scores rows while a run trains.

    Args:
        config: of the run.
        schema: of its dataset.
        process: this rank.
        model: the sharded model.
        pipeline: runs batches through the model.
        after_batch: called before the first batch and after each one.

    Attributes:
        metric: chooses the best checkpoint.

    Raises:
        ValueError: `trainer.metric` or `objective.score` do not fit the run.
    """

    def __init__(
        self,
        config: RunConfig,
        schema: Schema,
        process: Process,
        model: DistributedModelParallel,
        pipeline: BatchPipeline,
        after_batch: Callable[[], None],
    ) -> None:
        train = unwrapped(model)
        self._model, self._pipeline, self._after_batch = model, pipeline, after_batch
        self._device, self._scales = process.device, train.loss.scales
        self._managed = train.ranker.embeddings.managed
        self._scenarios = [scenario.name for scenario in schema.scenarios]
        self._head = ScoreHead(self._scales, combined=combined_score(config, schema))
        self.metric = choose_metric(
            config.trainer.metric,
            self._scales.tasks,
            self._scenarios,
            has_impressions=schema.impression is not None,
            has_formula=self._head.combined is not None,
        )
        self._impressions = valid_impressions(config, schema, self.metric)

    def metrics(self, loader: Loader) -> dict[str, float]:
        """Returns the metrics of a split by their names in logs, the same on every rank.

        They are streaming metrics, and exact ones of a label if `metric` needs them.
        """
        rows = ValidationRows(self.metric, self._head, self._impressions)
        named = self.streaming(loader.batches(), rows.add)
        without_row = {
            f"share_without_row/{name}": count.unknown / max(count.values, 1)
            for name, count in take_lookup_counts(self._managed).items()
        }
        return named | rows.named(self._scenarios) | without_row

    def streaming(
        self, batches: Iterator[Batch], add: Callable[[Outcome], None] | None = None
    ) -> dict[str, float]:
        """Returns the streaming metrics of batches by their names in logs, the same on every rank.

        Args:
            batches: of this rank.
            add: called with the outcome of each batch.
        """
        metrics = TaskMetrics(len(self._scenarios), self._scales, self._device)
        if self._managed is not None:
            self._managed.lookups.zero_()
        self._model.eval()
        self._after_batch()
        for outcome in self._pipeline.outcomes(batches):
            metrics.add(outcome)
            if add is not None:
                add(outcome)
            self._after_batch()
        self._model.train()
        metrics.all_reduce()
        return metrics.named(self._scenarios)
