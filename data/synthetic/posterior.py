"""What can be known of a cold user of the simulated app from the few training rows there are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrec.data.synthetic import catalogue
from msrec.data.synthetic.simulator import (
    BIAS,
    BY_INTEREST,
    CITY_EFFECT,
    DEVIATION,
    FAMILY_SHARE,
    HOUR_EFFECT,
    OWN_SHARE,
    STRENGTH,
    TENDENCY,
    App,
    Floats,
    Rows,
)

SAMPLE = 20_000
"""Users drawn from the app's prior."""
MOST_USERS = 200
MOST_ROWS = 500_000
"""Cold users, and test rows, that are looked at."""


@dataclass(frozen=True)
class Reachable:
    """Rows of cold users in the test split, and the best that can be said of them.

    Shape:
        click, p_click: (n,), float32, as in `Rows`.
        posterior: (n,), float64: the probability of a click given all of the app but its cold users
            (parameters, items, attributes, rules), and each one's training rows.
        num_rows: (n,), int64, training rows of the row's user.
    """

    click: npt.NDArray[np.float32]
    p_click: npt.NDArray[np.float32]
    posterior: Floats
    num_rows: npt.NDArray[np.int64]


def reachable(app: App, sample: int = SAMPLE, most_users: int = MOST_USERS) -> Reachable:
    """The posterior of cold users' clicks, by importance sampling from the app's prior.

    A model cannot do better on these rows but by luck: `p_click` knows the user's interests, which
    a few rows do not tell. Both what a user clicked and what was shown to the user count, since
    videos are picked partly by interest.

    Args:
        app: the app.
        sample: users drawn from the prior; a few thousand give the AUC to .002.
        most_users: cold users looked at, the first ones.
    """
    users = np.flatnonzero(app.is_cold)[:most_users]
    seen = app.rows_of_cold(users)
    stop = min(app.rows, app.bounds[1] + MOST_ROWS)
    test = _of_users(app.generate(app.bounds[1], stop), users)
    prior = _Prior(app, sample)
    posterior = np.empty(len(test.user))
    for user in users.tolist():
        taste, tendency = prior.of(user)
        shown = np.exp(taste)
        shown /= shown.sum(axis=1, keepdims=True)
        log_weight = np.zeros(sample)
        for at in np.flatnonzero(seen.user == user).tolist():
            logit = prior.logit(seen, at, taste, tendency)
            log_weight += np.log(prior.chance(seen, at, shown))
            log_weight -= np.logaddexp(0, -logit if seen.click[at] else logit)
        for at in np.flatnonzero(test.user == user).tolist():
            chance = log_weight + np.log(prior.chance(test, at, shown))
            weight = np.exp(chance - chance.max())
            p = 1 / (1 + np.exp(-prior.logit(test, at, taste, tendency)))
            posterior[at] = (weight * p).sum() / weight.sum()
    counts = np.bincount(seen.user, minlength=app.users)
    return Reachable(test.click, test.p_click, posterior, counts[test.user])


class _Prior:
    """Users as the app makes them; those of an age and a city are shifts of the same draws."""

    def __init__(self, app: App, sample: int) -> None:
        self.app = app
        rng = np.random.default_rng([app.seed, 1])
        categories = app.num_categories
        self._family = rng.normal(size=(sample, len(catalogue.FAMILIES)))
        self._own = OWN_SHARE * rng.normal(size=(sample, categories))
        self._away = DEVIATION * rng.normal(size=(len(STRENGTH), categories, sample))
        self._tendency = TENDENCY * rng.normal(size=sample)
        weight = app.category_weight
        self._popular = weight / weight.sum()

    def of(self, user: int) -> tuple[Floats, Floats]:
        """Tastes (sample, categories) and tendencies (sample,) of users like this one."""
        app = self.app
        family = self._family + app.lean[app.age[user]]
        taste = FAMILY_SHARE * family[:, catalogue.FAMILY_OF[: app.num_categories]] + self._own
        return taste, CITY_EFFECT[app.city[user]] + self._tendency

    def logit(self, rows: Rows, at: int, taste: Floats, tendency: Floats) -> Floats:
        """Of a click in a row, (sample,)."""
        scenario, item = rows.scenario[at], rows.item[at]
        category = self.app.category[item]
        interest = taste[:, category] + self._away[scenario, category]
        fixed = BIAS[scenario] + self.app.quality[item] + HOUR_EFFECT[rows.hour[at]]
        found: Floats = fixed + STRENGTH[scenario] * interest + tendency
        return found

    def chance(self, rows: Rows, at: int, shown: Floats) -> Floats:
        """That a row's category is picked, (sample,)."""
        category = self.app.category[rows.item[at]]
        by_interest = BY_INTEREST[rows.scenario[at]]
        by_popularity = (1 - by_interest) * self._popular[category]
        found: Floats = by_interest * shown[:, category] + by_popularity
        return found


def _of_users(rows: Rows, users: npt.NDArray[np.int64]) -> Rows:
    keep = np.isin(rows.user, users)
    return Rows(*(getattr(rows, name)[keep] for name in Rows.__dataclass_fields__))
