"""Optimizers of the parts of a sharded model, and the schedule of their learning rates."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import (
    CombinedOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
    OptimizerWrapper,
)
from torchrec.optim.optimizers import in_backward_optimizer_filter

from msrec.model.distributed.table_options import TableOptions

ModelPart = Literal["tables", "meta", "backbone"]
"""meta: all that reads LLM vectors; backbone: every other parameter outside the tables."""
META_MODULES = (
    *("user_meta", "item_meta", "scenario_meta"),
    *("user_feature", "item_feature", "match", "learned_users", "interest"),
)
"""Modules of `DenseArch` that form the part meta."""
FUSED = "fused"
"""Key of the fused optimizer of the tables in a checkpoint; other keys are names of parts."""
REPLICATED = ""
"""Key of the optimizer of the parts meta and backbone if it clips or accumulates gradients; empty,
so that names in a checkpoint stay the same."""
REPLICATED_PARTS: tuple[ModelPart, ...] = ("meta", "backbone")
Adam: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, fused=True)
"""One kernel for each tensor, on CPUs and GPUs, in place of a dozen."""


def optimizers(
    dmp: DistributedModelParallel,
    tables: TableOptions,
    lr: float,
    weight_decay: float,
    meta_lr: float | None = None,
    max_grad_norm: float | None = None,
    accumulate: int = 1,
) -> CombinedOptimizer:
    """Returns the fused optimizer of the tables and Adam for the rest, at their base rates.

    Gradients outside the tables may be accumulated over batches and clipped. The fused optimizer
    updates the tables in each backward pass, unclipped.

    Args:
        dmp: the sharded model.
        tables: options of its tables.
        lr: learning rate of the backbone.
        weight_decay: of the parameters outside the tables.
        meta_lr: learning rate of the part meta; None is `lr`.
        max_grad_norm: largest norm of all gradients outside the tables; None does not clip.
        accumulate: batches per step outside the tables.
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
    is_wrapped = max_grad_norm is not None or accumulate > 1
    for part, of_part in parameters.items():
        if of_part and (part == "tables" or not is_wrapped):
            keyed.append((part, KeyedOptimizerWrapper(of_part, partial(Adam, **options[part]))))
    if is_wrapped:
        # One Adam for both parts, since TorchRec's wrappers keep a reference to the state of one.
        groups = [
            {"params": list(parameters[part].values()), "part": part, **options[part]}
            for part in REPLICATED_PARTS
        ]
        named = {f"{p}.{n}": value for p in REPLICATED_PARTS for n, value in parameters[p].items()}
        replicated = KeyedOptimizerWrapper(named, lambda _: Adam(groups))
        if max_grad_norm is not None:
            by_norm = GradientClipping.NORM
            replicated = GradientClippingOptimizer(replicated, by_norm, max_grad_norm)
        if accumulate > 1:
            replicated = AccumulatingOptimizer(replicated, accumulate)
        keyed.append((REPLICATED, replicated))
    return CombinedOptimizer(keyed)


class AccumulatingOptimizer(OptimizerWrapper):  # type: ignore[misc]  # TorchRec has no types
    """Takes a step with the mean gradient of every `batches` batches.

    A checkpoint may fall between two steps: `gradients` has to be saved with it, and `resume` to be
    called with the number of batches so far.
    """

    def __init__(self, optimizer: KeyedOptimizer, batches: int) -> None:
        super().__init__(optimizer)
        self._batches = batches
        self._pending = 0

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clears the gradients, unless they are those of earlier batches of the next step."""
        if not self._pending:
            super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        """Counts a batch, and takes a step after the last one."""
        self._pending = (self._pending + 1) % self._batches
        if self._pending:
            return
        for parameter in self.params.values():
            if parameter.grad is not None:
                parameter.grad /= self._batches
        super().step(closure)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Returns the sum of the gradients since the last step, by parameter."""
        return {
            f"gradient/{name}": torch.zeros_like(parameter)
            if not self._pending or parameter.grad is None
            else parameter.grad
            for name, parameter in self.params.items()
        }

    def resume(self, batches: int, gradients: Mapping[str, torch.Tensor]) -> None:
        """Continues after `batches` batches with what `gradients` returned then."""
        self._pending = batches % self._batches
        for name, parameter in self.params.items():
            parameter.grad = gradients[f"gradient/{name}"]

    def init_states(self) -> None:
        """Makes the next call of `step` a real one, as TorchRec's `init_state` needs it."""
        self._pending = self._batches - 1


def accumulator(optimizer: CombinedOptimizer) -> AccumulatingOptimizer | None:
    """Returns the part of an optimizer that accumulates gradients, if it does."""
    last = optimizer.optimizers[-1][1]
    return last if isinstance(last, AccumulatingOptimizer) else None


def init_state(optimizer: CombinedOptimizer) -> None:
    """Creates the optimizer state as before the first step; the weights stay as they are.

    TorchRec takes a step with zero gradients to create it. Weight decay would make that step change
    the weights, and Adam counts it.
    """
    if (accumulating := accumulator(optimizer)) is not None:
        accumulating.init_states()
    decays = [(g, g["weight_decay"]) for _, g in _groups(optimizer) if "weight_decay" in g]
    for group, _ in decays:
        group["weight_decay"] = 0.0
    optimizer.init_state(set())
    for group, decay in decays:
        group["weight_decay"] = decay
    for key, of_part in optimizer.optimizers:
        for state in of_part.state.values() if key != FUSED else ():
            for tensor in state.values():
                tensor.zero_()


def _groups(optimizer: CombinedOptimizer) -> Iterator[tuple[ModelPart, dict[str, Any]]]:
    """Yields each group of parameters and its part."""
    for key, of_part in optimizer.optimizers:
        for group in of_part.param_groups:
            part = group["part"] if key == REPLICATED else "tables" if key == FUSED else key
            yield cast(ModelPart, part), group


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
        self._groups = [(part, group, float(group["lr"])) for part, group in _groups(optimizer)]
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
