"""Labels that a run learns, and the options of its loss."""

from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig
from msrec.model.losses import LossOptions
from msrec.model.metrics.combined import CombinedScore, parse_score
from msrec.model.tasks import Task, make_tasks


def run_labels(config: RunConfig, schema: Schema) -> list[str]:
    """Returns the labels that a run learns, the main one first.

    Raises:
        ValueError: the config names a label that the dataset does not have.
    """
    objective = config.objective
    if unknown := sorted({*(objective.labels or []), *objective.weights} - set(schema.labels)):
        raise ValueError(
            f"objective.labels and objective.weights must name labels of {config.dataset} "
            f"({', '.join(schema.labels)}); got {unknown[0]!r}."
        )
    if objective.labels is not None:
        return objective.labels
    if objective.aux_weight > 0 and len(schema.labels) == 1:
        raise ValueError(
            f"objective.aux_weight must be 0 where a dataset has one label; {config.dataset} has "
            f"only {schema.labels[0]!r}."
        )
    return schema.labels if objective.aux_weight > 0 else schema.labels[:1]


def run_tasks(config: RunConfig, schema: Schema) -> list[Task]:
    """Returns the tasks of a run, see `run_labels`."""
    return make_tasks(schema, run_labels(config, schema))


def combined_score(config: RunConfig, schema: Schema) -> CombinedScore | None:
    """Returns the combined score of a run's labels, if its config has a formula.

    Raises:
        ValueError: `objective.score` is no such formula, or names a label that the run does not
            learn.
    """
    formula = config.objective.score
    if formula is None:
        return None
    try:
        return parse_score(formula, run_labels(config, schema))
    except ValueError as error:
        raise ValueError(f"objective.score: {error}") from None


def check_calibrator(config: RunConfig, tasks: list[Task]) -> None:
    """Refuses AITM's calibrator for labels that are no probabilities.

    Raises:
        ValueError: names the label.
    """
    numbers = [task.name for task in tasks if not task.is_binary]
    if numbers and getattr(config.backbone, "calibrator", 0) > 0:
        raise ValueError(
            "backbone.calibrator must be 0 for a label that is not binary, since it compares "
            f"probabilities; {numbers[0]!r} is a regression label."
        )


def loss_options(config: RunConfig, tasks: list[Task], entire_space: bool) -> LossOptions:
    """Returns the options of a run's loss.

    Args:
        config: of the run.
        tasks: of the run.
        entire_space: whether the backbone requires it.

    Raises:
        ValueError: `entire_space` is chosen and no label depends on another that is learned too.
    """
    objective = config.objective
    entire_space = entire_space or objective.entire_space
    if entire_space and all(task.parent is None for task in tasks):
        raise ValueError(
            "objective.entire_space needs a label with `exists_where` in the dataset, and that "
            f"label and its parent in objective.labels; they are "
            f"{', '.join(task.name for task in tasks)}."
        )
    others = [task.name for task in tasks[1:] if task.name not in objective.weights]
    shared = objective.aux_weight / len(others) if objective.aux_weight > 0 and others else 1.0
    defaults = dict.fromkeys(others, shared)
    weights = [({tasks[0].name: 1.0} | defaults | objective.weights)[task.name] for task in tasks]
    return LossOptions(
        weights,
        objective.weighting,
        entire_space,
        objective.gradnorm_alpha,
        config.embeddings.l2,
    )
