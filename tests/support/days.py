"""Simulated days of an app, with new users and items every day."""

import numpy as np
import polars as pl

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables
from msrec.data.schema import Scenario
from msrec.launch.config.run_config import load_config
from msrec.launch.daily.next_day import training_config
from msrec.launch.distributed import process_group
from msrec.launch.training.trainer import train_run

DAYS = range(1, 6)


def raw_day(number, rows=800):
    """Raw tables of a day: of the old users, some come; the clicks follow user and item."""
    rng = np.random.default_rng(number)
    num_users, num_items = 300 + 30 * number, 60 + 5 * number
    active = np.union1d(rng.choice(num_users, 80), np.arange(num_users - 30, num_users))
    if number == 1:
        active, rows = np.arange(num_users), 2 * rows
    user, item = rng.choice(active, rows), rng.integers(num_items, size=rows)
    odds = 1.5 * (user % 3 - 1) + 1.0 * (item % 2 - 0.5)
    return RawTables(
        name="app",
        description="an app",
        interactions=pl.DataFrame(
            {
                "user_key": [f"u{u}" for u in user],
                "item_key": item * 10,
                "scenario": rng.integers(2, size=rows),
                "label": (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(int),
                "time": number * 10**6 + np.arange(rows),
            }
        ),
        users=pl.DataFrame(
            {
                "user_key": [f"u{u}" for u in range(num_users)],
                "age": [u % 7 for u in range(num_users)],
            }
        ),
        items=pl.DataFrame({"item_key": np.arange(num_items) * 10}),
        scenarios=[Scenario(name=name, description=name) for name in ("feed", "shop")],
        features=(*ID_FEATURES, Feature("age", "user")),
        timestamp="time",
    )


def convert_days(root, last, first=1):
    """Datasets root/dayN, each grown from the one before."""
    for number in range(first, last + 1):
        before = root / f"day{number - 1}" if number > first else None
        write_dataset(raw_day(number), root / f"day{number}", grow_from=before)


OPTIONS = ("trainer.global_batch=80", "trainer.epochs=3", "embeddings.dim=8", "embeddings.lr=0.2")
SMALL = ("backbone.bottom_dims=[16]", "backbone.tower_dims=[8]", "optimizer.lr=0.01")


def day_config(root, number, *overrides):
    """Config of a day's run root/runs/dayN: day 1 starts anew, the others from the day before."""
    data = str(root / f"day{number}")
    if number == 1:
        own = [f"dataset={data}", f"run_root={root}/runs", "run_id=day1", *OPTIONS, *SMALL]
        return load_config(None, [*own, *overrides])
    before = f"init_from={root}/runs/day{number - 1}"
    return training_config(None, [before, *overrides], data)


def train_day(root, number, *overrides):
    config = day_config(root, number, *overrides)
    with process_group("cpu") as process:
        train_run(config, process)
    return config.run_dir


def contents(folder):
    """Relative path -> bytes of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
