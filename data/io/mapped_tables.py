"""Tables in files that processes map into memory, so that those of a host share one copy."""

from pathlib import Path

import polars as pl
import pyarrow as pa


def write_mapped(path: Path, frame: pl.DataFrame) -> None:
    """Writes a table to an Arrow file, in one batch and without compression."""
    # Strings as views are those of polars too, which would copy strings of other kinds.
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.newest()).combine_chunks()
    with pa.ipc.new_file(str(path), table.schema) as file:
        for batch in table.to_batches():
            file.write_batch(batch)


def read_mapped(path: Path) -> pl.DataFrame:
    """Maps a table that `write_mapped` wrote; only what is used of it is read."""
    return pl.DataFrame(pl.from_arrow(pa.ipc.open_file(pa.memory_map(str(path))).read_all()))
