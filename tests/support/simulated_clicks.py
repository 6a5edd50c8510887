"""Clicks of simulated users, and how often intervals over them contain the true metric."""

from dataclasses import fields

import numpy as np

from msrec.model.metrics.definitions import Metrics
from msrec.model.metrics.exact import MetricOptions, sort_rows

MEAN_ROWS = 15


def clicks(rng, users):
    """Users (N,), their labels and the true logits; users differ in activity and click rate."""
    rows = 1 + rng.poisson(rng.gamma(1.5, MEAN_ROWS / 1.5, users))
    user = np.repeat(np.arange(users), rows)
    logit = -1.5 + rng.normal(0, 1, users)[user] + rng.normal(0, 1, len(user))
    return user, rng.random(len(user)) < 1 / (1 + np.exp(-logit)), logit


def simulated(rng, users, judging=None):
    """Sorted rows of users who also differ in how wrong the model is about them."""
    user, label, logit = clicks(rng, users)
    wrong = rng.normal(0, 0.7, users)[user] + rng.normal(0, 0.5, len(user))
    score = (1 / (1 + np.exp(-logit - wrong))).astype(np.float32)
    return sort_rows(score, label, user, options=judging or MetricOptions(resamples=0))


def coverage(truth, users, samples, resamples):
    """Metric -> share of samples whose interval exists and contains the true value."""
    rng = np.random.default_rng([1, users])
    hits = {}
    for seed in range(samples):
        metrics = simulated(rng, users, MetricOptions(resamples=resamples, seed=seed)).metrics()
        for name in (field.name for field in fields(Metrics)):
            value = getattr(truth, name)
            if isinstance(value, float):
                low, high = metrics.intervals.get(name, (np.inf, -np.inf))
                hits[name] = hits.get(name, 0) + (low <= value <= high)
    return {name: count / samples for name, count in hits.items()}


def two_models(users=150, seed=0, noise=(0.8, 0.8)):
    """Labels, users and scores of two models with independent errors of the given size."""
    rng = np.random.default_rng(seed)
    user, label, logit = clicks(rng, users)
    scores = []
    for spread in noise:
        wrong = rng.normal(0, spread, users)[user] + rng.normal(0, spread, len(user))
        scores.append((1 / (1 + np.exp(-logit - wrong))).astype(np.float32))
    return label, user, scores
