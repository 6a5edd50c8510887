"""Prompts of a batch as one sequence without padding, through a frozen model on a CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from msrec.data.llm.models.layers import lowest_layers

ATTENTION = "msrec_packed"
SHORT_TOKENS = 64
"""Longest prompt whose attention is computed by plain batched products. Their scores fit into the
cache, and they take half the time of PyTorch's kernel, which is made for long sequences."""
BLOCK_TOKENS = 8
"""Largest difference of the lengths in a block of a causal model: fewer have less overhead."""
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")
"""Options of an attention layer that change its scores; a model that has one is padded."""


@dataclass(frozen=True)
class PackedBatch:
    """Prompts in one sequence.

    In a causal model, prompts with the same beginning have the same states in it. Their tokens form
    a tree, and each node is computed once. In other models, each token is a node.

    Attention computes prompts of about the same length together, in blocks. In a causal model they
    are filled up with node 0 at the end, where no token looks; in others they need no filling.

    Shape:
        ids, positions: (1, N), of the nodes.
        path: (T,), the node of each token, prompt after prompt.
        lengths: (B,), tokens of each prompt, T in total.
        blocks: (prompts, L) of each block.
        slots: (S,), the node in each place of the blocks, block after block; None if S is N and
            they have the same order.
        place: (N,), a place of each node in the blocks.
    """

    ids: Tensor
    positions: Tensor
    path: Tensor
    lengths: Tensor
    blocks: list[tuple[int, int]]
    slots: Tensor | None
    place: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, is_causal: bool) -> "PackedBatch":
        """Packs prompts, given as token ids.

        Example:
            >>> batch = PackedBatch.of([[5, 6, 7], [5, 6, 8]], is_causal=True)
            >>> batch.ids.tolist(), batch.path.tolist()
            ([[5, 6, 7, 8]], [0, 1, 2, 0, 1, 3])
        """
        step = BLOCK_TOKENS if is_causal else 1
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        ids, positions, nodes = _tree([rows[row] for row in order], is_shared=is_causal)
        blocks: list[tuple[int, int]] = []
        slots: list[Tensor] = []
        for _, members in groupby(nodes, key=lambda path: -(-len(path) // step)):
            block = pad_sequence(list(members), batch_first=True)
            blocks.append((block.shape[0], block.shape[1]))
            slots.append(block.flatten())
        paths = [nodes[place] for place in np.argsort(order)]
        lengths = torch.tensor([len(path) for path in paths])
        slot = torch.cat(slots) if is_causal else None
        place = _places(nodes, blocks, len(ids)) if is_causal else None
        return cls(ids[None], positions[None], torch.cat(paths), lengths, blocks, slot, place)

    def split(self, nodes: Tensor) -> Iterator[Tensor]:
        """Yields (prompts, L, ...) of each block, of values (N, ...) of the nodes."""
        by_slot = nodes if self.slots is None else nodes[self.slots]
        sizes = [count * length for count, length in self.blocks]
        for part, block in zip(torch.split(by_slot, sizes), self.blocks, strict=True):
            yield part.view(*block, *nodes.shape[1:])

    def join(self, blocks: list[Tensor]) -> Tensor:
        """Returns the values (N, ...) of the nodes; the inverse of `split`."""
        by_slot = torch.cat([block.flatten(0, 1) for block in blocks])
        return by_slot if self.place is None else by_slot[self.place]


def _tree(rows: Sequence[Sequence[int]], *, is_shared: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns ids and positions of the nodes, and the nodes of each prompt."""
    nodes: dict[tuple[int, int], int] = {}  # (node before it, id) -> node
    ids: list[int] = []
    positions: list[int] = []
    paths: list[Tensor] = []
    for row in rows:
        path: list[int] = []
        for position, token in enumerate(row):
            parent = path[-1] if path else -1
            node = nodes.setdefault((parent, token), len(ids)) if is_shared else len(ids)
            if node == len(ids):
                ids.append(token)
                positions.append(position)
            path.append(node)
        paths.append(torch.tensor(path))
    return torch.tensor(ids), torch.tensor(positions), paths


def _places(paths: list[Tensor], blocks: list[tuple[int, int]], num_nodes: int) -> Tensor:
    """Returns a place of each node in the blocks, for prompts in the order of the blocks."""
    place = torch.zeros(num_nodes, dtype=torch.int64)
    widths = [length for count, length in blocks for _ in range(count)]
    starts = np.cumsum([0, *widths[:-1]]).tolist()
    for path, start in zip(paths, starts, strict=True):
        place[path] = torch.arange(start, start + len(path))
    return place


def num_nodes(rows: Sequence[list[int]]) -> int:
    """Returns the number of tokens that a causal model computes of prompts, as a tree.

    Example:
        >>> num_nodes([[5, 6, 7], [5, 6, 8], [5, 6]])
        4
    """
    ordered = sorted(rows)
    count = sum(map(len, ordered))
    for row, following in zip(ordered, ordered[1:], strict=False):
        for first, second in zip(row, following, strict=False):
            if first != second:
                break
            count -= 1
    return count


class PackedModel:
    """Frozen model on a CPU that computes packed batches.

    Args:
        model: a base model of transformers, in its attention interface.
        is_causal: whether a token depends only on those before it.
        max_tokens: longest prompt.

    Raises:
        ValueError: the model cannot compute packed batches, or gives other states in them.
    """

    def __init__(self, model: Any, *, is_causal: bool, max_tokens: int) -> None:
        if not getattr(model, "_supports_attention_backend", False):
            raise ValueError("attention of the model must go through transformers' interface.")
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        if window is not None and max_tokens > window:
            raise ValueError(f"prompts must fit into the window of {window}; got {max_tokens}.")
        self.model, self.is_causal = model, is_causal
        _check(model, is_causal=is_causal)

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Returns the states of all tokens, (T, H), prompt after prompt, and the lengths (B,)."""
        batch = PackedBatch.of(rows, is_causal=self.is_causal)
        return _states(self.model, batch)[batch.path], batch.lengths


def _states(model: Any, batch: PackedBatch) -> Tensor:
    """Returns the states of the nodes, (N, H)."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        output = model(
            input_ids=batch.ids,
            position_ids=batch.positions + _first_position(model),
            packed_batch=batch,
            use_cache=False,
        )
    finally:
        model.set_attn_implementation(before)
    states: Tensor = output.last_hidden_state[0]
    return states


@torch.inference_mode()
def _check(model: nn.Module, *, is_causal: bool) -> None:
    """Compares packed prompts with the same ones alone, in float32 and the first layers."""
    # Not the first ids, of which one may be the padding's, which RoBERTa does not count.
    rows = [[5, 6, 7, 8], [5, 6], [5, 7, 6, 8], [8, 7, 6]]
    batch = PackedBatch.of(rows, is_causal=is_causal)
    try:
        small = lowest_layers(model, 2)
        states = _states(small, batch)[batch.path]
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"the model does not compute packed prompts: {error}.") from None
    for row, packed in zip(rows, torch.split(states, batch.lengths.tolist()), strict=True):
        alone = small(input_ids=torch.tensor([row])).last_hidden_state[0]
        if not (packed - alone).norm() <= 1e-3 * alone.norm():
            raise ValueError("the model gives other states to packed prompts.")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packed_batch: PackedBatch,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of each prompt of a packed batch to itself.

    Shape:
        query: (1, heads, N, d); key and value may have fewer heads.
        returns: (1, N, heads, d of the values).

    Raises:
        ValueError: the layer changes its scores in another way.
    """
    if unknown := [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]:
        raise ValueError(f"attention must have no {unknown[0]}")
    is_causal = bool(getattr(module, "is_causal", True))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    by_node = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, d)
    outputs = []
    for block in zip(*map(packed_batch.split, by_node), strict=True):
        q, k, v = (states.transpose(1, 2) for states in block)
        if q.shape[2] <= SHORT_TOKENS:
            attended = _short_attention(q, k, v, is_causal, scale)
        else:
            is_grouped = q.shape[1] != k.shape[1]
            attended = scaled_dot_product_attention(
                q, k, v, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
            )
        outputs.append(attended.transpose(1, 2))
    return packed_batch.join(outputs)[None], None


AttentionInterface.register(ATTENTION, packed_attention)


def _short_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Tensor:
    """Attention by batched products; softmax in float32. Query heads of a key head are stacked."""
    count, heads, length, _ = q.shape
    q = q.reshape(count * k.shape[1], -1, q.shape[-1])
    scores = torch.bmm(q, k.flatten(0, 1).transpose(1, 2)).float().mul_(scale)
    scores = scores.view(-1, length, length)
    if is_causal:
        scores += torch.full((length, length), -torch.inf).triu(1)
    weights = scores.softmax(dim=-1).to(v.dtype).view(*q.shape[:2], length)
    return torch.bmm(weights, v.flatten(0, 1)).view(count, heads, length, -1)


def _first_position(model: nn.Module) -> int:
    """Returns the position of a prompt's first token; RoBERTa counts from its padding's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx:
            return module.padding_idx + 1
    return 0
