"""Rows that a run left out: gathered from all ranks, counted, kept in the run's folder."""

import logging
from pathlib import Path

import torch.distributed as dist

from msrec.data.loading.quarantine import (
    BadRows,
    Groups,
    count_reasons,
    count_rows,
    merged,
    write_quarantine,
)
from msrec.data.schema import Split

logger = logging.getLogger(__name__)


def gather_bad_rows(bad_rows: BadRows) -> Groups:
    """What all ranks met, each row once; every rank calls this."""
    if not bad_rows.leaves_out:
        return {}
    found: list[Groups] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, dict(bad_rows.groups))
    return merged(found)


def quarantine_file(run_dir: Path, split: Split) -> Path:
    """Where bad rows of a split are kept."""
    return run_dir / "quarantine" / f"{split}.parquet"


def keep_bad_rows(groups: Groups, bad_rows: BadRows, run_dir: Path, split: Split) -> None:
    """Say what was left out, and with quarantine write it; for one rank."""
    if not groups:
        return
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in count_reasons(groups).items())
    where = ""
    if bad_rows.policy == "quarantine":
        path = quarantine_file(run_dir, split)
        write_quarantine(groups, path)
        where = f"; see {path}"
    logger.warning("%s: %s rows left out (%s)%s", split, f"{count_rows(groups):,}", reasons, where)
