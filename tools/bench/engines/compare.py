"""The core of a conversion on data frame engines: `python compare.py ENGINE ROWS OUT`.

Counts the values of three features in training, numbers them by count and then by value, replaces
values by numbers, splits by time, shuffles, and writes row groups of 65,536. ENGINE is polars,
daft, daft-ray, ray-data or spark; each needs its package, in an environment without msrec. Prints
the seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, FILE_ROWS, GROUP_ROWS = ("user", "item", "query"), 1_000_000, 65_536


def write_rows(folder: Path, rows: int) -> str:
    """Writes random rows, a user for each 20, an item for 100 and a query for 50; returns files."""
    import polars as pl

    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        count, rng = min(FILE_ROWS, rows - start), np.random.default_rng(number)
        user, item, query = (
            (max(rows // part, 1000) * rng.random(count) ** 3).astype(np.int64)
            for part in (20, 100, 50)
        )
        frame = pl.DataFrame({"user": user * 7919 % 1_000_003_111, "item": item, "query": query})
        frame = frame.with_columns(pl.format("i{}", "item").alias("item"))
        frame = frame.with_columns(pl.format("q {}", "query").alias("query"))
        times = pl.Series("time", start + rng.integers(0, 5 * FILE_ROWS, count))
        price = pl.Series("price", rng.random(count, dtype=np.float32))
        path = folder / f"part-{number:05d}.parquet"
        frame.with_columns(times, price).write_parquet(path, compression="lz4")
    return f"{folder}/*.parquet"


def by_polars(files: str, out: Path) -> None:
    """Streams the rows through one process."""
    import polars as pl

    rows = pl.scan_parquet(files)
    cut = rows.select(pl.col("time").quantile(0.9)).collect(engine="streaming").item()
    train = rows.filter(pl.col("time") < cut)
    for name in FEATURES:
        counts = train.group_by(name).len().collect(engine="streaming")
        values = counts.sort(["len", name], descending=[True, False]).select(name)
        numbers = values.with_row_index("id", 1).lazy()
        number = pl.col("id").fill_null(0).cast(pl.Int32).alias(name)
        rows = rows.join(numbers, on=name, how="left").with_columns(number).drop("id")
    key = pl.struct("user", "item", "time").hash(7)
    for split, part in (("train", pl.col("time") < cut), ("test", pl.col("time") >= cut)):
        shuffled = rows.filter(part).with_columns(k=key).sort("k", "user", "item", "time").drop("k")
        shuffled.sink_parquet(out / f"{split}.parquet", row_group_size=GROUP_ROWS)


def by_daft(files: str, out: Path, on_ray: bool = False) -> None:
    """Joins with numbers of the values, which one process makes."""
    import daft
    import pyarrow as pa
    from daft import col

    if on_ray:
        daft.set_runner_ray()
    rows = daft.read_parquet(files)
    cut = rows.agg(col("time").approx_percentiles(0.9).alias("t")).to_pydict()["t"][0]
    train = rows.where(col("time") < cut)
    for name in FEATURES:
        counts = train.groupby(name).agg(col("time").count().alias("n"))
        values = counts.sort(["n", name], desc=[True, False]).select(name).to_arrow()
        ids = pa.array(np.arange(1, len(values) + 1, dtype=np.int32))
        numbers = daft.from_arrow(values.append_column("id", ids))
        rows = rows.join(numbers, on=name, how="left")
        rows = rows.with_column(name, col("id").fill_null(0)).exclude("id")
    for split, part in (("train", col("time") < cut), ("test", col("time") >= cut)):
        shuffled = rows.where(part).with_column("k", col("time").hash(col("user")))
        shuffled = shuffled.sort(["k", "user", "item", "time"]).exclude("k")
        shuffled.write_parquet(str(out / split), compression="lz4")


def by_ray_data(files: str, out: Path) -> None:
    """Looks up values in arrays that all tasks share."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import ray

    rows = ray.data.read_parquet(str(Path(files).parent))
    batches = rows.select_columns(["time"]).iter_batches(batch_size=None, batch_format="numpy")
    times = np.sort(np.concatenate([batch["time"] for batch in batches]))
    cut = int(times[int(len(times) * 0.9)])
    train, known = rows.filter(expr=f"time < {cut}"), {}
    for name in FEATURES:

        def count(table: Any, name: str = name) -> Any:
            values, counts = table[name].value_counts().flatten()
            return pa.table({name: values, "n": counts})

        counted = train.map_batches(count, batch_format="pyarrow", batch_size=None)
        merged = (
            counted.groupby(name).sum("n").iter_batches(batch_size=None, batch_format="pyarrow")
        )
        order = [("sum(n)", "descending"), (name, "ascending")]
        known[name] = ray.put(pa.concat_tables(merged).sort_by(order)[name].combine_chunks())

    def encode(table: Any) -> Any:
        for name, reference in known.items():
            ids = pc.fill_null(pc.add(pc.index_in(table[name], ray.get(reference)), 1), 0)
            table = table.set_column(table.column_names.index(name), name, ids.cast(pa.int32()))
        return table

    encoded = rows.map_batches(encode, batch_format="pyarrow", batch_size=None)
    for split, sign in (("train", "<"), ("test", ">=")):
        shuffled = encoded.filter(expr=f"time {sign} {cut}").random_shuffle(seed=7)
        shuffled.write_parquet(str(out / split), compression="lz4", row_group_size=GROUP_ROWS)


def by_spark(files: str, out: Path) -> None:
    """Joins with numbers of the values, on two threads."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f
    from pyspark.sql.types import LongType, StructField, StructType

    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "6g")
    spark = builder.config("spark.sql.shuffle.partitions", 16).getOrCreate()
    rows = spark.read.parquet(str(Path(files).parent))
    cut = rows.selectExpr("percentile_approx(time, 0.9, 100000)").first()[0]
    train = rows.where(f.col("time") < cut)
    for name in FEATURES:
        counts = train.groupBy(name).count().orderBy(f.desc("count"), name)
        numbered = counts.rdd.zipWithIndex().map(lambda pair: (pair[0][0], pair[1] + 1))
        fields = [StructField(name, rows.schema[name].dataType), StructField("id", LongType())]
        numbers = spark.createDataFrame(numbered, StructType(fields))
        number = f.coalesce("id", f.lit(0)).cast("int")
        rows = rows.join(numbers, name, "left").withColumn(name, number).drop("id")
    for split, part in (("train", f.col("time") < cut), ("test", f.col("time") >= cut)):
        keyed = rows.where(part).withColumn("k", f.xxhash64("user", "item", "time"))
        shuffled = keyed.orderBy("k", "user", "item", "time").drop("k")
        shuffled.write.parquet(str(out / split))


ENGINES: dict[str, Callable[[str, Path], None]] = {
    "polars": by_polars,
    "daft": by_daft,
    "daft-ray": lambda files, out: by_daft(files, out, on_ray=True),
    "ray-data": by_ray_data,
    "spark": by_spark,
}

if __name__ == "__main__":
    engine, num_rows, folder = sys.argv[1], int(float(sys.argv[2])), Path(sys.argv[3])
    raw = write_rows(folder / "raw", num_rows)
    (folder / "out").mkdir()
    start = time.perf_counter()
    ENGINES[engine](raw, folder / "out")
    print(f"{engine}: {time.perf_counter() - start:.1f} s")
