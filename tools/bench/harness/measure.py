"""Runs cases in turn and compares them: medians, spread and ratios."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Literal, NamedTuple

Aim = tuple[Literal["at least", "at most"], float]
"""Bound that a ratio should keep."""


class Seconds(NamedTuple):
    """Time that some code takes.

    `clock` is wall time. `processor` is the CPU time of this process and of the child processes
    that it waited for; other programs on the machine hardly change it.
    """

    clock: float
    processor: float

    def __sub__(self, earlier: "Seconds") -> "Seconds":
        return Seconds(self.clock - earlier.clock, self.processor - earlier.processor)


Case = Callable[[], object]
"""One round of a case. If it returns `Seconds`, it timed itself; otherwise the call is timed."""


def now() -> Seconds:
    """Returns the clock and the CPU time so far, when a GPU has done all that it was given."""
    if is_cuda_in_use():
        sys.modules["torch"].cuda.synchronize()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = time.process_time() + children.ru_utime + children.ru_stime
    return Seconds(time.perf_counter(), processor)


def is_cuda_in_use() -> bool:
    """Returns whether this process runs work on a GPU; it does not import torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def timed(case: Case) -> Seconds:
    """Returns the time of one call, by the case's own timing if it has one."""
    start = now()
    result = case()
    end = now()
    return result if isinstance(result, Seconds) else end - start


def interleaved(
    cases: Mapping[str, Case], repeats: int, warm_up: int = 1
) -> dict[str, list[Seconds]]:
    """Runs every case once per round, so that a slow moment of the machine affects all of them.

    Each round begins one case later than the round before, so that no case always follows the
    same one.

    Args:
        cases: cases by name.
        repeats: rounds that count.
        warm_up: rounds before them that do not count.

    Raises:
        ValueError: `repeats` is below 1.

    Example:
        >>> calls = []
        >>> cases = {name: lambda name=name: calls.append(name) for name in "ab"}
        >>> sorted(interleaved(cases, repeats=2, warm_up=0)), calls
        (['a', 'b'], ['a', 'b', 'b', 'a'])
    """
    if repeats < 1:
        raise ValueError(f"a bench must run at least one round; got repeats={repeats}.")
    names = list(cases)
    rounds: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(-warm_up, repeats):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            seconds = timed(cases[name])
            if number >= 0:
                rounds[name].append(seconds)
    return rounds


@dataclass(frozen=True)
class Finding:
    """Our figure compared with a reference.

    Units:
        ours, reference: `unit`, medians over the rounds. ratio, rounds: ours / reference.
    """

    what: str
    unit: str
    ours: float
    reference: float
    rounds: list[float]
    processor_ratio: float | None = None
    """The same ratio in CPU time; None if it was not measured."""
    aim: Aim | None = None

    @property
    def ratio(self) -> float:
        """Median of `rounds`, not the ratio of the medians: the speed of a machine drifts."""
        return median(self.rounds)

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio by the clock keeps its aim; None without an aim."""
        if self.aim is None:
            return None
        kind, bound = self.aim
        return self.ratio >= bound if kind == "at least" else self.ratio <= bound


def compare_rates(
    what: str,
    ours: Sequence[Seconds],
    reference: Sequence[Seconds],
    amount: float | tuple[float, float],
    unit: str = "rows/s",
    aim: Aim | None = None,
) -> Finding:
    """Compares speeds; a larger ratio is better.

    Args:
        what: name of the comparison.
        ours: our rounds.
        reference: the reference's rounds, in the same order.
        amount: work done in one round, by both or as (ours, reference).
        unit: unit of the amount per second.
        aim: bound for the ratio.

    Example:
        >>> speed = compare_rates("x", [Seconds(1, 1)], [Seconds(2, 2)], amount=10)
        >>> speed.ours, speed.reference, speed.ratio
        (10.0, 5.0, 2.0)
    """
    own, other = amount if isinstance(amount, tuple) else (amount, amount)
    pairs = list(zip(ours, reference, strict=True))
    is_measured = all(a.processor > 0 and b.processor > 0 for a, b in pairs)
    by_processor = [own / a.processor / (other / b.processor) for a, b in pairs if is_measured]
    return Finding(
        what,
        unit,
        ours=median(own / seconds.clock for seconds in ours),
        reference=median(other / seconds.clock for seconds in reference),
        rounds=[own / a.clock / (other / b.clock) for a, b in pairs],
        processor_ratio=median(by_processor) if is_measured else None,
        aim=aim,
    )


def compare_times(
    what: str,
    ours: Sequence[Seconds],
    reference: Sequence[Seconds],
    calls: int = 1,
    aim: Aim | None = None,
) -> Finding:
    """Compares times in ms per call, where a round has `calls` calls; a smaller ratio is better.

    Example:
        >>> compare_times("x", [Seconds(1, 1)], [Seconds(2, 2)]).ratio
        0.5
    """
    own_ms = 1e3 * median(seconds.clock for seconds in ours) / calls
    other_ms = 1e3 * median(seconds.clock for seconds in reference) / calls
    speed = compare_rates(what, reference, ours, calls, unit="ms", aim=aim)
    return replace(speed, ours=own_ms, reference=other_ms)


def compare_values(
    what: str, ours: float, reference: float, unit: str, aim: Aim | None = None
) -> Finding:
    """Compares exact figures that need one round only, such as bytes."""
    return Finding(what, unit, ours, reference, [ours / reference], aim=aim)


def compare_all(
    what: str,
    rounds: Mapping[str, Sequence[Seconds]],
    amount: float,
    unit: str = "rows/s",
    aims: Mapping[str, Aim] | None = None,
) -> list[Finding]:
    """Compares the speed of the first case with that of every other case.

    Args:
        what: beginning of the comparisons' names.
        rounds: as `interleaved` returns them.
        amount: work done in one round.
        unit: unit of the amount per second.
        aims: bounds for the ratios, by the name of the other case.
    """
    (_, ours), *references = rounds.items()
    return [
        compare_rates(f"{what}: against {name}", ours, times, amount, unit, (aims or {}).get(name))
        for name, times in references
    ]


def spread(values: Sequence[float]) -> float:
    """Returns the interquartile range as a share of the median; 0 for a single value.

    Example:
        >>> spread([9.0, 10.0, 10.0, 11.0])
        0.05
    """
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / median(values)
