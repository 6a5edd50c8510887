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


def comms_codecs(comms: Comms) -> dict[str, QuantizedCommCodecs] | None:
    """Returns the codecs for a sharder; None sends float32.

    Vectors travel in float16; a value beyond its range, 65504, becomes its largest number.
    Gradients travel in bfloat16, which has the range of float32: those of the mean over a batch
    would be zeros in float16.
    """
    if comms == "fp32":
        return None
    config = QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.BF16)
    # For a CPU TorchRec would take float16 in place of bfloat16. But gloo only copies gradients
    # (all-to-all, all-gather), and that it does in any type.
    return get_qcomm_codecs_registry(config, device=torch.device("cuda"))
