"""Frozen language model: token ids to vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from msrec.data.llm.models.fused import fuse_layers
from msrec.data.llm.models.layers import (
    flops_per_token,
    keep_layers,
    layers_of,
    layers_or_model,
)
from msrec.data.llm.models.model_limits import learned_positions, require_context, unreadable
from msrec.data.llm.models.packing import PackedModel
from msrec.data.llm.store import Layer, Pooling
from msrec.data.llm.text.tokenization import PromptTokenizer

POOLINGS = get_args(Pooling)
END_CHECK_TOKENS = 8
"""Generated tokens after which a GPU is asked whether all answers have ended."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Prefix:
    """Tokens that many prompts begin with, and the model's output for them.

    Shape:
        states: (P, H), hidden states of the chosen layer.
        cache: keys and values of each layer, (1, heads, P, head_dim).
    """

    ids: list[int]
    states: Tensor
    cache: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Encoded:
    """Vectors (B, H), float32; with `generate` also the model's answers."""

    vectors: npt.NDArray[np.float32]
    texts: list[str] | None = None


class FrozenEncoder:
    """Hidden states of one layer, pooled over the tokens of a prompt.

    Pooling `mean` and `last` read the tokens of the prompt. With `generate` the model first answers
    greedily in at most `answer_tokens` tokens; the vector is the state that chose the last of them.

    A vector does not depend on the other prompts of its batch, nor on the length of a `Prefix`.
    On a CPU, prompts are packed into one sequence without padding, in which each attends to itself.
    On a GPU, after a `Prefix`, and in a model that cannot be packed, shorter prompts are padded on
    the right, where a causal model does not look. Their positions are those of the prompt alone,
    and pooling leaves the padding out.

    Args:
        model: a base model of transformers; a causal LM for `generate`.
        tokenizer: its tokenizer.
        pooling: mean, last or generate.
        layer: `last` (after the final norm), `middle`, or the number of layers to run, from 1.
            Layers above it are removed, and the final norm with them.
        max_tokens: longer prompts are cut.
        answer_tokens: longest answer of `generate`.
        is_chat: put prompts into the tokenizer's chat template if it has one.
        device: of the model.

    Raises:
        ValueError: the pooling is unknown, the model does not have the layer, its context is too
            short, or it does not map tokens to states.

    Source:
        LLM4MSR (Wang et al., CIKM 2024) keeps the last hidden state of a sampled answer.
        `generate` does the same with greedy decoding, so that a vector can be reproduced. `mean`
        gives better probes on small models at a twentieth of the cost, and is the default.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        pooling: Pooling = "mean",
        layer: Layer = "last",
        max_tokens: int = 256,
        answer_tokens: int = 32,
        is_chat: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be {', '.join(POOLINGS)}; got {pooling!r}.")
        if pooling == "generate" and layer != "last":
            raise ValueError(f"pooling generate reads the last layer; got layer={layer!r}.")
        self.device = torch.device(device)
        self.lm = model.eval().requires_grad_(False).to(self.device)
        self.model: nn.Module = model.base_model if pooling == "generate" else model  # type: ignore[assignment]
        self.tokens = PromptTokenizer(tokenizer, max_tokens, is_chat=is_chat)
        self.pooling = pooling
        self.answer_tokens = answer_tokens
        name = type(model).__name__
        answer = answer_tokens if pooling == "generate" else 0
        require_context(learned_positions(self.model), name, max_tokens, answer)
        if layer != "last":
            keep_layers(self.model, layer)
        pad_id = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad_id is None else int(pad_id)
        self.is_causal = _is_causal(self.model, self.device)
        """Whether a token depends only on those before it, so that a `Prefix` can be shared."""
        if pooling == "generate" and not self.is_causal:
            raise ValueError(
                f"pooling generate needs a decoder, such as Llama or Qwen; {name} is an encoder. "
                "Use llm.pooling=mean."
            )
        self.flops_per_token = flops_per_token(self.model)
        self.packed: PackedModel | None = self._packed() if self.device.type == "cpu" else None
        """The model for packed batches; None where prompts are padded."""

    def _packed(self) -> PackedModel | None:
        if self.pooling == "generate":
            return None
        try:
            tokens = self.tokens.max_tokens
            packed = PackedModel(self.model, is_causal=self.is_causal, max_tokens=tokens)
        except ValueError:  # a model of another structure; padding gives the same vectors
            packed = None
        fuse_layers(layers_or_model(self.model))
        return packed

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        pooling: Pooling = "mean",
        dtype: str = "bfloat16",
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "FrozenEncoder":
        """Loads model and tokenizer from a local folder; the LM head only for `generate`.

        Raises:
            ValueError: the dtype is unknown, or weights are missing or cannot be read.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        logging.disable_progress_bar()  # `msrec encode` shows its own
        auto_class = AutoModelForCausalLM if pooling == "generate" else AutoModel
        trust = {"trust_remote_code": trust_remote_code}
        try:
            model, info = auto_class.from_pretrained(
                str(folder), dtype=DTYPES[dtype], output_loading_info=True, **trust
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise unreadable(folder, error) from None
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{folder} must hold all weights of a {type(model).__name__}; it lacks "
                f"{len(missing)}, the first {missing[0]}. A model without LM head cannot generate."
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **trust)
        return cls(model, tokenizer, pooling=pooling, **options)

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Runs the tokens that prompts begin with.

        Raises:
            ValueError: there is no token, or the model's attention is not causal.
        """
        if not ids or not self.is_causal:
            raise ValueError("a prefix must have a token, and a model whose attention is causal.")
        tokens = torch.tensor([list(ids)], device=self.device)
        output = self.model(input_ids=tokens, use_cache=True)
        layers = output.past_key_values.layers[: len(layers_of(self.model))]
        cache = [(layer.keys, layer.values) for layer in layers]
        return Prefix(list(ids), output.last_hidden_state[0], cache)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Encoded:
        """Encodes one batch of token ids, which begin with those of the prefix.

        Raises:
            ValueError: a prompt has no token after the prefix.
        """
        skip = len(prefix.ids) if prefix else 0
        _require_tokens([len(row) - skip for row in rows])
        if prefix is None and self.packed is not None:
            return self._encode_packed(self.packed, rows)
        ids, lengths = self._pad([row[skip:] for row in rows])
        is_real = torch.arange(ids.shape[1], device=self.device)[None] < lengths[:, None]
        mask = is_real.long()
        cache = None
        if prefix is not None:  # its keys and values are in the cache: only the rest is run
            mask = torch.cat([mask.new_ones(len(rows), skip), mask], dim=1)
            cache = _repeated_cache(prefix, len(rows))
        elif self.pooling == "generate":
            cache = DynamicCache()
        past = {} if cache is None else {"past_key_values": cache}  # some models lack the argument
        states = self.model(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **past
        ).last_hidden_state
        if self.pooling == "mean":
            # The product with the mask sums the real tokens: padding has finite states, times 0.
            total = torch.bmm(is_real[:, None].float(), states.float())[:, 0]
            if prefix is not None:
                total = total + prefix.states.float().sum(0)
            return Encoded(_numpy(total / (lengths + skip)[:, None]))
        last = states[torch.arange(len(rows), device=self.device), lengths - 1]
        if self.pooling == "last":
            return Encoded(_numpy(last))
        return self._answer(last, mask, lengths + skip, cache)

    def _encode_packed(self, model: PackedModel, rows: Sequence[Sequence[int]]) -> Encoded:
        """Encodes a batch without padding."""
        states, lengths = model.states(rows)
        if self.pooling == "last":
            return Encoded(_numpy(states[lengths.cumsum(0) - 1]))
        return Encoded(_numpy(torch.segment_reduce(states.float(), "mean", lengths=lengths)))

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Returns token ids (B, L), padded on the right, and the lengths (B,), both int64."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self.pad_id)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = torch.tensor(row)
        return ids.to(self.device), lengths.to(self.device)

    def _answer(
        self, state: Tensor, mask: Tensor, lengths: Tensor, cache: DynamicCache | None
    ) -> Encoded:
        """Decodes greedily; a row that has ended keeps the state that chose its end token."""
        head = self.lm.get_output_embeddings()  # type: ignore[operator]
        end_ids = torch.tensor(_end_ids(self.lm), device=self.device)
        kept, is_open = state, torch.ones_like(lengths, dtype=torch.bool)
        answers: list[Tensor] = []
        was_open: list[Tensor] = []
        for step in range(self.answer_tokens):
            kept = torch.where(is_open[:, None], state, kept)
            token = head(state).argmax(dim=-1)
            answers.append(torch.where(is_open, token, self.pad_id))
            was_open.append(is_open)
            is_open = is_open & ~torch.isin(token, end_ids)
            if step + 1 == self.answer_tokens or self._have_all_ended(is_open, step):
                break
            # In shorter rows, masked padding is between prompt and answer in the cache. Positions
            # leave it out.
            mask = torch.cat([mask, is_open[:, None].long()], dim=1)
            state = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=(lengths + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
        # Without the tokens after the last row ended, before that was looked at.
        longest = int(torch.stack(was_open).any(dim=1).sum())
        rows = torch.stack(answers[:longest], dim=1).tolist()
        return Encoded(_numpy(kept), [self.tokens.decode(row) for row in rows])

    def _have_all_ended(self, is_open: Tensor, step: int) -> bool:
        """Whether all answers have ended; on a GPU, which would wait, looked at now and then."""
        if self.device.type != "cpu" and (step + 1) % END_CHECK_TOKENS:
            return False
        return not is_open.any()


@torch.inference_mode()
def _is_causal(model: nn.Module, device: torch.device) -> bool:
    """Returns whether the first state ignores later tokens; no field of a config says so."""
    ids = torch.tensor([[1, 2, 3], [1, 4, 5]], device=device)
    try:
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"llm.model must map token ids to hidden states; {type(model).__name__} does not: "
            f"{str(error).splitlines()[0]}."
        ) from None
    first, second = states[:, 0].float()
    return bool((first - second).abs().max() <= 1e-6 * first.abs().max())


def _require_tokens(lengths: list[int]) -> None:
    """Refuses a batch with a prompt that has no token to compute."""
    if 0 in lengths:
        raise ValueError(
            f"prompt {lengths.index(0)} of the batch must have a token after the prefix; "
            f"it has none."
        )


def _numpy(vectors: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(vectors.float().cpu().numpy())


def _repeated_cache(prefix: Prefix, num_rows: int) -> DynamicCache:
    """Returns a cache for a batch, in which every row begins with the prefix."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.cache):
        shape = (num_rows, *keys.shape[1:])
        cache.update(keys.expand(shape), values.expand(shape), layer)
    return cache


def _end_ids(lm: nn.Module) -> list[int]:
    """Returns the tokens that end an answer."""
    end = getattr(getattr(lm, "generation_config", None), "eos_token_id", None)
    if end is None:
        end = getattr(lm.config, "eos_token_id", None)
    if end is None:
        return []
    return [end] if isinstance(end, int) else list(end)
