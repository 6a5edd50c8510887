"""Progressive validation: a day's rows are scored by the model that has not learned them yet."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Columns, Ids, map_ids
from msrec.data.features.vocabulary import UNKNOWN
from msrec.data.loading.batch import Batch
from msrec.data.schema import Schema, SparseFeature
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.evaluation.results import LabelResults, Results, save_results
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader, eval_batch
from msrec.model.metrics.definitions import ScenarioMetrics
from msrec.model.tasks import Task

PROGRESSIVE = "progressive"
"""Name of the split in logs and results."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownIds:
    """Replaces ids that a table has only since it grew by row 0, as a server of the old model does.

    Args:
        schema: of the dataset.
        rows: table -> rows before it grew.
    """

    schema: Schema
    rows: Mapping[str, int]

    def apply(self, columns: Columns, rows: npt.NDArray[np.int64], epoch: int) -> Columns:
        """Returns the columns with new ids as row 0; see `IdTransform`."""

        def known(feature: SparseFeature, ids: Ids, row: Any) -> Ids:
            size = self.rows.get(feature.table)
            return ids if size is None else np.where(ids < size, ids, np.int32(UNKNOWN))

        return map_ids(self.schema, columns, known)


def progressive_batches(
    config: RunConfig,
    schema: Schema,
    process: Process,
    knowledge: KnowledgeInputs,
    old_rows: Mapping[str, int],
) -> Iterator[Batch]:
    """Yields this rank's batches of the share `trainer.progressive` of the training rows.

    No id is dropped. A share below 1 is a random one: the first batches of a shuffled epoch.

    Args:
        config: of the run.
        schema: of the dataset.
        process: this rank.
        knowledge: vectors, histories and rare ids of the run.
        old_rows: table -> rows that the initial model knows, of tables that grew.
    """
    share = config.trainer.progressive
    embeddings = config.embeddings.model_copy(update={"id_dropout": {}})
    loader = build_loader(
        config.model_copy(update={"embeddings": embeddings}),
        "train",
        process,
        knowledge,
        eval_batch(config, process.world_size),
        shuffle=share < 1,
        first=[KnownIds(schema, old_rows)],
    )
    if process.is_main and (config.history.of or knowledge.user is not None):
        logger.warning(
            "the metrics of %s may be too high: histories (history.of) and user vectors are made "
            "of all training rows, later ones than the scored row among them",
            PROGRESSIVE,
        )
    return islice(loader.batches(), math.ceil(share * len(loader)))


def save_progressive(
    run_dir: Path,
    schema: Schema,
    checkpoint: str,
    tasks: Sequence[Task],
    metrics: Sequence[ScenarioMetrics],
) -> None:
    """Writes the streaming metrics of each label as the results of the split `progressive`.

    Args:
        run_dir: of the run.
        schema: of the dataset.
        checkpoint: name of the checkpoint that the run started from.
        tasks: labels of the run, the first one first.
        metrics: of each label.
    """
    labels = {
        task.name: LabelResults(kind="binary" if task.is_binary else "regression", metrics=values)
        for task, values in zip(tasks, metrics, strict=True)
    }
    first = labels.pop(tasks[0].name)
    results = Results(
        dataset=schema.name,
        split=PROGRESSIVE,
        checkpoint=checkpoint,
        rows=first.metrics.all.rows,
        label=tasks[0].name,
        kind=first.kind,
        metrics=first.metrics,
        labels=labels,
    )
    folder = run_dir / "predictions" / PROGRESSIVE
    folder.mkdir(parents=True, exist_ok=True)
    save_results(results, folder)
