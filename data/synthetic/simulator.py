"""A simulated short-video app: its users, videos and rows of interactions."""

from dataclasses import dataclass

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
OWN_DEVIATION = 0.6
"""Standard deviation by which the taste of a like, or of a long watch, differs from a click's."""
LIKE_BIAS = np.array([-3.8, -3.4, -2.8])
LIKE_QUALITY = 0.3
WATCH_BIAS = np.array([0.3, 0.0, 0.6])
WATCH_LENGTH, WATCH_INTEREST, PATIENCE = 0.8, 0.3, 0.2
"""Effects on the logarithm of the watch time: of the logarithm of the video's seconds, and of the
user's interest; and the standard deviation of that of the user."""
WATCH_NOISE = 0.5
"""Standard deviation of the logarithm of the watch time that nothing explains."""
WATCH_STEPS = 64
"""Steps of a second to which watch times are rounded: their sums are exact in any order."""
CLICK_STREAM, LABEL_STREAM = 2**32, 2**32 + 1
DRAWS, LABEL_DRAWS = 8, 4
"""Uniform numbers for each row; multiples of 4, the numbers in one step of Philox."""


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
    p_like: npt.NDArray[np.float32]
    like: npt.NDArray[np.float32]
    e_watch: npt.NDArray[np.float32]
    """Expected watch time after a click, in seconds, in every row."""
    watch: npt.NDArray[np.float32]
    """Watch time in seconds; NaN without a click."""


class App:
    """Simulated app, which its sizes and seed determine.

    A click has probability `sigmoid(bias[s] + strength[s] * interest[u, s, category] + quality +
    tendency[u] + hour)`. A user's interests follow five families of categories, differ a little
    between scenarios, and depend a little on the age band.

    A click is followed by a like with probability `sigmoid(like_bias[s] + strength[s] * (interest +
    like_taste[u, category]) + quality + like_quality)`, so that `p_like` is this times `p_click`,
    and by a watch time whose logarithm is normal with standard deviation 0.5 and the mean
    `watch_bias[s] + 0.8 log(seconds) + 0.3 strength[s] * (interest + watch_taste[u, category]) +
    patience[u]`; `e_watch` is its expectation `exp(mean + 0.5**2 / 2)`. Both tastes are N(0,
    0.6**2), next to interests of standard deviation 1.1: the labels share most of a user's taste,
    and clicks, which are the most frequent, tell most about it. No draw of users, videos and clicks
    depends on the other labels.

    Cold users have 3 to 8 training rows, spread evenly over time, and are as active as other users
    afterwards. Memory grows with users and items, not with rows.

    Shape:
        is_cold: (users,), bool.
        age, city: (users,), int64, positions in AGE_BANDS and CITY_TIERS.
        interest: (users, scenarios, categories), float32.
        tendency: (users,), float64, readiness of each user to click.
        category, creator: (items,), int64; no category is empty.
        log_duration: (items,), float64, standardised logarithm of the length of the video.
        seconds: (items,), float64, length of the video.
        like_taste, watch_taste: (users, categories), float32.
        patience: (users,), float64, effect of the user on the logarithm of watch times.
        like_quality: (items,), float64, effect of the video on likes besides `quality`.
        quality: (items,), float64, effect of the video, its creator and its length.

    Raises:
        ValueError: a size is out of range, or training has too few rows for the cold users.
    """

    def __init__(
        self,
        rows: int,
        users: int = 600,
        items: int = 2_000,
        seed: int = 0,
        cold_fraction: float = 0.25,
    ) -> None:
        sizes = (("rows", rows, 100), ("users", users, 2), ("items", items, 1), ("seed", seed, 0))
        for name, value, least in sizes:
            if value < least:
                raise ValueError(f"synthetic {name} must be at least {least}; got {value}.")
        num_cold = round(users * cold_fraction)
        if cold_fraction < 0 or num_cold >= users:
            raise ValueError(
                "synthetic cold_fraction must be from 0 to below 1 and leave a user who is not "
                f"cold; got {cold_fraction} of {users} users. The usual is 0.25."
            )
        self.rows, self.users, self.items, self.seed = rows, users, items, seed
        cuts = (round(rows * SHARES[0]), round(rows * (SHARES[0] + SHARES[1])))
        # First row of valid and of test: rows of the same second are in one split.
        first, second = (-(-(cut * SPAN_S // rows) * rows // SPAN_S) for cut in cuts)
        self.bounds = (first, second)
        self._make_cold_users(num_cold)
        self._make_items()
        self._make_users()

    def _make_cold_users(self, num_cold: int) -> None:
        self.is_cold = np.zeros(self.users, dtype=np.bool_)
        self.is_cold[self._rng(0).permutation(self.users)[:num_cold]] = True
        rng = self._rng(1)
        visits = rng.integers(COLD_ROWS[0], COLD_ROWS[1] + 1, num_cold)
        # Users of the training rows of cold users, and the numbers of these rows.
        self._cold_visits = rng.permutation(np.repeat(np.flatnonzero(self.is_cold), visits))
        needed, first = len(self._cold_visits), self.bounds[0]
        if 2 * needed > first:
            raise ValueError(
                f"synthetic rows must leave half of training to other users; the {num_cold} cold "
                f"ones of {self.users} users need {needed} of {first} training rows. Take "
                f"{4 * needed} rows or more, or fewer users."
            )
        self._cold_rows = (2 * np.arange(needed) + 1) * first // max(2 * needed, 1)

    def _make_items(self) -> None:
        self.num_categories = min(len(catalogue.CATEGORIES), self.items)
        self.category = np.arange(self.items) % self.num_categories
        # A creator makes about ten videos of one category.
        self.creators_per_category = max(1, self.items // (10 * self.num_categories))
        number = self._rng(7).integers(0, self.creators_per_category, self.items)
        self.creator = self.category * self.creators_per_category + number
        log = np.log(np.exp(self._rng(8).normal(3.5, 0.6, self.items)))
        spread = float(log.std())
        self.seconds = np.exp(log)
        self.log_duration = (log - log.mean()) / (spread if spread > 0 else 1.0)
        rng = self._rng(9)
        of_creator = 0.3 * rng.normal(size=int(self.creator.max()) + 1)[self.creator]
        own = 0.4 * rng.normal(size=self.items)
        self.quality = of_creator + own - 0.15 * self.log_duration
        popularity = np.exp(0.4 * self._rng(11).normal(size=self.num_categories))
        self._category_popularity = popularity.cumsum()
        # Videos in the order of their categories, the first video of each, and popularities.
        self._by_category = np.argsort(self.category, kind="stable")
        self._edges = np.append(0, np.bincount(self.category).cumsum())
        self.like_quality = LIKE_QUALITY * self._rng(14).normal(size=self.items)
        popularity = np.exp(0.8 * self._rng(12).normal(size=self.items))
        self._video_popularity = np.append(0.0, popularity.cumsum())

    def _make_users(self) -> None:
        num_families, users = len(catalogue.FAMILIES), self.users
        self.age = self._rng(2).choice(5, users, p=[0.1, 0.25, 0.3, 0.2, 0.15])
        self.city = self._rng(3).choice(4, users, p=[0.4, 0.3, 0.2, 0.1])
        rng = self._rng(4)
        of_age = 0.3 * rng.normal(size=(len(catalogue.AGE_BANDS), num_families))
        family = rng.normal(size=(users, num_families)) + of_age[self.age]
        own = rng.normal(size=(users, self.num_categories))
        of_family = family[:, catalogue.FAMILY_OF[: self.num_categories]]
        taste = FAMILY_SHARE * of_family + OWN_SHARE * own
        shape = (users, len(STRENGTH), self.num_categories)
        deviation = DEVIATION * self._rng(5).normal(size=shape)
        self.interest = (taste[:, None, :] + deviation).astype(np.float32)
        self.tendency = CITY_EFFECT[self.city] + TENDENCY * self._rng(6).normal(size=users)
        of_label = (OWN_DEVIATION * self._rng(n).normal(size=shape[::2]) for n in (15, 16))
        self.like_taste, self.watch_taste = (each.astype(np.float32) for each in of_label)
        self.patience = PATIENCE * self._rng(17).normal(size=users)
        # Cumulated probability that interest picks each category, (users, categories).
        running = np.exp(taste).cumsum(axis=1)
        self._liked = (running / running[:, -1:]).astype(np.float32)
        activity = np.exp(0.4 * self._rng(10).normal(size=users))
        self._activity = activity.cumsum()
        self._warm = np.flatnonzero(~self.is_cold)
        self._warm_activity = activity[self._warm].cumsum()

    def generate(self, start: int, stop: int) -> Rows:
        """Returns rows [start, stop); a row does not depend on the others that are generated."""
        draws = self._draws(start, stop, CLICK_STREAM, DRAWS)
        row = np.arange(start, stop)
        user = self._pick_users(row, draws[:, 0])
        scenario = np.searchsorted(np.cumsum(SCENARIO_SHARE), draws[:, 1], side="right")
        item = self._pick_items(user, scenario, draws)
        timestamp = START_S + row * SPAN_S // self.rows
        hour = timestamp // 3600 % 24
        category = self.category[item]
        interest = self.interest[user, scenario, category]
        p_click = _sigmoid(
            BIAS[scenario]
            + STRENGTH[scenario] * interest
            + self.quality[item]
            + self.tendency[user]
            + HOUR_EFFECT[hour]
        ).astype(np.float32)
        click = (draws[:, 5] < p_click).astype(np.float32)
        more = self._draws(start, stop, LABEL_STREAM, LABEL_DRAWS)
        after_click = _sigmoid(
            LIKE_BIAS[scenario]
            + STRENGTH[scenario] * (interest + self.like_taste[user, category])
            + self.quality[item]
            + self.like_quality[item]
        )
        like = click * (more[:, 0] < after_click)
        mean = (
            WATCH_BIAS[scenario]
            + WATCH_LENGTH * np.log(self.seconds[item])
            + WATCH_INTEREST * STRENGTH[scenario] * (interest + self.watch_taste[user, category])
            + self.patience[user]
        )
        seconds = np.exp(mean + WATCH_NOISE * _normal(more[:, 1], more[:, 2]))
        return Rows(
            *(user, item, scenario, timestamp, hour, p_click, click),
            p_like=(p_click * after_click).astype(np.float32),
            like=like.astype(np.float32),
            e_watch=np.exp(mean + WATCH_NOISE**2 / 2).astype(np.float32),
            watch=np.where(click, np.rint(WATCH_STEPS * seconds) / WATCH_STEPS, np.nan).astype(
                np.float32
            ),
        )

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream]))

    def _draws(self, start: int, stop: int, stream: int, draws: int) -> Floats:
        """Uniform numbers that depend on seed, stream and row only, (stop - start, draws)."""
        bits = np.random.Philox(key=[self.seed, stream])
        bits.advance(start * draws // 4)
        return np.random.Generator(bits).random((stop - start, draws))

    def _pick_users(self, row: Ints, draw: Floats) -> Ints:
        """Any user after training; in training warm users, and cold ones in their few rows."""
        user = np.where(
            row < self.bounds[0],
            self._warm[_pick(self._warm_activity, draw)],
            _pick(self._activity, draw),
        )
        first, last = np.searchsorted(self._cold_rows, [row[0], row[-1] + 1])
        user[self._cold_rows[first:last] - row[0]] = self._cold_visits[first:last]
        return user

    def _pick_items(self, user: Ints, scenario: Ints, draws: Floats) -> Ints:
        """First a category, by interest or by popularity, then one of its videos by popularity."""
        by_interest = draws[:, 2] < BY_INTEREST[scenario]
        popular = _pick(self._category_popularity, draws[:, 3])
        liked = (self._liked[user] < draws[:, 3:4]).sum(axis=1).clip(max=self.num_categories - 1)
        category = np.where(by_interest, liked, popular)
        low, high = self._edges[category], self._edges[category + 1]
        below = self._video_popularity
        target = below[low] + draws[:, 4] * (below[high] - below[low])
        position = np.searchsorted(below, target, side="right") - 1
        item: Ints = self._by_category[np.clip(position, low, high - 1)]
        return item


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _normal(first: Floats, second: Floats) -> Floats:
    """Returns a standard normal number of each two uniform ones (Box and Muller, 1958)."""
    return np.asarray(np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second))


def _pick(cumulated: Floats, draw: Floats) -> Ints:
    """Draws positions in proportion to weights, given the running sum of the weights."""
    position: Ints = np.searchsorted(cumulated, draw * cumulated[-1], side="right")
    return position.clip(max=len(cumulated) - 1)
