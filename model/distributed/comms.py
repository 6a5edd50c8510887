"""Quantised communication: ranks send vectors and their gradients in 16 bits."""

from typing import Literal

import torch
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import QuantizedCommCodecs

Comms = Literal["fp32", "fp16"]
FP16_GRADIENT_SCALE = 2.0**12
"""Factor of gradients that are sent in fp16. A gradient of the mean over a batch is of the size of
1 / B, where fp16 has few digits left, and none below 6e-8."""


def comms_codecs(comms: Comms, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """Returns the codecs for a sharder; None sends float32.

    Gradients travel in bfloat16, which has the range of float32. Gloo cannot send it, so that CPUs
    send scaled float16. A value beyond the range of float16, 65504, becomes its largest number.
    """
    if comms == "fp32":
        return None
    is_cpu = device.type == "cpu"
    config = QCommsConfig(
        forward_precision=CommType.FP16,
        backward_precision=CommType.FP16 if is_cpu else CommType.BF16,
        backward_loss_scale=FP16_GRADIENT_SCALE if is_cpu else None,
    )
    return get_qcomm_codecs_registry(config, device=device)
