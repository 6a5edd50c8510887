"""The search space of the benchmark, the same for every model, and what to try next in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from msrec.model.backbones import backbone_options

Choice = dict[str, float]
"""A value for each name of the space."""

START: Choice = {
    "optimizer.lr": 0.002,
    "embeddings.lr": 0.1,
    "embeddings.l2": 0.002,
    "dropout": 0.2,
    "interaction.dropout": 0.0,
    "width": 0.5,
}
"""The first trial of every model: what did well for MLP, SharedBottom and STAR on the validation
split of MovieLens-1M."""
SMALLEST_LAYER = 8


def search_space() -> dict[str, Any]:
    """Optuna's distributions.

    Raises:
        ValueError: optuna is not installed.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution
    except ImportError:
        raise ValueError(
            "`msrec bench table` needs optuna, which is not installed: pip install 'msrec[bench]' "
            "or requirements/dev.txt."
        ) from None
    return {
        "optimizer.lr": FloatDistribution(5e-4, 5e-3, log=True),
        "embeddings.lr": FloatDistribution(0.03, 0.3, log=True),
        "embeddings.l2": FloatDistribution(5e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.1, 0.5, step=0.1),
        "interaction.dropout": FloatDistribution(0.0, 0.3, step=0.1),
        "width": CategoricalDistribution((0.5, 1.0)),
    }


def propose(number: int, done: Sequence[tuple[Choice, float]]) -> Choice:
    """What trial `number` tries: START first, then optuna's TPE given the trials that are done.

    The proposal depends on the number and on `done` alone, so that a benchmark that was killed
    goes on as if it had not been.

    Args:
        number: of the trial, from 0.
        done: choices and their validation AUC, in order.
    """
    if number == 0:
        return dict(START)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space()
    sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=2)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for choice, auc in done:
        study.add_trial(optuna.trial.create_trial(params=choice, distributions=space, value=auc))
    return dict(study.ask(space).params)


def overrides(choice: Mapping[str, float], backbone: str) -> list[str]:
    """A choice as overrides of a run's config.

    `width` scales every `*_dims` option of the backbone, down to 8; `dropout` is the backbone's.

    Example:
        >>> overrides({"dropout": 0.1, "width": 0.5}, "shared_bottom")
        ['backbone.dropout=0.1', 'backbone.bottom_dims=[128, 64]', 'backbone.tower_dims=[32]']
    """
    found = []
    for name, value in choice.items():
        if name == "width":
            for option, parameter in backbone_options(backbone).items():
                if option.endswith("_dims") or option == "dims":
                    sizes = [max(SMALLEST_LAYER, round(d * value)) for d in parameter.default]
                    found.append(f"backbone.{option}={sizes}")
        elif name == "dropout":
            found.append(f"backbone.dropout={value:.6g}")
        else:
            found.append(f"{name}={value:.6g}")
    return found
