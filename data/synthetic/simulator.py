"""A simulated short-video app: its users, videos and rows of interactions."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from msrec.data.synthetic import catalogue

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

START_S = 1_767_225_600  # 2026-01-01, UTC
SPAN_S = 28 * 24 * 3600
SHARES = (0.8, 0.1, 0.1)
COLD_ROWS = (3, 8)
"""Fewest and most training rows of a cold user."""

SCENARIO_SHARE = (0.25, 0.5, 0.25)
STRENGTH = np.array([1.3, 1.1, 0.85])
"""Weight of a user's interest in search, feed and friends."""
BIAS = np.array([-0.7, -1.3, -0.9])
BY_INTEREST = np.array([0.5, 0.35, 0.15])
"""Share of the videos that a scenario picks by the user's interests; others by popularity."""
FAMILY_SHARE, OWN_SHARE, DEVIATION = 0.9, 0.6, 0.3
"""Standard deviations of a taste: by family, by category, and its deviation in a scenario."""
CITY_EFFECT = np.array([0.1, 0.0, -0.05, -0.15])
HOUR_EFFECT = 0.15 * np.sin(2 * np.pi * (np.arange(24) - 14) / 24)
TENDENCY = 0.25
DRAWS = 8
"""Uniform numbers for each row; a multiple of 4, the numbers in one step of Philox."""


@dataclass(frozen=True)
class Rows:
    """Rows of the log, with an array for each column."""

    user: Ints
    item: Ints
    scenario: Ints
    timestamp: Ints
    hour: Ints
    p_click: npt.NDArray[np.float32]
    click: npt.NDArray[np.float32]


@dataclass(frozen=True)
class App:
    """Simulated app, which its sizes and seed determine.

    A click has probability `sigmoid(bias[s] + strength[s] * interest[u, s, category] + quality +
    tendency[u] + hour)`. A user's interests follow five families of categories, differ a little
    between scenarios, and depend a little on the age band.

    Cold users have 3 to 8 training rows, spread evenly over time, and are as active as other users
    afterwards. Memory grows with users and items, not with rows.

    Raises:
        ValueError: a size is out of range, or training has too few rows for the cold users.
    """

    rows: int
    users: int = 600
    items: int = 2_000
    seed: int = 0
    cold_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name, least in (("rows", 100), ("users", 2), ("items", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"synthetic {name} must be at least {least}; got {getattr(self, name)}."
                )
        if self.cold_fraction < 0 or round(self.users * self.cold_fraction) >= self.users:
            raise ValueError(
                f"synthetic cold_fraction must be from 0 to below 1 and leave a user who is not "
                f"cold; got {self.cold_fraction} of {self.users} users. The usual is 0.25."
            )
        needed = len(self.cold_visits)
        if 2 * needed > self.bounds[0]:
            raise ValueError(
                f"synthetic rows must leave half of training to other users; {self.users} users "
                f"with cold_fraction {self.cold_fraction} need {needed} of {self.bounds[0]} "
                f"training rows. Take {4 * needed} rows or more, or fewer users."
            )

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """First row of valid and of test; rows of the same second are never divided."""
        cuts = (round(self.rows * SHARES[0]), round(self.rows * (SHARES[0] + SHARES[1])))
        first, second = (-(-(cut * SPAN_S // self.rows) * self.rows // SPAN_S) for cut in cuts)
        return first, second

    @cached_property
    def is_cold(self) -> npt.NDArray[np.bool_]:
        """Whether each user is cold, (users,)."""
        order = self._rng(0).permutation(self.users)
        cold = np.zeros(self.users, dtype=np.bool_)
        cold[order[: round(self.users * self.cold_fraction)]] = True
        return cold

    @cached_property
    def cold_visits(self) -> Ints:
        """Users of the training rows of cold users, in order of time."""
        rng = self._rng(1)
        cold = np.flatnonzero(self.is_cold)
        visits = np.repeat(cold, rng.integers(COLD_ROWS[0], COLD_ROWS[1] + 1, len(cold)))
        return rng.permutation(visits)

    @cached_property
    def _cold_rows(self) -> Ints:
        """Numbers of the training rows of cold users."""
        visits = len(self.cold_visits)
        return (2 * np.arange(visits) + 1) * self.bounds[0] // max(2 * visits, 1)

    @cached_property
    def num_categories(self) -> int:
        """Number of categories that have a video."""
        return min(len(catalogue.CATEGORIES), self.items)

    @cached_property
    def age(self) -> Ints:
        """Position of each user in AGE_BANDS, (users,)."""
        return self._rng(2).choice(5, self.users, p=[0.1, 0.25, 0.3, 0.2, 0.15])

    @cached_property
    def city(self) -> Ints:
        """Position of each user in CITY_TIERS, (users,)."""
        return self._rng(3).choice(4, self.users, p=[0.4, 0.3, 0.2, 0.1])

    @cached_property
    def _taste(self) -> Floats:
        """Taste for each category, the same in all scenarios, (users, categories)."""
        rng = self._rng(4)
        of_age = 0.3 * rng.normal(size=(len(catalogue.AGE_BANDS), len(catalogue.FAMILIES)))
        family = rng.normal(size=(self.users, len(catalogue.FAMILIES))) + of_age[self.age]
        own = rng.normal(size=(self.users, self.num_categories))
        of_family = family[:, catalogue.FAMILY_OF[: self.num_categories]]
        taste: Floats = FAMILY_SHARE * of_family + OWN_SHARE * own
        return taste

    @cached_property
    def interest(self) -> npt.NDArray[np.float32]:
        """Taste with the deviation of each scenario, (users, scenarios, categories)."""
        shape = (self.users, len(STRENGTH), self.num_categories)
        deviation = DEVIATION * self._rng(5).normal(size=shape)
        return (self._taste[:, None, :] + deviation).astype(np.float32)

    @cached_property
    def tendency(self) -> Floats:
        """Readiness of each user to click, (users,), logits."""
        of_city = CITY_EFFECT[self.city]
        tendency: Floats = of_city + TENDENCY * self._rng(6).normal(size=self.users)
        return tendency

    @cached_property
    def category(self) -> Ints:
        """Category of each video, (items,); each in turn, so that none is empty."""
        return np.arange(self.items) % self.num_categories

    @cached_property
    def creator(self) -> Ints:
        """Creator of each video, (items,); each makes about ten videos of one category."""
        per_category = self.creators_per_category
        return self.category * per_category + self._rng(7).integers(0, per_category, self.items)

    @cached_property
    def creators_per_category(self) -> int:
        """Number of creators of a category; those of category c begin at c times this number."""
        return max(1, self.items // (10 * self.num_categories))

    @cached_property
    def duration_s(self) -> Floats:
        """Length of each video in seconds, (items,)."""
        return np.exp(self._rng(8).normal(3.5, 0.6, self.items))

    @cached_property
    def quality(self) -> Floats:
        """Effect of each video, its creator and its length, (items,), logits."""
        rng = self._rng(9)
        of_creator = 0.3 * rng.normal(size=int(self.creator.max()) + 1)[self.creator]
        quality: Floats = of_creator + 0.4 * rng.normal(size=self.items) - 0.15 * self.log_duration
        return quality

    @cached_property
    def log_duration(self) -> Floats:
        """Standardised logarithm of the length, (items,)."""
        log = np.log(self.duration_s)
        spread = float(log.std())
        standard: Floats = (log - log.mean()) / (spread if spread > 0 else 1.0)
        return standard

    def generate(self, start: int, stop: int) -> Rows:
        """Returns rows [start, stop); a row does not depend on the others that are generated."""
        draws = self._draws(start, stop)
        row = np.arange(start, stop)
        user = self._users_of(row, draws[:, 0])
        scenario = np.searchsorted(np.cumsum(SCENARIO_SHARE), draws[:, 1], side="right")
        item = self._items_for(user, scenario, draws)
        timestamp = START_S + row * SPAN_S // self.rows
        hour = timestamp // 3600 % 24
        category = self.category[item]
        logit = (
            BIAS[scenario]
            + STRENGTH[scenario] * self.interest[user, scenario, category]
            + self.quality[item]
            + self.tendency[user]
            + HOUR_EFFECT[hour]
        )
        p_click = (1 / (1 + np.exp(-logit))).astype(np.float32)
        click = (draws[:, 5] < p_click).astype(np.float32)
        return Rows(user, item, scenario, timestamp, hour, p_click, click)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream]))

    def _draws(self, start: int, stop: int) -> Floats:
        """Uniform numbers that depend on seed and row only, (stop - start, DRAWS)."""
        bits = np.random.Philox(key=[self.seed, 2**32])
        bits.advance(start * DRAWS // 4)
        return np.random.Generator(bits).random((stop - start, DRAWS))

    def _users_of(self, row: Ints, draw: Floats) -> Ints:
        """Any user after training; in training warm users, and cold ones in their few rows."""
        warm = np.flatnonzero(~self.is_cold)
        user = np.where(
            row < self.bounds[0],
            warm[_pick(self._active[warm].cumsum(), draw)],
            _pick(self._active.cumsum(), draw),
        )
        first, last = np.searchsorted(self._cold_rows, [row[0], row[-1] + 1])
        user[self._cold_rows[first:last] - row[0]] = self.cold_visits[first:last]
        return user

    @cached_property
    def _active(self) -> Floats:
        return np.exp(0.4 * self._rng(10).normal(size=self.users))

    def _items_for(self, user: Ints, scenario: Ints, draws: Floats) -> Ints:
        """First a category, by interest or by popularity, then one of its videos by popularity."""
        by_interest = draws[:, 2] < BY_INTEREST[scenario]
        popular = _pick(self._category_weight.cumsum(), draws[:, 3])
        liked = (self._liked[user] < draws[:, 3:4]).sum(axis=1).clip(max=self.num_categories - 1)
        category = np.where(by_interest, liked, popular)
        order, edge, weight = self._shelves
        low, high = edge[category], edge[category + 1]
        below = np.append(0.0, weight.cumsum())
        target = below[low] + draws[:, 4] * (below[high] - below[low])
        position = np.searchsorted(below, target, side="right") - 1
        item: Ints = order[np.clip(position, low, high - 1)]
        return item

    @cached_property
    def _liked(self) -> npt.NDArray[np.float32]:
        """Cumulated probability that interest picks each category, (users, categories)."""
        running = np.exp(self._taste).cumsum(axis=1)
        return np.asarray(running / running[:, -1:], dtype=np.float32)

    @cached_property
    def _category_weight(self) -> Floats:
        """Popularity of each category, (categories,)."""
        return np.exp(0.4 * self._rng(11).normal(size=self.num_categories))

    @cached_property
    def _shelves(self) -> tuple[Ints, Ints, Floats]:
        """Videos in the order of their categories, first video of each, and popularities."""
        order = np.argsort(self.category, kind="stable")
        edge = np.append(0, np.bincount(self.category).cumsum())
        return order, edge, np.exp(0.8 * self._rng(12).normal(size=self.items))


def _pick(cumulated: Floats, draw: Floats) -> Ints:
    """Draws positions in proportion to weights, given the running sum of the weights."""
    position: Ints = np.searchsorted(cumulated, draw * cumulated[-1], side="right")
    return position.clip(max=len(cumulated) - 1)
