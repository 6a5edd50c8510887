"""Prompts to token ids, in the model's chat form and within a number of tokens."""

from collections.abc import Sequence
from typing import Any


class PromptTokenizer:
    """A model's tokenizer, applied to prompts in the form that the model was trained on.

    Args:
        tokenizer: a tokenizer of transformers.
        max_tokens: longer prompts are cut, and reported.
        is_chat: use the tokenizer's chat template if it has one; False takes the text alone.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, *, is_chat: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.is_chat = is_chat

    def tokenize(
        self, texts: Sequence[str], *, system: str = "", keep_end: str = ""
    ) -> tuple[list[list[int]], list[bool]]:
        """Returns the token ids of each prompt, and whether it was cut.

        A prompt of more than `max_tokens` loses tokens just before its end: the text `keep_end`
        (the question) and what the chat form adds after it stay.

        Raises:
            ValueError: `max_tokens` leaves no room for the question.

        Example:
            With max_tokens=6 and a question of 2 tokens: a b c d e f Q Q -> a b c d Q Q.
        """
        rows = self._token_ids(texts, system)
        _, _, after = self._chat("\x00", system).rpartition("\x00")
        end_text = keep_end + after if self._has_chat else keep_end
        end = self.count([end_text])[0] if end_text else 0
        head = self.max_tokens - end
        if head < 1:
            raise ValueError(
                f"max_tokens must leave room for the question of {end} tokens; got "
                f"{self.max_tokens}."
            )
        is_cut = [len(row) > self.max_tokens for row in rows]
        kept = [
            row[:head] + row[len(row) - end :] if cut else row
            for row, cut in zip(rows, is_cut, strict=True)
        ]
        return kept, is_cut

    def prompt_lengths(self, texts: Sequence[str], system: str = "") -> list[int]:
        """Returns the tokens of each prompt in the chat form, uncut."""
        return [len(row) for row in self._token_ids(texts, system)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns the tokens of each text alone."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False)
        return [len(row) for row in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids that a model generated."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @property
    def _has_chat(self) -> bool:
        return self.is_chat and getattr(self.tokenizer, "chat_template", None) is not None

    def _token_ids(self, texts: Sequence[str], system: str) -> list[list[int]]:
        chats = [self._chat(text, system) for text in texts]
        # A chat template writes the special tokens itself.
        encoded = self.tokenizer(chats, add_special_tokens=not self._has_chat)
        return list(encoded["input_ids"])

    def _chat(self, text: str, system: str) -> str:
        """Returns the prompt as a conversation that the model has to answer next."""
        if not self._has_chat:
            return f"{system}\n{text}" if system else text
        user = {"role": "user", "content": text}
        if not system:
            return self._apply_template([user])
        try:
            return self._apply_template([{"role": "system", "content": system}, user])
        except Exception as error:  # jinja2 raises errors of the model's template, of any type
            if "system" not in str(error).lower():
                raise
            # The model knows no system role: its text goes into the question.
            return self._apply_template([{"role": "user", "content": f"{system}\n{text}"}])

    def _apply_template(self, messages: list[dict[str, str]]) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
