"""The optimizers of a sharded model, part by part, and the schedule of their learning rates."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from msrec.model.distributed.sharding import TableSpec

Part = Literal["tables", "meta", "backbone"]
"""meta: all that reads the LLM's vectors; backbone: every other parameter outside the tables."""
META = (
    *("user_meta", "item_meta", "scenario_meta"),
    *("user_feature", "item_feature", "match", "learned_users"),
)
"""Modules of `DenseArch` that make up the part meta."""
FUSED = "fused"
_PARTS: dict[str, Part] = {
    FUSED: "tables",
    "tables": "tables",
    "meta": "meta",
    "backbone": "backbone",
}


def optimizers(
    dmp: DistributedModelParallel,
    spec: TableSpec,
    lr: float,
    weight_decay: float,
    meta_lr: float | None = None,
) -> CombinedOptimizer:
    """The fused optimizer of the tables and Adam for the rest, each under its base learning rate.

    Args:
        dmp: the sharded model.
        spec: of its tables.
        lr: of the backbone.
        weight_decay: of the parameters outside the tables.
        meta_lr: of the meta networks; None is `lr`.
    """
    rest = dict(in_backward_optimizer_filter(dmp.named_parameters()))
    keyed: dict[Part, dict[str, torch.nn.Parameter]] = {"tables": {}, "meta": {}, "backbone": {}}
    for name, parameter in rest.items():
        keyed[_part_of(name)][name] = parameter
    options: dict[Part, dict[str, Any]] = {
        "tables": {"lr": spec.lr, "eps": spec.eps},
        "meta": {"lr": lr if meta_lr is None else meta_lr, "weight_decay": weight_decay},
        "backbone": {"lr": lr, "weight_decay": weight_decay},
    }
    parts: list[tuple[str, KeyedOptimizer]] = [(FUSED, dmp.fused_optimizer)]
    for part, parameters in keyed.items():
        if parameters:

            def adam(
                parameters: list[torch.Tensor], options: dict[str, Any] = options[part]
            ) -> torch.optim.Optimizer:
                return torch.optim.Adam(parameters, **options)

            parts.append((part, KeyedOptimizerWrapper(parameters, adam)))
    return CombinedOptimizer(parts)


def _part_of(name: str) -> Part:
    if ".embedding_bags." in name:
        return "tables"
    return "meta" if any(f".over.{module}." in name for module in META) else "backbone"


class Schedule:
    """Linear warm-up, then decay to zero, as one factor on the learning rate of every group.

    Args:
        optimizer: of `optimizers`; its groups' present `lr` are the base rates.
        warmup_steps: steps from 0 to the base rate.
        total_steps: step at which a decay reaches zero.
        decay: "none", "linear" or "cosine".
        frozen: part -> steps [from, to) at which its rate is 0; a `to` of None is the end.
    """

    def __init__(
        self,
        optimizer: CombinedOptimizer,
        warmup_steps: int,
        total_steps: int,
        decay: Literal["none", "linear", "cosine"],
        frozen: Mapping[Part, tuple[int, int | None]] | None = None,
    ) -> None:
        self._groups = [
            (_PARTS[name], group, float(group["lr"]))
            for name, part in optimizer.optimizers
            for group in part.param_groups
        ]
        self._warmup_steps = warmup_steps
        self._total_steps = max(total_steps, warmup_steps + 1)
        self._decay = decay
        self._frozen = frozen or {}

    def factor(self, step: int) -> float:
        """Share of the base rate at a step, in [0, 1].

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

    def is_frozen(self, part: Part, step: int) -> bool:
        """Whether a part learns nothing at a step."""
        first, end = self._frozen.get(part, (0, 0))
        return step >= first and (end is None or step < end)

    def apply(self, step: int) -> None:
        """Set the rates for a step; the fused kernels take them at the next `zero_grad`."""
        factor = self.factor(step)
        for part, group, base in self._groups:
            group["lr"] = 0.0 if self.is_frozen(part, step) else base * factor
