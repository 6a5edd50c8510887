"""Measured times of any trainer: traces of torch.profiler (Kineto), or a table of milliseconds."""

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNELS = {
    "fwd_compute": re.compile(r"embedding\w*_forward"),
    "bwd_compute": re.compile(
        r"embedding\w*_backward|grad_indice_weights|linearize_index"
        # CUB's kernels, with which FBGEMM sorts the ids before the update.
        r"|DeviceRadixSort|DeviceRunLengthEncode"
    ),
    "comms": re.compile(r"nccl\w*(SendRecv|ReduceScatter|AllGather)"),
    "all_reduce": re.compile(r"nccl\w*AllReduce"),
}
"""Part of a step -> names of its kernels, by FBGEMM and NCCL. All-reduces are of the dense part."""
CPU_OPERATORS = re.compile(r"fbgemm::\w+_cpu$")
"""Operators of a trace without a GPU; others call these and would count twice."""
ID_TYPES = ("Long", "Int")
"""Types of a collective's values that are ids or lengths, not vectors."""
STEP_MARK = re.compile(r"ProfilerStep#(\d+)")


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a step, measured.

    Attributes:
        ranks: rank -> part of the step -> milliseconds. The parts are those of `KERNELS`, and
            `ids` for the collectives of ids.
        tables: table -> rank -> milliseconds of both directions; empty for a trace, whose kernels
            look up several tables.
    """

    ranks: Mapping[int, Mapping[str, float]]
    tables: Mapping[str, Mapping[int, float]]


def read_measured(path: Path) -> Measured:
    """Reads a trace (JSON, or .gz), a folder with one trace of each rank, or a CSV file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file has another content, no marked step, or a rank twice.
    """
    if path.suffix == ".csv":
        return _read_csv(path)
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"{path} must be a trace of torch.profiler (.json or .json.gz), a folder with traces, "
            "or a CSV file with table, rank and ms; there is none."
        )
    ranks: dict[int, Mapping[str, float]] = {}
    for file in files:
        rank, parts = _read_trace(file)
        if rank in ranks:
            raise ValueError(f"{path} must have one trace of each rank; rank {rank} has two.")
        ranks[rank] = parts
    return Measured(ranks, {})


def _read_trace(file: Path) -> tuple[int, dict[str, float]]:
    """Returns the rank of a trace and its milliseconds of a step, by part."""
    raw = file.read_bytes()
    try:
        tree = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        events: list[dict[str, Any]] = [e for e in tree["traceEvents"] if e.get("ph") == "X"]
        rank = int(tree.get("distributedInfo", {}).get("rank", 0))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
        raise ValueError(f"{file} must be a trace of torch.profiler; {error!r:.80}.") from None
    steps = {match[1] for event in events if (match := STEP_MARK.match(event["name"]))}
    if not steps:
        raise ValueError(
            f"{file} must mark its steps; it has no ProfilerStep. Give the profiler a schedule and "
            "call its step() after each batch."
        )
    parts = dict.fromkeys((*KERNELS, "ids"), 0.0)
    for part, us in _parts_of(events):
        parts[part] += us / 1e3 / len(steps)
    if not any(parts[part] for part in ("fwd_compute", "bwd_compute", "comms")):
        raise ValueError(
            f"{file} must have kernels of FBGEMM or NCCL; none of its {len(events):,} events is "
            "one."
        )
    return rank, parts


def _parts_of(events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yields the part of each event that belongs to the tables, and its microseconds."""
    kernels = [event for event in events if event.get("cat") == "kernel"]
    for event in kernels or [e for e in events if CPU_OPERATORS.search(e["name"])]:
        name = event["name"]
        part = next((part for part, names in KERNELS.items() if names.search(name)), None)
        if part == "comms" and event.get("args", {}).get("dtype") in ID_TYPES:
            part = "ids"
        if part is not None:
            yield part, float(event.get("dur", 0))


def _read_csv(path: Path) -> Measured:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be a CSV file with table, rank and ms; it is not there."
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    tables: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            table, rank, ms = row["table"], int(row["rank"]), float(row["ms"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path} must have a table, a whole rank and its ms in each row; row {number} has "
                f"{dict(row)}."
            ) from None
        if not 0 <= ms < 1e9 or rank in tables.setdefault(table, {}):
            raise ValueError(
                f"{path} must have one time of 0 ms or more for a table on a rank; row {number} "
                f"has {ms} for {table} on rank {rank}."
            )
        tables[table][rank] = ms
    if not tables:
        raise ValueError(f"{path} must have at least one row; it has none.")
    on_ranks = sorted({rank for of_table in tables.values() for rank in of_table})
    sums = {r: {"compute": sum(t.get(r, 0.0) for t in tables.values())} for r in on_ranks}
    return Measured(sums, tables)
