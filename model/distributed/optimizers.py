"""Optimizers of the parts of a sharded model, and the schedule of their learning rates."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from msrec.model.distributed.sharding import TableOptions

ModelPart = Literal["tables", "meta", "backbone"]
"""meta: all that reads LLM vectors; backbone: every other parameter outside the tables."""
META_MODULES = (
    *("user_meta", "item_meta", "scenario_meta"),
    *("user_feature", "item_feature", "match", "learned_users"),
)
"""Modules of `DenseArch` that form the part meta."""
FUSED = "fused"
"""Key of the fused optimizer of the tables in a checkpoint; other keys are names of parts."""


def optimizers(
    dmp: DistributedModelParallel,
    tables: TableOptions,
    lr: float,
    weight_decay: float,
    meta_lr: float | None = None,
) -> CombinedOptimizer:
    """Returns the fused optimizer of the tables and Adam for the rest, at their base rates.

    Args:
        dmp: the sharded model.
        tables: options of its tables.
        lr: learning rate of the backbone.
        weight_decay: of the parameters outside the tables.
        meta_lr: learning rate of the part meta; None is `lr`.
    """
    parameters: dict[ModelPart, dict[str, torch.nn.Parameter]]
    parameters = {"tables": {}, "meta": {}, "backbone": {}}
    for name, parameter in in_backward_optimizer_filter(dmp.named_parameters()):
        parameters[_part_of(name)][name] = parameter
    options: dict[ModelPart, dict[str, Any]] = {
        "tables": {"lr": tables.lr, "eps": tables.eps},
        "meta": {"lr": lr if meta_lr is None else meta_lr, "weight_decay": weight_decay},
        "backbone": {"lr": lr, "weight_decay": weight_decay},
    }
    keyed: list[tuple[str, KeyedOptimizer]] = [(FUSED, dmp.fused_optimizer)]
    for part, of_part in parameters.items():
        if of_part:
            adam: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, **options[part])
            keyed.append((part, KeyedOptimizerWrapper(of_part, adam)))
    return CombinedOptimizer(keyed)


def _part_of(parameter: str) -> ModelPart:
    if ".embedding_bags." in parameter:
        return "tables"
    is_meta = any(f".over.{module}." in parameter for module in META_MODULES)
    return "meta" if is_meta else "backbone"


class Schedule:
    """Linear warm-up, then decay to zero, as one factor on the learning rate of every group.

    Args:
        optimizer: of `optimizers`; the current `lr` of its groups are the base rates.
        warmup_steps: steps from 0 to the base rate.
        total_steps: step at which a decay reaches zero.
        decay: "none", "linear" or "cosine".
        frozen: part -> steps [from, to) with rate 0; a `to` of None is the end of the run.
    """

    def __init__(
        self,
        optimizer: CombinedOptimizer,
        warmup_steps: int,
        total_steps: int,
        decay: Literal["none", "linear", "cosine"],
        frozen: Mapping[ModelPart, tuple[int, int | None]] | None = None,
    ) -> None:
        self._groups = [
            (cast(ModelPart, "tables" if key == FUSED else key), group, float(group["lr"]))
            for key, of_part in optimizer.optimizers
            for group in of_part.param_groups
        ]
        self._warmup_steps = warmup_steps
        self._total_steps = max(total_steps, warmup_steps + 1)
        self._decay = decay
        self._frozen = frozen or {}

    def factor(self, step: int) -> float:
        """Returns the share of the base rate at a step, in [0, 1].

        Example:
            >>> from types import SimpleNamespace
            >>> optimizer = SimpleNamespace(optimizers=[])
            >>> schedule = Schedule(optimizer, warmup_steps=10, total_steps=110, decay="linear")
            >>> [schedule.factor(step) for step in (0, 4, 9, 60, 110)]
            [0.1, 0.5, 1.0, 0.5, 0.0]
        """
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        done = (step - self._warmup_steps) / (self._total_steps - self._warmup_steps)
        done = min(1.0, done)
        if self._decay == "linear":
            return 1 - done
        if self._decay == "cosine":
            return float(0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * done)))
        return 1.0

    def apply(self, step: int) -> None:
        """Sets the rates for a step; the fused kernels read them at the next `zero_grad`."""
        factor = self.factor(step)
        for part, group, base in self._groups:
            group["lr"] = 0.0 if self._is_frozen(part, step) else base * factor

    def _is_frozen(self, part: ModelPart, step: int) -> bool:
        first, end = self._frozen.get(part, (0, 0))
        return step >= first and (end is None or step < end)
