"""Many prompts through the frozen model: what they begin with once, then batches of like length."""

from collections.abc import Iterator
from typing import NamedTuple

from msrec.data.llm.encoder import Encoded, FrozenEncoder
from msrec.data.llm.tokenization import common_prefix, token_batches

SHORTEST_PREFIX = 8
"""Tokens that prompts must begin with in common for them to be computed once."""


class EncodedBatch(NamedTuple):
    """Some prompts of many: their places, their vectors, and the tokens that came from a prefix."""

    places: list[int]
    encoded: Encoded
    shared: int
    is_last: bool


def encoded_batches(
    encoder: FrozenEncoder, rows: list[list[int]], batch_tokens: int
) -> Iterator[EncodedBatch]:
    """Run token ids through the model: their common beginning once, then batches of like length."""
    shared = shared_beginning(encoder, rows)
    prefix = encoder.prefix(shared) if shared else None
    skip = len(shared)
    batches = token_batches([len(row) - skip for row in rows], batch_tokens)
    for number, places in enumerate(batches):
        encoded = encoder.encode([rows[place] for place in places], prefix)
        yield EncodedBatch(places, encoded, skip, number == len(batches) - 1)


def shared_beginning(encoder: FrozenEncoder, rows: list[list[int]]) -> list[int]:
    """The token ids that are computed once for all prompts; none where that does not pay."""
    shared = common_prefix(rows) if len(rows) > 1 and encoder.is_causal else []
    return shared if len(shared) >= SHORTEST_PREFIX else []
