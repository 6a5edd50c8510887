"""Trainings for the lines of `msrec bench gpu`: some steps, without the files of a run."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from msrec.data.loading.batch import Batch
from msrec.launch.config.run_config import RunConfig, with_overrides
from msrec.launch.distributed import Process, seed_step
from msrec.launch.training.trainer import Trainer
from msrec.model.layers.precision import tf32_products
from msrec.tools.bench.gpu.setting import Setting

LIMIT = 1e-4
"""Largest difference of a loss on the GPU, where sums are added in another order."""


def train(trainer: Trainer, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """Yields the loss of each step, the sum over labels, on the device."""
    steps = itertools.count()

    def before_step() -> None:
        step = next(steps)
        trainer.schedule.apply(step)
        seed_step(trainer.config.seed, step, trainer.process.rank)

    trainer.model.train()
    with tf32_products(trainer.config.trainer.precision == "tf32"):
        for outcome in trainer.pipeline.outcomes(iter(batches), before_step):
            yield outcome.losses.detach().sum()


def first_batches(trainer: Trainer, count: int) -> list[Batch]:
    """Returns the first batches of the training split, in host memory.

    Raises:
        ValueError: there are fewer.
    """
    batches = list(itertools.islice(trainer.train.batches(), count))
    if len(batches) < count:
        raise ValueError(f"the data must have {count} batches; it has {len(batches)}.")
    return batches


def losses(trainer: Trainer, batches: Iterable[Batch]) -> list[float]:
    """Trains the batches and returns their losses."""
    return [float(loss) for loss in train(trainer, batches)]


def local_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of the only rank by name; a table that is sharded has one shard."""
    tensors = {}
    for name, value in model.state_dict().items():
        for number, shard in enumerate(value.local_shards() if _is_sharded(value) else ()):
            tensors[f"{name}.{number}"] = shard.tensor.detach()
        if not _is_sharded(value):
            tensors[name] = value.detach()
    return tensors


def _is_sharded(value: object) -> bool:
    return hasattr(value, "local_shards")


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Gives a model the weights of an equal one on another device."""
    theirs = local_tensors(source)
    with torch.no_grad():
        for name, tensor in local_tensors(target).items():
            tensor.copy_(theirs[name])


def difference_from_cpu(
    setting: Setting, process: Process, config: RunConfig, steps: int = 3
) -> float:
    """Trains the same steps on the CPU and on the device; returns the largest loss difference."""
    alone = Process(0, 1, 1, torch.device("cpu"))
    on_cpu = Trainer(with_overrides(config, ["device=cpu"]), alone)
    on_device = Trainer(config, process)
    copy_weights(on_cpu.model, on_device.model)
    batches = first_batches(on_cpu, steps)
    expected, found = losses(on_cpu, batches), losses(on_device, batches)
    assert setting.kind == process.device.type
    return largest_difference(expected, found)


def largest_difference(expected: Sequence[float], found: Sequence[float]) -> float:
    """Returns the largest absolute difference.

    Raises:
        ValueError: one is not finite, or there is another number of them.
    """
    if len(expected) != len(found):
        raise ValueError(f"there must be {len(expected)} values; there are {len(found)}.")
    both = torch.tensor([expected, found], dtype=torch.float64)
    if not torch.isfinite(both).all():
        raise ValueError(f"losses must be finite; got {expected} and {found}.")
    return float((both[0] - both[1]).abs().max())


def require_below(limit: float, difference: float, what: str) -> None:
    """Checks a difference.

    Raises:
        ValueError: it is above the limit.
    """
    if not difference <= limit:
        raise ValueError(f"{what} must be within {limit:g}; got {difference:.3g}.")


def each_case(cases: Iterable[str], differ: Callable[[str], float]) -> dict[str, float | str]:
    """Returns the difference of each case, or the error of one that fails."""
    results: dict[str, float | str] = {}
    for case in cases:
        try:
            results[case] = differ(case)
        except Exception as error:  # noqa: BLE001 - shown for this case; the others still run
            results[case] = f"{type(error).__name__}: {error}"[:300]
    return results


def agreement(results: dict[str, float | str], limit: float) -> str:
    """Returns a sentence on the cases.

    Raises:
        ValueError: a case failed or differs by more than `limit`.
    """
    wrong = {
        name: value
        for name, value in results.items()
        if isinstance(value, str) or not value <= limit
    }
    if wrong:
        shown = "; ".join(
            f"{name}: {value if isinstance(value, str) else f'{value:.2g}'}"
            for name, value in wrong.items()
        )
        raise ValueError(
            f"{len(wrong)} of {len(results)} cases must agree within {limit:g}: {shown}"
        )
    worst = max(results, key=lambda name: float(results[name]))
    return f"{len(results)} cases, largest difference {results[worst]:.1e} ({worst})"
