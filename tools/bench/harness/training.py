"""Training with batches from a source that the bench chooses, and without validation."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import NoReturn

from msrec.data.io.paths import AnyPath
from msrec.data.loading.batch import Batch
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.loaders import build_loader
from msrec.launch.training.progress import Progress
from msrec.launch.training.repeated_failure import forget_failures
from msrec.launch.training.trainer import Trainer
from msrec.tools.bench.harness.measure import Seconds, now

IN_MEMORY = 12
"""Distinct batches of a training on batches in memory."""
WARM_UP_STEPS = 5
"""Steps at the beginning of a round that do not count."""
Source = Callable[[], Iterator[Batch]]


class _AllStepsDone(Exception):
    """Ends `Trainer.fit` after the last step."""


class Training:
    """`msrec train` with its metrics, schedule and log, but with another source of batches.

    Args:
        dataset: dataset folder.
        run_root: folder for the files of the run.
        options: overrides of the config.
        process: this rank.
        config: config file of the run, or None for the defaults.
    """

    def __init__(
        self,
        dataset: AnyPath,
        run_root: Path,
        options: Sequence[str],
        process: Process,
        config: Path | None = None,
    ) -> None:
        folders = [f"dataset={dataset}", f"run_root={run_root}"]
        self.config = load_config(config, [*folders, *options])
        self._process, self.device = process, process.device
        self._trainer = Trainer(self.config, process)

    def parquet(self) -> Iterator[Batch]:
        """Yields batches as in a real training: read and assembled by the loader's thread."""
        knowledge, size = self._trainer.knowledge, self.config.trainer.global_batch
        loader = build_loader(self.config, "train", self._process, knowledge, size, shuffle=True)
        return loader.batches()

    def batches(self, count: int = IN_MEMORY) -> list[Batch]:
        """Returns the first batches of the training split."""
        return list(itertools.islice(self.parquet(), count))

    def in_memory(self, steps: int) -> Callable[[], Seconds]:
        """Returns a case that times `steps` steps on batches in memory, after a warm-up."""
        batches = self.batches()
        return lambda: self.run(
            lambda: itertools.cycle(batches), WARM_UP_STEPS + steps, WARM_UP_STEPS
        )

    def run(self, source: Source, steps: int, skip: int = 0) -> Seconds:
        """Trains and returns the time of all steps but the first `skip`.

        With `skip` 0 the wait for the first batch counts too.
        """
        marks: list[Seconds] = []

        def marked() -> Iterator[Batch]:
            if skip == 0:
                marks.append(now())
            for number, batch in enumerate(itertools.islice(source(), steps)):
                if number == skip != 0:
                    marks.append(now())
                yield batch
            marks.append(now())

        def stop(epoch: int = 0, start: int = 0) -> NoReturn:
            raise _AllStepsDone

        trainer = self._trainer
        trainer.train.batches = lambda epoch=0, start=0: marked()  # type: ignore[method-assign]
        trainer.valid.batches = stop  # type: ignore[method-assign]
        forget_failures(self.config.run_dir)  # each call ends as a failure would
        # Validation and its checkpoint would follow the last step.
        with redirect_stderr(io.StringIO()), suppress(_AllStepsDone):
            trainer.fit(Progress())
        started, ended = marks
        return ended - started
