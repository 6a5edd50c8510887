"""Makes small inputs of the commands that `msrec torture` kills, from a dataset folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from msrec.data.io.yaml_files import write_yaml
from msrec.data.schema import load_schema

RAW_ROWS, ROWS_PER_FILE, NUM_FILES = 20_000, 2_000, 6


def make_inputs(dataset: Path, folder: Path, run: Callable[[Sequence[str]], None]) -> None:
    """Writes raw tables (`raw`), rows to score (`rows`), and a trained run (`runs/run`).

    Args:
        dataset: the dataset folder.
        folder: folder for the inputs.
        run: runs a command to its end.
    """
    (folder / "raw").mkdir(parents=True)
    (folder / "rows").mkdir()
    files = sorted((dataset / "train").glob("*.parquet"))
    rows = pl.concat(pl.read_parquet(path, glob=False) for path in files)
    rows = rows.head(max(RAW_ROWS, ROWS_PER_FILE * NUM_FILES))
    for number in range(NUM_FILES):
        part = rows.slice(number * ROWS_PER_FILE, ROWS_PER_FILE)
        if part.height:
            part.write_parquet(folder / "rows" / f"{number}.parquet")
    _write_raw(dataset, rows.head(RAW_ROWS), folder / "raw")
    config = {
        "dataset": str(dataset.resolve()),
        "run_root": str(folder / "runs"),
        "run_id": "run",
        "device": "cpu",
        "embeddings": {"dim": 8},
        "trainer": {"global_batch": 512, "epochs": 1},
    }
    write_yaml(folder / "run.yaml", config)
    run(["train", str(folder / "run.yaml")])


def _write_raw(dataset: Path, rows: pl.DataFrame, folder: Path) -> None:
    """Writes plain tables as `msrec convert tables` reads them."""
    schema = load_schema(dataset)
    names = pl.Series([scenario.name for scenario in schema.scenarios])
    interactions = {"scenario": names.gather(rows["scenario"]), "label": rows[schema.labels[0]]}
    for side in ("user", "item"):
        table = pl.read_parquet(dataset / f"{side}s.parquet", glob=False)
        interactions[f"{side}_id"] = table[f"{side}_key"].gather(rows[side])
        table.rename({f"{side}_key": f"{side}_id"}).write_parquet(folder / f"{side}s.parquet")
    # The order of the rows serves as time, which every dataset has.
    interactions["timestamp"] = pl.Series(range(rows.height), dtype=pl.Int64)
    pl.DataFrame(interactions).write_parquet(folder / "interactions.parquet")
