"""Checks that a model folder holds a model that can encode prompts of some length."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig


def check_model(
    folder: Path, max_tokens: int, answer_tokens: int = 0, *, trust_remote_code: bool = False
) -> None:
    """Checks the config of a model, before anything is written.

    Args:
        folder: the model.
        max_tokens: tokens of the longest prompt.
        answer_tokens: tokens of the longest answer, if the model generates one.
        trust_remote_code: whether code in the folder may run.

    Raises:
        ValueError: the config cannot be read, the model is an encoder-decoder, or its context is
            too short.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(folder, error) from None
    if config.is_encoder_decoder:
        raise ValueError(
            f"llm.model must be a decoder (such as Llama or Qwen) or an encoder (such as BERT); "
            f"{folder} is an encoder-decoder, {config.model_type}."
        )
    text_config = config.get_text_config()
    require_context(
        getattr(text_config, "max_position_embeddings", None), folder, max_tokens, answer_tokens
    )


def require_context(context: Any, model: object, max_tokens: int, answer_tokens: int = 0) -> None:
    """Refuses prompts that are longer than a model's context; None means that it has no limit.

    Raises:
        ValueError: the context is too short.
    """
    if not isinstance(context, int) or context <= 0 or max_tokens + answer_tokens <= context:
        return
    answer = f" plus llm.answer_tokens ({answer_tokens})" if answer_tokens else ""
    raise ValueError(
        f"llm.max_tokens{answer} must be at most {context:,}, the context of {model}; got "
        f"{max_tokens + answer_tokens:,}."
    )


def learned_positions(model: nn.Module) -> int | None:
    """Returns the number of positions that a model has vectors for; None if it learns none."""
    tables = [
        # RoBERTa numbers positions from the one after its padding.
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe"))
    ]
    return min(tables, default=None)


def unreadable(folder: Path | str, error: Exception) -> ValueError:
    """Returns the error for a folder that transformers cannot load."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return ValueError(f"{folder} must hold a model that transformers can load; {reason}.")
