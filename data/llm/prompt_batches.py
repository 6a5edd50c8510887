"""Batches of prompts: beginnings that prompts share are computed once, the rest without padding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from msrec.data.llm.encoder import Encoded, Prefix
from msrec.data.llm.models.packing import PackedModel, num_nodes

MIN_PREFIX_TOKENS = 8
"""A shorter common prefix does not pay for the extra pass."""


class Encoder(Protocol):
    """Model that encodes batches; see `FrozenEncoder`."""

    @property
    def is_causal(self) -> bool:
        """Whether a token depends only on those before it, so that a `Prefix` can be shared."""
        ...

    @property
    def packed(self) -> PackedModel | None:
        """The model for packed batches; None where prompts are padded."""
        ...

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Runs the tokens that prompts begin with."""
        ...

    def encode(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Encoded:
        """Encodes one batch of token ids, which begin with those of the prefix."""
        ...


class EncodedBatch(NamedTuple):
    """Encoded prompts of one batch, with their positions in the input.

    `computed_tokens` is the number of tokens that the model ran for the batch, without padding and
    the prefix of all prompts; `all_computed` is their sum over all batches.
    """

    positions: list[int]
    encoded: Encoded
    computed_tokens: int
    all_computed: int
    is_last: bool


def encoded_batches(
    encoder: Encoder, rows: list[list[int]], batch_tokens: int
) -> Iterator[EncodedBatch]:
    """Encodes token ids in batches of at most `batch_tokens` tokens.

    Prompts of a level begin with the same introduction. A causal model computes the same keys and
    values for it in every prompt, so one pass over it serves all of them. The rest is padded, in
    batches of similar length. Prompts without such a prefix are packed instead. A causal model then
    gets them in the order of their tokens, in which those of a batch have the most in common.
    """
    shared = shared_prefix(encoder, rows)
    prefix = encoder.prefix(shared) if shared else None
    batches = planned_batches(encoder, rows, batch_tokens)
    all_computed = sum(tokens for _, tokens in batches)
    for number, (positions, tokens) in enumerate(batches):
        encoded = encoder.encode([rows[position] for position in positions], prefix)
        is_last = number == len(batches) - 1
        yield EncodedBatch(positions, encoded, tokens, all_computed, is_last)


def planned_batches(
    encoder: Encoder, rows: list[list[int]], batch_tokens: int
) -> list[tuple[list[int], int]]:
    """Returns the positions of each batch, and the tokens to compute after the shared prefix."""
    skip = len(shared_prefix(encoder, rows))
    lengths = [len(row) - skip for row in rows]
    if encoder.packed is None or skip:
        batches = token_batches(lengths, batch_tokens)
        return [(batch, sum(lengths[place] for place in batch)) for batch in batches]
    if not encoder.is_causal:
        batches = packed_batches(lengths, longest_first(lengths), batch_tokens)
        return [(batch, sum(lengths[place] for place in batch)) for batch in batches]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    batches = packed_batches(lengths, order, batch_tokens)
    return [(batch, num_nodes([rows[place] for place in batch])) for batch in batches]


def shared_prefix(encoder: Encoder, rows: list[list[int]]) -> list[int]:
    """Returns the token ids to compute once for all prompts; empty if that does not pay."""
    shared = common_prefix(rows) if len(rows) > 1 and encoder.is_causal else []
    return shared if len(shared) >= MIN_PREFIX_TOKENS else []


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """Returns the common prefix of all rows, at least one token shorter than the shortest row.

    Example:
        >>> common_prefix([[5, 6, 7, 8], [5, 6, 9]]), common_prefix([[5, 6], [5, 6, 9]])
        ([5, 6], [5])
    """
    if not rows:
        return []
    # In lexicographic order, a prefix of the first and the last row is one of all rows between.
    first, last = min(rows), max(rows)
    longest = min(map(len, rows)) - 1
    length = 0
    while length < longest and first[length] == last[length]:
        length += 1
    return list(first[:length])


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups positions into batches, longest first; a padded batch has at most `batch_tokens`.

    A prompt longer than that is a batch by itself.

    Example:
        >>> token_batches([3, 9, 4, 3], batch_tokens=9)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    width = 0
    for position in longest_first(lengths):
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
            width = lengths[position]
    return batches


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Returns positions by length, longest first."""
    return [int(place) for place in np.argsort(-np.asarray(lengths), kind="stable")]


def packed_batches(
    lengths: Sequence[int], order: Sequence[int], batch_tokens: int
) -> list[list[int]]:
    """Groups positions, in an order, into batches of at most `batch_tokens` tokens.

    A prompt longer than that is a batch by itself.

    Example:
        >>> packed_batches([3, 9, 4, 3], [1, 2, 0, 3], batch_tokens=9)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    room = 0
    for position in order:
        if not batches or lengths[position] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(position)
        room -= lengths[position]
    return batches
