"""Progress of an encoding, and its speed compared with the machine's peak."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from msrec.data.llm.encoder import DTYPES, FrozenEncoder

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """State of an encoding.

    Attributes:
        done, total: prompts of this rank.
        encoded, tokens: prompts encoded by this run, and their tokens.
        seconds: time in the model.
        left_s: forecast of the seconds that are left; None before the first batch.
    """

    done: int
    total: int
    encoded: int
    tokens: int
    seconds: float
    left_s: float | None


@dataclass(frozen=True)
class Speed:
    """Work of one encoding, and its speed.

    Args:
        prompts: encoded prompts.
        tokens: their tokens, with those of shared prefixes.
        shared_tokens: tokens of common beginnings, which are computed once.
        seconds: time in the model.
        matmul_share: arithmetic of the layers' matrices for the computed tokens, as a share of a
            large matrix product on this machine in the same time.
    """

    prompts: int
    tokens: int
    shared_tokens: int
    seconds: float
    matmul_share: float


class SpeedCounter:
    """Adds up the work that is done, and reports it."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.total, self.on_progress = total, on_progress
        self.done = self.encoded = self.tokens = self.shared_tokens = 0
        self.seconds = 0.0
        self._known_prompts = self._known_work = 0

    def expect(self, prompts: int, work: int) -> None:
        """Counts prompts that will be encoded next, and the tokens that the model computes.

        Batches are sorted by length, longest first, so a forecast by prompts would be too long.
        """
        self._known_prompts += prompts
        self._known_work += work

    def add(self, prompts: int, tokens: int, shared_tokens: int = 0) -> None:
        """Counts prompts that are done; those of an earlier run or store have 0 tokens."""
        self.done += prompts
        self.encoded += prompts if tokens else 0
        self.tokens += tokens
        self.shared_tokens += shared_tokens
        if self.on_progress is not None:
            counts = (self.done, self.total, self.encoded, self.tokens)
            self.on_progress(Progress(*counts, self.seconds, self._left_s()))

    def _left_s(self) -> float | None:
        """Prompts that are not tokenised yet count as those that are."""
        work = self.tokens - self.shared_tokens
        if not work or not self._known_prompts:
            return None
        to_encode = self.total - self.done + self.encoded
        all_work = to_encode * self._known_work / self._known_prompts
        return self.seconds * max(all_work / work - 1, 0.0)

    def speed(self, encoder: FrozenEncoder, dtype: str) -> Speed:
        """Returns the speed so far; measures the machine's peak for it."""
        flops = (self.tokens - self.shared_tokens) * encoder.flops_per_token
        share = flops / (self.seconds * matmul_peak(dtype, encoder.device))
        return Speed(self.encoded, self.tokens, self.shared_tokens, self.seconds, share)


def matmul_peak(dtype: str, device: torch.device, size: int = 2048) -> float:
    """Returns the operations per second of a product of two square matrices, the best of 4."""
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
