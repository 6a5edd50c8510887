"""How much of an encoding is done, and how fast it goes beside what the machine can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from msrec.data.llm.encoder import DTYPES, FrozenEncoder

Progress = Callable[[int, int, int], None]
"""Called with (prompts done, prompts of this rank, tokens of prompts encoded in this run)."""


@dataclass(frozen=True)
class Speed:
    """What a run computed, and how fast.

    tokens: of prompts; `reused` of them were those that prompts begin with in common.
    matmul_share: multiplications of the layers' matrices for the tokens that were run, as a share
        of what the machine does in a large product of two matrices in the same time.
    """

    prompts: int
    tokens: int
    reused: int
    seconds: float
    matmul_share: float


class Counter:
    """Adds up what is done, and tells the caller."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self.done, self.total, self.tokens, self.reused, self.encoded = 0, total, 0, 0, 0
        self.seconds = 0.0
        self.on_progress = on_progress

    def add(self, prompts: int, tokens: int, reused: int = 0) -> None:
        """Count prompts that are done; they have no tokens if an earlier run encoded them."""
        self.done += prompts
        self.encoded += prompts if tokens else 0
        self.tokens += tokens
        self.reused += reused
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, self.tokens)

    def speed(self, encoder: FrozenEncoder, dtype: str) -> Speed:
        """What was counted, beside the machine's own peak."""
        flops = (self.tokens - self.reused) * encoder.flops_per_token
        share = flops / (self.seconds * matmul_peak(dtype, encoder.device))
        return Speed(self.encoded, self.tokens, self.reused, self.seconds, share)


def matmul_peak(dtype: str, device: torch.device, size: int = 2048) -> float:
    """Multiplications and additions a second in a product of two square matrices, the best of 3."""
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
