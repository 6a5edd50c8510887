"""Rows that a run excluded: gathered from all ranks, counted, recorded in the run's folder."""

import logging
from pathlib import Path

import torch.distributed as dist

from msrec.data.loading.loader import Loader
from msrec.data.loading.quarantine import (
    BadRows,
    Quarantine,
    count_reasons,
    count_rows,
    merge_bad_rows,
    write_quarantine,
)
from msrec.data.schema import Split
from msrec.launch.distributed import Process

logger = logging.getLogger(__name__)


def gather_bad_rows(quarantine: Quarantine) -> BadRows:
    """Returns the bad rows of all ranks, each once; every rank must call this."""
    if not quarantine.excludes:
        return {}
    parts: list[BadRows] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, dict(quarantine.bad_rows))
    return merge_bad_rows(parts)


def quarantine_file(run_dir: Path, split: Split) -> Path:
    """Returns the file that records the bad rows of a split."""
    return run_dir / "quarantine" / f"{split}.parquet"


def report_bad_rows(
    bad_rows: BadRows,
    quarantine: Quarantine,
    folder: Path,
    split: Split,
    final_folder: Path | None = None,
) -> None:
    """Logs how many rows were excluded and why; writes them if the policy is quarantine.

    `final_folder` is the later name of `folder`, for the log.
    """
    if not bad_rows:
        return
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in count_reasons(bad_rows).items())
    where = ""
    if quarantine.policy == "quarantine":
        write_quarantine(bad_rows, quarantine_file(folder, split))
        where = f"; see {quarantine_file(final_folder or folder, split)}"
    logger.warning(
        "%s: %s rows left out (%s)%s", split, f"{count_rows(bad_rows):,}", reasons, where
    )


class BadRowReporter:
    """Reports the bad rows of a run's splits whenever the ranks have found new ones."""

    def __init__(self, run_dir: Path, process: Process, loaders: dict[Split, Loader]) -> None:
        self._run_dir, self._process, self._loaders = run_dir, process, loaders
        self._num_reported: dict[Split, int] = dict.fromkeys(loaders, 0)

    def report(self) -> None:
        """Gathers and reports the bad rows so far; every rank must call this."""
        for split, loader in self._loaders.items():
            quarantine = loader.reader.quarantine
            bad_rows = gather_bad_rows(quarantine)
            if self._process.is_main and len(bad_rows) > self._num_reported[split]:
                report_bad_rows(bad_rows, quarantine, self._run_dir, split)
                self._num_reported[split] = len(bad_rows)
