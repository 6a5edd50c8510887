"""Batches of prompts: a prefix that all share is computed once, the rest by similar length."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from msrec.data.llm.encoder import Encoded, FrozenEncoder

MIN_PREFIX_TOKENS = 8
"""A shorter common prefix does not pay for the extra pass."""


class EncodedBatch(NamedTuple):
    """Encoded prompts of one batch, with their positions in the input.

    `shared_tokens` is the number of tokens of each prompt that came from the shared prefix.
    """

    positions: list[int]
    encoded: Encoded
    shared_tokens: int
    is_last: bool


def encoded_batches(
    encoder: FrozenEncoder, rows: list[list[int]], batch_tokens: int
) -> Iterator[EncodedBatch]:
    """Encodes token ids in batches of similar length, longest first.

    Prompts of a level begin with the same introduction. A causal model computes the same keys and
    values for it in every prompt, so one pass over it serves all of them. A padded batch has at
    most `batch_tokens` tokens besides that prefix.
    """
    shared = shared_prefix(encoder, rows)
    prefix = encoder.prefix(shared) if shared else None
    batches = token_batches([len(row) - len(shared) for row in rows], batch_tokens)
    for number, positions in enumerate(batches):
        encoded = encoder.encode([rows[position] for position in positions], prefix)
        yield EncodedBatch(positions, encoded, len(shared), number == len(batches) - 1)


def shared_prefix(encoder: FrozenEncoder, rows: list[list[int]]) -> list[int]:
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
    for position in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
            width = lengths[position]
    return batches
