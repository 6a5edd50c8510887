"""Counts the lookups of each id in the training rows of a data set, for `msrec plan`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import FileKind, check_output
from msrec.data.io.paths import AnyPath
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import load_schema
from msrec.tools.planner.popularity import count_points
from msrec.tools.planner.sources.id_counts import IdCounts, TableCounts, read_id_counts

Counts = npt.NDArray[np.int64]
"""(n,) each: distinct ids, and the lookups of each."""


def write_id_counts(dataset: AnyPath, out: Path) -> IdCounts:
    """Counts the ids of all tables in the training split and writes a JSON file.

    Of each table it holds the share of lookups of the k most popular ids, for k with a constant
    ratio. Managed features are left out: their tables do not have fixed ids.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: `out` exists and is another file, or a row is broken.
    """
    check_output(out, FileKind("a file of msrec show --id-counts", _is_counts), [])
    schema = load_schema(dataset)
    tables = {f.name: f.table for f in schema.sparse if not f.managed}
    reader = SplitReader(dataset, schema, "train", columns=list(tables))
    found: dict[str, tuple[Counts, Counts]] = {}
    for first, end in zip(reader.starts[:-1], reader.starts[1:], strict=True):
        for feature, values in reader.take(np.arange(first, end)).items():
            if feature not in tables:
                continue  # marks of bad rows
            is_list = isinstance(values, pa.ListArray)
            ids = values.flatten().to_numpy() if is_list else values
            found[tables[feature]] = _added(found.get(tables[feature]), *_counted(ids))
    counts = IdCounts(
        dataset=schema.name,
        tables={
            name: TableCounts(
                rows=schema.tables[name],
                lookups=int(number.sum()),
                distinct=len(ids),
                points=tuple(count_points(number)),
            )
            for name, (ids, number) in found.items()
        },
    )
    write_text(out, counts.model_dump_json(indent=1) + "\n")
    return counts


def _counted(ids: npt.NDArray[np.int32]) -> tuple[Counts, Counts]:
    distinct, number = np.unique(ids, return_counts=True)
    return distinct.astype(np.int64), number.astype(np.int64)


def _added(
    before: tuple[Counts, Counts] | None, ids: Counts, number: Counts
) -> tuple[Counts, Counts]:
    """Returns the counts of both."""
    if before is None:
        return ids, number
    distinct, position = np.unique(np.concatenate([before[0], ids]), return_inverse=True)
    total = np.bincount(position, weights=np.concatenate([before[1], number]))
    return distinct, total.astype(np.int64)


def _is_counts(path: Path) -> bool:
    try:
        read_id_counts(path)
    except ValueError:
        return False
    return True
