"""Precision of the dense part: bfloat16 products in training, sensitive sums in float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from msrec.data.io.validation import Precision

TENSOR_CORES = (8, 0)
"""First compute capability of GPUs that multiply in TF32 and bfloat16."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuses a precision that a device does not compute in.

    Raises:
        ValueError: TF32 on a CPU, or TF32 or bfloat16 on a GPU older than Ampere.
    """
    if precision == "fp32" or (precision == "bf16" and device.type == "cpu"):
        return
    if device.type == "cpu":
        raise ValueError(
            "trainer.precision=tf32 needs a GPU, whose tensor cores compute it; this rank runs on "
            "a CPU. Use fp32 or bf16."
        )
    found = torch.cuda.get_device_capability(device)
    if found < TENSOR_CORES:
        raise ValueError(
            f"trainer.precision={precision} needs a GPU of compute capability 8.0 (Ampere) or "
            f"newer; {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}. Use fp32."
        )


def bfloat16_products(device_type: str, enabled: bool) -> AbstractContextManager[object]:
    """Returns a context in which matrix products take and return bfloat16, if it is enabled."""
    return torch.autocast(device_type, torch.bfloat16) if enabled else nullcontext()


def float32_products(x: Tensor) -> AbstractContextManager[object]:
    """Returns a context within `bfloat16_products` in which products keep the type of x."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if _is_autocast(kind) else nullcontext()


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the type in which a product with x is computed here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if _is_autocast(kind) else x.dtype


def _is_autocast(kind: str) -> bool:
    # The device "meta" knows no autocast.
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


@contextmanager
def tf32_products(enabled: bool) -> Iterator[None]:
    """Lets CUDA round the factors of float32 products to TF32 within, if it is enabled."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if enabled:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def widened(x: Tensor) -> Tensor:
    """Returns x in float32 if it is bfloat16, for a sum whose terms nearly cancel."""
    return x.float() if x.dtype == torch.bfloat16 else x


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Returns the softmax, float32 for bfloat16 logits. On CUDA autocast does so, on CPU not."""
    return widened(logits).softmax(dim)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm that returns float32 for bfloat16 input. On CUDA autocast does so, on CPU not.

    Shape:
        x: (..., dim), float.
        returns: as x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension."""
        return super().forward(widened(x))
