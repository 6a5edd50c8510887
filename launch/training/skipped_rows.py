"""Rows that a run excluded: gathered from all ranks, counted, recorded in the run's folder."""

import logging
from pathlib import Path

import torch.distributed as dist

from msrec.data.loading.quarantine import (
    BadRows,
    Quarantine,
    count_reasons,
    count_rows,
    merge_bad_rows,
    write_quarantine,
)
from msrec.data.schema import Split

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


def report_bad_rows(bad_rows: BadRows, quarantine: Quarantine, run_dir: Path, split: Split) -> None:
    """Logs how many rows were excluded and why; writes them if the policy is quarantine."""
    if not bad_rows:
        return
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in count_reasons(bad_rows).items())
    where = ""
    if quarantine.policy == "quarantine":
        path = quarantine_file(run_dir, split)
        write_quarantine(bad_rows, path)
        where = f"; see {path}"
    logger.warning(
        "%s: %s rows left out (%s)%s", split, f"{count_rows(bad_rows):,}", reasons, where
    )
