"""Prompts to token ids: chat form, cutting, what prompts begin with in common, batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class PromptTokenizer:
    """A model's tokenizer, and prompts in the form that the model was trained on.

    Args:
        tokenizer: of transformers.
        max_tokens: longer prompts are cut, and reported.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

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

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        if not texts:
            return []
        return [len(r) for r in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of what a model generated."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

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


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with, at least one token short of the shortest.

    Example:
        >>> common_prefix([[5, 6, 7, 8], [5, 6, 9]])
        [5, 6]
        >>> common_prefix([[5, 6], [5, 6, 9]])
        [5]
    """
    if not rows:
        return []
    first, last = min(rows), max(rows)  # what these two share, all that lie between share
    shortest = min(map(len, rows)) - 1
    same = 0
    while same < shortest and first[same] == last[same]:
        same += 1
    return list(first[:same])


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped into batches, longest first; a padded batch has at most `batch_tokens`.

    A prompt longer than that is a batch of its own.

    Example:
        >>> token_batches([3, 9, 4, 3], batch_tokens=9)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    width = 0
    for position in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
            width = lengths[position]
    return batches
