"""Frozen language model in vLLM, which batches prompts on a GPU by itself."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from msrec.data.llm.encoder import Encoded, Prefix
from msrec.data.llm.models.layers import flops_per_token
from msrec.data.llm.store import Layer, Pooling
from msrec.data.llm.text.tokenization import PromptTokenizer


class VllmEncoder:
    """Hidden states of the last layer, after the final norm, pooled over the tokens of a prompt.

    It takes the place of a `FrozenEncoder`. Both compute the same vectors up to rounding. vLLM
    keeps the model, and on a GPU most of its memory, as long as this object lives.

    Args:
        folder: the model and its tokenizer.
        pooling: mean or last.
        layer: must be `last`.
        dtype: of the model.
        max_tokens: longer prompts are cut.
        is_chat: put prompts into the tokenizer's chat template if it has one.
        trust_remote_code: run code that comes with the model.
        device: of the model; the number of a GPU must be set before CUDA is used.

    Raises:
        ValueError: vLLM is not installed, or cannot do what the options ask for.
    """

    is_causal = False
    """Whether msrec shares beginnings of prompts; here it is left to vLLM."""
    packed = None

    def __init__(
        self,
        folder: Path,
        *,
        pooling: Pooling,
        layer: Layer,
        dtype: str,
        max_tokens: int,
        is_chat: bool,
        trust_remote_code: bool,
        device: torch.device,
    ) -> None:
        if pooling == "generate" or layer != "last":
            raise ValueError(
                f"llm.backend=vllm reads the last layer of the prompt (llm.pooling mean or last, "
                f"llm.layer last); got {pooling} and {layer}. Use llm.backend=transformers."
            )
        if device.type == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            own = visible[device.index or 0] if visible != [""] else str(device.index or 0)
            os.environ["CUDA_VISIBLE_DEVICES"] = own
        # In this process, so that the GPU is free again when the process ends, however it does.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import LLM
            from vllm.config import PoolerConfig
        except ImportError as error:
            raise ValueError(
                "llm.backend=vllm needs vLLM, in a version for the installed torch "
                f"({torch.__version__}): pip install vllm. {type(error).__name__}: {error}."
            ) from None
        trust = {"trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **trust)
        self.tokens = PromptTokenizer(tokenizer, max_tokens, is_chat=is_chat)
        self.device = device
        self.flops_per_token = flops_per_token(_without_weights(folder, **trust))
        # Without activation, which would scale vectors to length 1.
        pooler = PoolerConfig(seq_pooling_type=pooling.upper(), use_activation=False)
        self._llm = LLM(
            model=str(folder),
            runner="pooling",
            convert="embed",
            pooler_config=pooler,
            dtype=dtype,
            max_model_len=max_tokens,
            **trust,
        )

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Is never called, since `is_causal` is False."""
        raise NotImplementedError

    def encode(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Encoded:
        """Encodes token ids, see `FrozenEncoder.encode`."""
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        outputs = self._llm.embed(prompts, use_tqdm=False)
        return Encoded(np.array([output.outputs.embedding for output in outputs], np.float32))


def _without_weights(folder: Path, *, trust_remote_code: bool) -> nn.Module:
    """Returns the model of transformers with the shapes of its weights alone."""
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model: nn.Module = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    return model
