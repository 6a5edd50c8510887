"""Sections of a run's config on training: labels, losses, optimizers, the loop."""

from typing import Literal, get_args

from pydantic import Field, field_validator

from msrec.data.io.paths import AnyPath, is_remote
from msrec.data.io.validation import (
    BatchRows,
    Count,
    FolderPath,
    NotNegative,
    Positive,
    Precision,
    Steps,
    StrictModel,
)
from msrec.model.losses import Weighting

ParameterGroup = Literal["tables", "meta", "backbone"]
"""Parameters with one optimizer: the embedding tables, every module that reads LLM vectors, the
rest."""
EpochSpan = tuple[NotNegative, NotNegative | None]
"""Epochs [first, end); an end of null is the end of the run."""


class ObjectiveConfig(StrictModel):
    """The labels that a model learns, and their losses."""

    labels: list[str] | None = Field(None, min_length=1)
    """Labels of the dataset to learn and predict, the main one first; null is the first label of
    the dataset, or all of them with `aux_weight` above 0."""
    weights: dict[str, NotNegative] = {}
    """Label -> weight of its loss; 1 for a label that is not named."""
    aux_weight: NotNegative = 0.0
    """Sum of the weights of all labels but the first, shared equally by those that `weights` does
    not name; 0 leaves them at 1."""
    weighting: Weighting = "fixed"
    """Change of the weights in training: `uncertainty` learns the noise of each label, `gradnorm`
    balances the norms of the labels' gradients in the embeddings, `fixed` keeps the weights."""
    gradnorm_alpha: float = Field(1.5, ge=0, le=100)
    """Strength with which `gradnorm` prefers labels whose loss falls slowly."""
    entire_space: bool = False
    """Learn a label that exists only where another is 1, such as a purchase after a click, from all
    rows, as the product of both probabilities. The backbone `esmm` always does."""
    score: str | None = None
    """Formula of a combined score, such as `click^0.5 * watch^1.0`, by which rows are ranked in
    addition to the scores of the labels; null is none."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"labels must differ; got {', '.join(labels)}")
        return labels


class OptimizerConfig(StrictModel):
    """Adam for the parameters outside the tables, and the schedule of all learning rates."""

    lr: Positive = 1e-3
    """Learning rate of the backbone."""
    meta_lr: Positive | None = None
    """Learning rate of the modules that read LLM vectors; null is `lr`."""
    weight_decay: NotNegative = 0.0
    """Weight decay of the parameters outside the tables."""
    warmup_steps: int = Field(0, ge=0, le=10**12)
    """Steps of linear warm-up of all learning rates."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of all learning rates to zero after the warm-up."""
    decay_epochs: Positive | None = None
    """Epoch at which a decay reaches zero; null is `trainer.epochs`."""
    frozen: dict[ParameterGroup, EpochSpan] = {}
    """Parameter group (tables, meta, backbone) -> epochs [from, to) in which its learning rate is
    0; a `to` of null is the end of the run. It does not make a step faster."""

    @field_validator("frozen")
    @classmethod
    def _check_frozen(
        cls, frozen: dict[ParameterGroup, EpochSpan]
    ) -> dict[ParameterGroup, EpochSpan]:
        for group, (first, end) in frozen.items():
            if end is not None and end <= first:
                raise ValueError(f"{group} must be frozen from an epoch to a later one")
        is_forever = [span == (0, None) for span in frozen.values()]
        if set(frozen) == set(get_args(ParameterGroup)) and all(is_forever):
            raise ValueError("at least one parameter group must learn at some time")
        return frozen

    def frozen_steps(self, epoch_steps: int) -> dict[ParameterGroup, tuple[int, int | None]]:
        """Returns `frozen` in steps, for epochs of `epoch_steps` steps."""
        return {
            group: (round(first * epoch_steps), None if end is None else round(end * epoch_steps))
            for group, (first, end) in self.frozen.items()
        }


class TrainerConfig(StrictModel):
    """The training loop: batches, epochs, validation, checkpoints and logs."""

    global_batch: BatchRows = 4096
    """Rows per step over all ranks."""
    epochs: Steps = 10
    """Maximum number of epochs."""
    max_steps: Steps | None = None
    """Maximum number of steps; null leaves only the limit of `epochs`."""
    validate_every_steps: Steps | None = None
    """Steps between validations within an epoch; null validates only after each epoch. Each
    validation makes the loader read one window of training rows again."""
    patience: Steps = 2
    """Number of validations without a better value of `metric` after which training stops."""
    metric: str | None = None
    """Metric of the validation that chooses the best checkpoint, by its name in metrics.jsonl:
    `log_loss/all`, `auc/scenario=feed`, `rmse/label=watch/all`. Null is the AUC of the first label,
    or the RMSE of a regression label."""
    progressive: float = Field(0.0, ge=0, le=1)
    """Share of the training rows on which the model of `init_from` is evaluated before the first
    step, logged as the split `progressive`. Ids that are new to it have row 0. 0 skips this."""
    max_grad_norm: Positive | None = None
    """Largest norm of the gradient of all parameters outside the tables; a longer one is scaled
    down. Null does not clip."""
    accumulate: Count = 1
    """Number of batches whose gradients are summed before a step of the parameters outside the
    tables; the tables are updated with every batch."""
    precision: Precision = "fp32"
    """Precision of the matrix products of training steps: `fp32`; `tf32` rounds their factors to 10
    bits on a GPU; `bf16` computes them in bfloat16. Weights, norms, losses, embedding tables and
    their updates stay fp32. Whatever scores stays fp32 too: validation, evaluation, exports."""
    eval_batch: BatchRows = 16384
    """Rows per batch over all ranks in validation, evaluation and prediction."""
    checkpoint_every_steps: Steps | None = None
    """Steps between checkpoints within an epoch; null saves only after each validation."""
    keep: int = Field(2, ge=2, le=10**6)
    """Number of newest checkpoints to keep; the best one is always kept."""
    copy_to: FolderPath | None = None
    """Folder in an object store, such as `s3://bucket/runs`, to which the run is copied after each
    checkpoint and at the end, as `COPY_TO/RUN_ID`. A start on other machines continues from there,
    and the hosts need no shared folder. Null copies nothing."""
    log_every: Steps = 50
    """Steps between log lines. A loss that is not finite ends the run then, and names its step."""
    hang_s: float | None = Field(300, gt=0, le=1e6)
    """Seconds without progress after which a rank writes its stack to ranks/ in the run folder and
    exits; null waits forever. Time spent on checkpoints does not count."""
    trace: int = Field(0, ge=0, le=10**6)
    """Number of times to measure each table's lookup and update after training; 0 is off. The
    times go to table_times.json, which `msrec plan --measured RUN` compares with its estimates."""
    window_rows: int = Field(1 << 18, ge=1, lt=1 << 31)
    """Number of rows that are read and shuffled together."""
    prefetch: int = Field(8, ge=0, le=1024)
    """Number of batches that a thread prepares ahead; 0 prepares them in the main thread."""

    @field_validator("copy_to")
    @classmethod
    def _check_copy(cls, copy_to: AnyPath | None) -> AnyPath | None:
        if copy_to is not None and not is_remote(copy_to):
            raise ValueError(f"copy_to must be a URL such as s3://bucket/runs; got {copy_to}")
        return copy_to
