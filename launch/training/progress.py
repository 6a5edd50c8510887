"""Position of a run in its steps, epochs and validations, and the decisions that follow from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from msrec.data.loading.global_order import GlobalOrder
from msrec.launch.config.training_sections import TrainerConfig


@dataclass
class Progress:
    """Position of a run; saved with every checkpoint.

    `batch` is the number of global batches of `epoch` that were trained. Thanks to the global
    order, a loader needs nothing else to continue.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    metric: str = "auc/all"
    """Metric of the validation that chooses the best step."""
    best_value: float | None = None
    best_step: int | None = None
    epochs_without_gain: int = 0
    """Validations since the best one; there may be several per epoch."""
    validated_step: int | None = None
    order: dict[str, int] = field(default_factory=dict)
    """Settings of the global order. A resumed run must have the same."""
    unlogged: list[float] = field(default_factory=list)
    """Losses of the steps since the last log line."""

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """Returns the position that a checkpoint holds; older ones know only the AUC."""
        values = dict(state)
        if "best_auc" in values:
            values["best_value"] = values.pop("best_auc")
        return cls(**values)

    def next_validation(self, trainer: TrainerConfig) -> int | None:
        """Returns the next step to validate before the epoch ends; None if there is none set.

        A run that was stopped between such a step and its validation gets that same step, trains
        nothing and validates.
        """
        steps = [] if trainer.max_steps is None else [trainer.max_steps]
        if trainer.validate_every_steps is not None:
            every = trainer.validate_every_steps
            is_due = self.step > 0 and self.step % every == 0 and self.validated_step != self.step
            steps.append(self.step if is_due else (self.step // every + 1) * every)
        return min(steps, default=None)

    def note_validation(self, value: float, sign: int, epoch_batches: int) -> None:
        """Counts a validation, and the epoch if this was its last batch.

        Args:
            value: of `metric`.
            sign: 1 if higher is better, -1 if lower is better.
            epoch_batches: global batches of an epoch.
        """
        if self.batch == epoch_batches:
            self.epoch, self.batch = self.epoch + 1, 0
        self.validated_step = self.step
        if self.best_value is None or sign * value > sign * self.best_value:
            self.best_value, self.best_step = value, self.step
            self.epochs_without_gain = 0
        else:
            self.epochs_without_gain += 1

    def is_finished(self, trainer: TrainerConfig) -> bool:
        """Whether the run has trained all its epochs or steps, or has lost its patience."""
        return (
            self.epoch >= trainer.epochs
            or self.epochs_without_gain >= trainer.patience
            or (
                trainer.max_steps is not None
                and self.step >= trainer.max_steps
                and self.validated_step == self.step
            )
        )

    def require_metric(self, metric: str, checkpoint: Path) -> None:
        """Checks that checkpoints are still compared by the same metric.

        Raises:
            ValueError: another metric chose the best checkpoint so far.
        """
        if self.best_value is not None and self.metric != metric:
            raise ValueError(
                f"{checkpoint}: a run compares all its checkpoints by one metric; it was "
                f"{self.metric} and is {metric} now. Put trainer.metric back or use another run_id."
            )
        self.metric = metric

    def require_order(self, order: dict[str, int], checkpoint: Path) -> None:
        """Checks that the global order is still the same, so that `batch` means the same rows.

        Raises:
            ValueError: a setting differs.
        """
        for name, value in order.items():
            if self.order[name] != value:
                raise ValueError(
                    f"{checkpoint}: a run goes on with the same rows in the same order; its {name} "
                    f"was {self.order[name]} and is {value} now. Put it back or use another run_id."
                )


def order_settings(order: GlobalOrder) -> dict[str, int]:
    """Returns the settings that determine the global order."""
    return {
        "rows": order.num_rows,
        "row_groups": len(order.group_rows),
        "global_batch": order.global_batch,
        "seed": order.seed,
        "window_rows": order.window_rows,
    }
