"""Simulated clicks of an app whose users and items come and go."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, RawTables
from msrec.data.schema import Scenario

Ints = npt.NDArray[np.int64]
VECTOR_SIZE = 4
"""Length of the true vectors of users and items."""
ZIPF_EXPONENT = 0.7
"""Activity of the k-th of the present users (items) is k to the power of minus this."""
SCENARIOS = ("feed", "search")


class DriftingStream(NamedTuple):
    """Size and drift of a stream.

    Attributes:
        days: number of days.
        day_rows: rows of a day.
        users, items: present on a day.
        user_turnover, item_turnover: share of them that new ones replace every day.
    """

    days: int
    day_rows: int
    users: int
    items: int
    user_turnover: float
    item_turnover: float


def drifting_tables(stream: DriftingStream, seed: int) -> RawTables:
    """Returns the rows of all days in order; the timestamp is the number of the row.

    The log-odds of a click are -1 plus the biases of user and item and the product of their
    vectors, all drawn once per user and item: what a model learns of an id stays true.
    """
    rng = np.random.default_rng(seed)
    rows = stream.days * stream.day_rows
    user = _present(rng, stream, stream.users, stream.user_turnover)
    item = _present(rng, stream, stream.items, stream.item_turnover)
    (user_bias, user_vector), (item_bias, item_vector) = (
        (rng.normal(0, 0.8, ids.max() + 1), rng.normal(0, 0.6, (ids.max() + 1, VECTOR_SIZE)))
        for ids in (user, item)
    )
    product = (user_vector[user] * item_vector[item]).sum(axis=1)
    odds = -1 + user_bias[user] + item_bias[item] + product
    return RawTables(
        name="drift",
        description="an app whose users and items come and go",
        interactions=pl.DataFrame(
            {
                "user_key": user,
                "item_key": item,
                "scenario": rng.integers(len(SCENARIOS), size=rows),
                "label": (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int8),
                "time": np.arange(rows),
            }
        ),
        users=pl.DataFrame({"user_key": np.arange(user.max() + 1)}),
        items=pl.DataFrame({"item_key": np.arange(item.max() + 1)}),
        scenarios=[Scenario(name=name, description=name) for name in SCENARIOS],
        features=ID_FEATURES,
        timestamp="time",
    )


def _present(rng: np.random.Generator, stream: DriftingStream, count: int, turnover: float) -> Ints:
    """Returns the user (item) of each row; a new one has the activity of the one that left."""
    activity = np.arange(1, count + 1) ** -ZIPF_EXPONENT
    activity /= activity.sum()
    present, num_ids = np.arange(count), count
    days = []
    for day in range(stream.days):
        if day:
            leaving = rng.choice(count, round(count * turnover), replace=False)
            present[leaving] = num_ids + np.arange(len(leaving))
            num_ids += len(leaving)
        days.append(present[rng.choice(count, stream.day_rows, p=activity)])
    return np.concatenate(days)
