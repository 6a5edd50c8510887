"""Progress of an encoding, and its speed compared with the machine's peak."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import lru_cache
from operator import add

import torch

from msrec.data.llm.encoder import DTYPES

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """State of an encoding.

    Attributes:
        done, total: keys.
        encoded, tokens: prompts encoded by this run, and their tokens.
        seconds: time in the model; with several workers, of the encoding.
        left_s: forecast of the seconds that are left; None before the first batch.
    """

    done: int
    total: int
    encoded: int
    tokens: int
    seconds: float
    left_s: float | None


@dataclass(frozen=True)
class Work:
    """Work of an encoding; sums are made with `+`.

    Attributes:
        keys: that need nothing more: encoded, reused, without a text, or done by an earlier run.
        prompts, reused: encoded prompts, and vectors that are taken from an earlier store.
        truncated: encoded prompts that were cut.
        tokens: of the encoded prompts, with those of shared prefixes.
        shared_tokens: of common beginnings, which are computed once.
        seconds: in the model.
        flops: arithmetic of the layers' matrices for the computed tokens.
        peak_flops: arithmetic of a large matrix product, on the same machine, in these seconds.
    """

    keys: int = 0
    prompts: int = 0
    reused: int = 0
    truncated: int = 0
    tokens: int = 0
    shared_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    peak_flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        """Returns the sum."""
        return Work(*map(add, astuple(self), astuple(other)))

    @property
    def matmul_share(self) -> float:
        """Arithmetic as a share of what large matrix products would have done."""
        return self.flops / self.peak_flops if self.peak_flops else 0.0


class SpeedCounter:
    """Adds up the work that is done, and reports it."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total, self.on_progress = total, on_progress
        self.work = Work()
        self._known_prompts = self._known_tokens = 0

    def expect(self, prompts: int, tokens: int) -> None:
        """Counts prompts that will be encoded next, and the tokens that the model computes.

        Batches are sorted by length, longest first, so a forecast by prompts would be too long.
        """
        self._known_prompts += prompts
        self._known_tokens += tokens

    def add(self, work: Work) -> None:
        """Counts work that is done."""
        self.work += work
        if self.on_progress is not None:
            work = self.work
            counts = (work.keys, self.total, work.prompts, work.tokens)
            self.on_progress(Progress(*counts, work.seconds, self._left_s()))

    def _left_s(self) -> float | None:
        """Prompts that are not tokenised yet count as those that are."""
        computed = self.work.tokens - self.work.shared_tokens
        if not computed or not self._known_prompts:
            return None
        to_encode = self.total - self.work.keys + self.work.prompts
        all_tokens = to_encode * self._known_tokens / self._known_prompts
        return self.work.seconds * max(all_tokens / computed - 1, 0.0)


@lru_cache(maxsize=1)
def matmul_peak(dtype: str, device: torch.device, size: int = 2048) -> float:
    """Returns the operations per second of a product of two square matrices, the best of 4.

    It is measured once in a process.
    """
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
