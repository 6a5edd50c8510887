"""A training whose batches come from where a bench says, again and again, without validation."""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import NoReturn

from msrec.data.loading.batch import Batch
from msrec.launch.config import load_config
from msrec.launch.distributed import Process
from msrec.launch.loaders import build_loader
from msrec.launch.training.progress import Progress
from msrec.launch.training.repeated_failure import forget_failures
from msrec.launch.training.trainer import Trainer
from msrec.tools.bench.harness.measure import Took, now

Source = Callable[[], Iterator[Batch]]


class _Enough(Exception):
    """All steps are done."""


class Training:
    """`msrec train` as it is, with its metrics, schedule and log, but for the batches' source.

    Args:
        dataset: folder.
        folder: for what a run writes.
        options: overrides of the config.
        process: this rank.
    """

    def __init__(
        self, dataset: Path, folder: Path, options: Sequence[str], process: Process
    ) -> None:
        places = [f"dataset={dataset}", f"run_root={folder}"]
        self.config = load_config(None, [*places, *options])
        self._process = process
        self._trainer = Trainer(self.config, process)

    def parquet(self) -> Iterator[Batch]:
        """Batches as a training gets them: decoded and made by the loader's thread."""
        knowledge, size = self._trainer.knowledge, self.config.trainer.global_batch
        loader = build_loader(self.config, "train", self._process, knowledge, size, shuffle=True)
        return loader.batches()

    def batches(self, count: int) -> list[Batch]:
        """The first batches of the training split."""
        return list(itertools.islice(self.parquet(), count))

    def run(self, source: Source, steps: int, skip: int = 0) -> Took:
        """Train; what all steps but the first `skip` took.

        With `skip` 0 the wait for the first batch counts too.
        """
        marks: list[Took] = []

        def marked() -> Iterator[Batch]:
            if skip == 0:
                marks.append(now())
            for number, batch in enumerate(itertools.islice(source(), steps)):
                if number == skip != 0:
                    marks.append(now())
                yield batch
            marks.append(now())

        def stop(epoch: int = 0, start: int = 0) -> NoReturn:
            raise _Enough

        trainer = self._trainer
        trainer.train.batches = lambda epoch=0, start=0: marked()  # type: ignore[method-assign]
        trainer.valid.batches = stop  # type: ignore[method-assign]
        forget_failures(self.config.run_dir)  # each call ends as a failure would
        # Validation and its checkpoint would follow the last step.
        with redirect_stderr(io.StringIO()), suppress(_Enough):
            trainer.fit(Progress())
        (started, processor), (ended, processor_ended) = marks
        return ended - started, processor_ended - processor
