"""Published figures of MovieLens-1M: Scenario-Wise-Rec, arXiv 2412.17374, its own random split."""

from collections.abc import Sequence
from statistics import mean, stdev

MOVIELENS: dict[str, list[float]] = {
    "shared_bottom": [0.8095, 0.8116, 0.8128, 0.8041, 0.5228],
    "mmoe": [0.8086, 0.8029, 0.8178, 0.8016, 0.5218],
    "ple": [0.8091, 0.8118, 0.8187, 0.8002, 0.5257],
    "sarnet": [0.8092, 0.8068, 0.8158, 0.8026, 0.5245],
    "star": [0.8096, 0.8137, 0.8133, 0.7979, 0.5258],
    "m2m": [0.8115, 0.8111, 0.8163, 0.8057, 0.5213],
    "adasparse": [0.8108, 0.8109, 0.8188, 0.7947, 0.5205],
    "adaptdhm": [0.8083, 0.8074, 0.8160, 0.7995, 0.5238],
    "epnet": [0.8097, 0.8100, 0.8148, 0.8031, 0.5215],
    "ppnet": [0.8063, 0.8084, 0.8113, 0.7994, 0.5257],
}
"""AUC of all rows and of the three age scenarios, log loss."""
MOVIELENS_AUC_ONLY = {"hamur": 0.8133}
"""From the text of the arXiv version."""


def spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation.

    Example:
        >>> spread([0.80, 0.82])
        '0.8100 ± 0.0141'
    """
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ± {stdev(values):.4f}"
