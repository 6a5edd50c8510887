"""The search space of tuning, the same for every model, and the values to try next."""

from collections.abc import Mapping, Sequence
from typing import Any

from msrec.model.backbones import backbone_options
from msrec.tools.experiment.cell import Cell, Choice

START: Choice = {
    "optimizer.lr": 0.002,
    "embeddings.lr": 0.1,
    "embeddings.l2": 0.002,
    "dropout": 0.2,
    "interaction.dropout": 0.0,
    "width": 0.5,
}
"""First trial of every model: values that did well for MLP, SharedBottom and STAR on the validation
split of MovieLens-1M."""
SMALLEST_LAYER = 8
"""Units of a layer below which `width` does not go."""


def search_space() -> dict[str, Any]:
    """Returns Optuna's distributions.

    Raises:
        ValueError: optuna is not installed.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution
    except ImportError:
        raise ValueError(
            "tuning needs optuna, which is not installed: pip install 'msrec[bench]' or "
            "requirements/dev.txt."
        ) from None
    return {
        "optimizer.lr": FloatDistribution(5e-4, 5e-3, log=True),
        "embeddings.lr": FloatDistribution(0.03, 0.3, log=True),
        "embeddings.l2": FloatDistribution(5e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.1, 0.5, step=0.1),
        "interaction.dropout": FloatDistribution(0.0, 0.3, step=0.1),
        "width": CategoricalDistribution((0.5, 1.0)),
    }


def propose(trials: Sequence[Cell]) -> Choice:
    """Returns the values of the trial after some others: `START`, then those of Optuna's TPE.

    They depend on the trials alone, so that a sweep resumes as if it had not been killed.
    """
    if not trials:
        return dict(START)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space()
    sampler = optuna.samplers.TPESampler(seed=len(trials), n_startup_trials=2)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for cell in trials:
        if cell.gain is not None:
            trial = optuna.trial.create_trial(
                params=cell.choice, distributions=space, value=cell.gain
            )
            study.add_trial(trial)
    return dict(study.ask(space).params)


def best_trial(trials: Sequence[Cell | None]) -> Cell | None:
    """Returns the trial with the best validation metric, see `trainer.metric`.

    Returns None if a trial is missing, or if none has a finite loss.
    """
    if None in trials:
        return None
    gains = {n: cell.gain for n, cell in enumerate(trials) if cell and cell.gain is not None}
    return trials[max(gains, key=lambda number: gains[number])] if gains else None


def overrides(choice: Mapping[str, float], backbone: str) -> list[str]:
    """Returns tuned values as overrides of a run's config.

    `width` scales every `*_dims` option of the backbone, down to `SMALLEST_LAYER`. `dropout` is the
    backbone's.

    Example:
        >>> overrides({"dropout": 0.1, "width": 0.5}, "shared_bottom")
        ['backbone.dropout=0.1', 'backbone.bottom_dims=[128, 64]', 'backbone.tower_dims=[32]']
    """
    options = []
    for name, value in choice.items():
        if name == "width":
            options += _layer_sizes(backbone, value)
        elif name == "dropout":
            options.append(f"backbone.dropout={value:.6g}")
        else:
            options.append(f"{name}={value:.6g}")
    return options


def _layer_sizes(backbone: str, width: float) -> list[str]:
    options = []
    for name, parameter in backbone_options(backbone).items():
        if name.endswith("_dims") or name == "dims":
            sizes = [max(SMALLEST_LAYER, round(size * width)) for size in parameter.default]
            options.append(f"backbone.{name}={sizes}")
    return options
