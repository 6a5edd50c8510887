"""The frozen language model: texts to vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

Pooling = Literal["last", "mean"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenEncoder:
    """Last-layer hidden states, after the final norm, pooled over the tokens of a prompt.

    Shorter prompts of a batch are padded on the right: under causal attention no real token sees
    what comes after it, positions stay those of the prompt alone, and pooling reads real tokens
    only, so a vector does not depend on its batch.

    Shape:
        encode: B prompts -> (B, H), float32.

    Raises:
        ValueError: an unknown pooling or dtype.

    Source:
        LLM4MSR (Wang et al., CIKM 2024) keeps the last hidden state of a sampled generation; which
        token is not known. Here nothing is generated, so a vector is repeatable; `last` is the
        nearest form, `mean` probes better on small models and is the default.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        pooling: Pooling = "mean",
        max_tokens: int = 256,
        device: torch.device | str = "cpu",
    ) -> None:
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling must be 'last' or 'mean'; got {pooling!r}.")
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = max_tokens
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad is None else int(pad)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        pooling: Pooling = "mean",
        dtype: str = "bfloat16",
        max_tokens: int = 256,
        device: torch.device | str = "cpu",
    ) -> "FrozenEncoder":
        """Load the base model, without its LM head, and the tokenizer from a local folder."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        logging.disable_progress_bar()  # the job has its own
        model = AutoModel.from_pretrained(str(folder), dtype=DTYPES[dtype], trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return cls(model, tokenizer, pooling=pooling, max_tokens=max_tokens, device=device)

    def tokenize(
        self, texts: Sequence[str], *, system: str = "", keep_end: str = ""
    ) -> tuple[list[list[int]], list[bool]]:
        """Token ids of every prompt, in the model's chat form, and whether it was cut.

        A prompt of more than `max_tokens` loses tokens just before its end: the text `keep_end`
        (the question) and what the chat form adds after it stay.

        Raises:
            ValueError: `max_tokens` leaves no room for the question.

        Example:
            With max_tokens=6 and a question of 2 tokens: a b c d e f Q Q -> a b c d Q Q.
        """
        chats = [self._chat(text, system) for text in texts]
        ids = self.tokenizer(chats, add_special_tokens=not self._has_chat)["input_ids"]
        _, _, after = self._chat("\x00", system).rpartition("\x00")
        ending = (keep_end + after) if self._has_chat else keep_end
        end = len(self.tokenizer(ending, add_special_tokens=False)["input_ids"]) if ending else 0
        head = self.max_tokens - end
        if head < 1:
            raise ValueError(
                f"max_tokens must leave room for the question of {end} tokens; got "
                f"{self.max_tokens}."
            )
        cut = [len(row) > self.max_tokens for row in ids]
        kept = [
            row[:head] + row[len(row) - end :] if is_cut else row
            for row, is_cut in zip(ids, cut, strict=True)
        ]
        return kept, cut

    @torch.inference_mode()
    def encode(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """The vectors of one batch of token ids.

        Raises:
            ValueError: a prompt has no token.
        """
        lengths = torch.tensor([len(row) for row in rows])
        if int(lengths.min()) == 0:
            raise ValueError(f"prompt {int(lengths.argmin())} of the batch must have a token.")
        ids = torch.full((len(rows), int(lengths.max())), self.pad_id)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = torch.tensor(row)
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]
        ids, real, lengths = (part.to(self.device) for part in (ids, real, lengths))
        states = self.model(
            input_ids=ids, attention_mask=real.long(), use_cache=False
        ).last_hidden_state
        if self.pooling == "last":
            pooled = states[torch.arange(len(rows), device=self.device), lengths - 1].float()
        else:
            summed = states.float().masked_fill(~real[..., None], 0.0).sum(1)
            pooled = summed / lengths[:, None]
        return np.asarray(pooled.cpu().numpy())

    @property
    def _has_chat(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    def _chat(self, text: str, system: str) -> str:
        """The prompt as a conversation that the model is about to answer."""
        if not self._has_chat:
            return f"{system}\n{text}" if system else text
        user = {"role": "user", "content": text}
        first = [{"role": "system", "content": system}] if system else []
        try:
            return self._applied([*first, user])
        except Exception as error:  # jinja2 raises what the model's template says
            if not first or "system" not in str(error).lower():
                raise
            return self._applied([{"role": "user", "content": f"{system}\n{text}"}])

    def _applied(self, messages: list[dict[str, str]]) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped into batches, longest first; a padded batch has at most `batch_tokens`.

    A prompt longer than that is a batch of its own.

    Example:
        >>> token_batches([3, 9, 4, 3], batch_tokens=9)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    width = 0
    for position in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
            width = lengths[position]
    return batches
