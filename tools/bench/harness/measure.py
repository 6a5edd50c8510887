"""Run cases in turn, several times, and say how they compare: medians, spread, ratios."""

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

Aim = tuple[Literal["at least", "at most"], float]
"""What a ratio should be."""
Took = tuple[float, float]
"""Seconds of the clock, and of processor time of this process and of those that it waited for.

Other programs on the machine lengthen the first, and hardly the second.
"""
Case = Callable[[], Took | None]
"""One round of a case. One that is not all to be timed returns what it took itself."""


def timed(work: Callable[[], object]) -> Took:
    """Seconds that one call takes."""
    started, processor = now()
    work()
    ended, processor_ended = now()
    return ended - started, processor_ended - processor


def now() -> Took:
    """The clock, and the processor time so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def interleaved(cases: Mapping[str, Case], repeats: int, warm_up: int = 1) -> dict[str, list[Took]]:
    """Every case once a round, so that what a machine does to one it does to all.

    A round begins one case later than the one before, so that none always follows the same one.

    Args:
        cases: by name.
        repeats: rounds that count.
        warm_up: rounds before them that do not.

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
    took: dict[str, list[Took]] = {name: [] for name in names}
    for number in range(-warm_up, repeats):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            inside: list[Took | None] = []
            outside = timed(lambda name=name, inside=inside: inside.append(cases[name]()))  # type: ignore[misc]
            if number >= 0:
                took[name].append(inside[0] or outside)
    return took


def spread(values: list[float]) -> float:
    """The middle half of the values, as a share of their median; 0 of one value.

    Example:
        >>> spread([9.0, 10.0, 10.0, 11.0])
        0.05
    """
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / median(values)


@dataclass(frozen=True)
class Finding:
    """We beside a reference.

    Units:
        ours, reference: of `unit`, medians over the rounds. ratio, rounds: ours / reference.
    """

    what: str
    unit: str
    ours: float
    reference: float
    ratio: float
    """The median of the rounds' own ratios, not the ratio of the medians: machines drift."""
    rounds: list[float]
    spread: float
    """Of `rounds`."""
    processor_ratio: float | None
    """The same in processor time."""
    aim: Aim | None
    limit: str
    """What the ratio approaches, and what forbids more."""

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio is as it should be, by the clock."""
        if self.aim is None:
            return None
        how, bound = self.aim
        return self.ratio >= bound if how == "at least" else self.ratio <= bound


def rates(
    what: str,
    ours: list[Took],
    reference: list[Took],
    work: float | tuple[float, float],
    unit: str = "rows/s",
    aim: Aim | None = None,
    limit: str = "",
) -> Finding:
    """Compare speeds; a larger ratio is better.

    Args:
        what: is compared.
        ours: its rounds.
        reference: of the same rounds.
        work: that a round does, of both or (ours, reference).
        unit: of work a second.
        aim: of the ratio.
        limit: what the ratio approaches.

    Example:
        >>> found = rates("x", [(1.0, 1.0)], [(2.0, 2.0)], work=10)
        >>> found.ours, found.reference, found.ratio
        (10.0, 5.0, 2.0)
    """
    done, of_reference = work if isinstance(work, tuple) else (work, work)
    by_clock, by_processor = (
        [done / a[at] / (of_reference / b[at]) for a, b in zip(ours, reference, strict=True)]
        if all(pair[at] > 0 for pair in (*ours, *reference))
        else []
        for at in (0, 1)
    )
    return Finding(
        what,
        unit,
        median(done / clock for clock, _ in ours),
        median(of_reference / clock for clock, _ in reference),
        median(by_clock),
        by_clock,
        spread(by_clock),
        median(by_processor) if by_processor else None,
        aim,
        limit,
    )


def times(
    what: str,
    ours: list[Took],
    reference: list[Took],
    aim: Aim | None = None,
    limit: str = "",
    calls: int = 1,
) -> Finding:
    """Compare times, in ms a call; a smaller ratio is better.

    Example:
        >>> times("x", [(1.0, 1.0)], [(2.0, 2.0)]).ratio
        0.5
    """
    found = rates(what, reference, ours, calls)
    return Finding(
        what,
        "ms",
        1e3 * median(clock for clock, _ in ours) / calls,
        1e3 * median(clock for clock, _ in reference) / calls,
        found.ratio,
        found.rounds,
        found.spread,
        found.processor_ratio,
        aim,
        limit,
    )


def sizes(
    what: str, ours: float, reference: float, unit: str, aim: Aim | None = None, limit: str = ""
) -> Finding:
    """Compare figures that one round tells exactly, such as bytes."""
    ratio = ours / reference
    return Finding(what, unit, ours, reference, ratio, [ratio], 0.0, None, aim, limit)
