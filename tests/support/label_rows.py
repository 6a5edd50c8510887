"""A tiny dataset with several labels, weights and impressions, and a run on it."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny import tiny_dataset, tiny_schema

from msrec.data.features.vocabulary import Vocabulary, save_vocabularies
from msrec.data.labels import LabelOptions, LabelScale
from msrec.data.schema import SPLITS, save_schema
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer

LABELS = ["label", "like", "buy", "watch"]
FORMULA = "label^0.5 * watch + 2 * like"


def labelled_dataset(folder, rows=1500):
    """Adds to the tiny dataset: `like`, missing in a fifth of the rows and with weights; `buy`,
    which exists where `label` is 1; `watch`, in seconds, with its expected value; a row weight;
    and impressions.
    """
    tiny_dataset(folder, rows=rows)
    watched = []
    for seed, split in enumerate(SPLITS):
        for number, path in enumerate(sorted((folder / split).glob("*.parquet"))):
            table = pq.read_table(path)
            columns = label_columns(table, seed=10 * seed + number)
            for name, values in columns.items():
                table = table.append_column(name, pa.array(values))
            pq.write_table(table, path, row_group_size=96)
            watched.append(columns["watch"][~np.isnan(columns["watch"])])
    values = np.log1p(np.concatenate(watched))
    scale = LabelScale(low=0, high=200, mean=float(values.mean()), std=float(values.std()))
    options = {
        "like": LabelOptions(optional=True, weight="like_weight"),
        "buy": LabelOptions(exists_where="label"),
        "watch": LabelOptions(kind="regression", optional=True, scale=scale),
    }
    schema = {"labels": LABELS, "label_options": options}
    schema |= {"weight": "row_weight", "impression": "page"}
    save_schema(tiny_schema(**schema), folder)
    sizes = {"user_id": 41, "item_id": 61, "genres": 7}
    values = pl.Series(range(1, 100))
    save_vocabularies({n: Vocabulary(values.head(size - 1)) for n, size in sizes.items()}, folder)
    return folder


def label_columns(table, seed):
    """Further labels of rows: all depend on the parity of user and item."""
    rng = np.random.default_rng(seed)
    user, item, click = (table[name].to_numpy() for name in ("user", "item", "label"))
    rows, fits = len(user), user % 2 == item % 2
    like = (rng.random(rows) < np.where(fits, 0.6, 0.2)).astype(np.float32)
    like[rng.random(rows) < 0.2] = np.nan
    buy = (rng.random(rows) < np.where(fits, 0.5, 0.2)).astype(np.float32)
    expected = np.where(fits, 20, 5)
    watch = (expected * rng.gamma(2, 0.5, rows)).astype(np.float32)
    watch[rng.random(rows) < 0.05] = np.nan
    return {
        "like": like,
        "buy": np.where(click == 1, buy, np.nan).astype(np.float32),
        "watch": watch,
        "truth_watch": expected.astype(np.float32),
        "row_weight": rng.choice([1.0, 2.0], rows).astype(np.float32),
        "like_weight": rng.choice([0.0, 1.0, 3.0], rows).astype(np.float32),
        "page": rng.integers(100, 103, rows),  # three impressions of each user
    }


def labelled_config(dataset, root, *overrides, score=FORMULA):
    options = [
        *(f"dataset={dataset}", f"run_root={root}", "embeddings.dim=8", "trainer.epochs=2"),
        *("trainer.global_batch=96", "trainer.eval_batch=70", "embeddings.lr=0.05"),
        *(f"objective.labels={LABELS}", f"objective.score={score}"),
    ]
    return load_config(None, [*options, *overrides])


def train_labelled(rank, world_size, config):
    """Trains a run and saves its config, as `msrec train` does."""
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, config.run_dir / "config.yaml")
    Trainer(config, process).fit()
