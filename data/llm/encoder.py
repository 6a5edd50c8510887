"""The frozen language model: token ids to vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from msrec.data.llm.store import Layer
from msrec.data.llm.tokenization import PromptTokenizer

Pooling = Literal["last", "mean", "generate"]
POOLINGS = ("last", "mean", "generate")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Prefix:
    """What many prompts begin with, computed once: its keys and values, and its states.

    Shape:
        states: (P, H), of the layer that is read.
        cache: for each layer keys and values (1, heads, P, head_dim).
    """

    ids: list[int]
    states: Tensor
    cache: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Encoded:
    """Vectors (B, H), float32, and under `generate` what the model said."""

    vectors: npt.NDArray[np.float32]
    texts: list[str] | None = None


class FrozenEncoder:
    """Hidden states of one layer, pooled over the tokens of a prompt.

    `mean` and `last` read the prompt's own tokens. `generate` lets the model answer, greedily, for
    at most `answer_tokens` tokens, and takes the state from which it chose its last one.

    Shorter prompts of a batch are padded on the right: under causal attention no real token sees
    what comes after it, positions stay those of the prompt alone, and pooling reads real tokens
    only, so a vector does not depend on its batch; nor on how much of it a `Prefix` gives.

    Args:
        model: a base model, or with `generate` a causal LM.
        tokenizer: of transformers.
        pooling: mean, last or generate.
        layer: `last` (after the final norm), `middle` or the number of layers to run, from 1;
            with fewer than all, the others are thrown away and the final norm is not applied.
        max_tokens: longer prompts are cut.
        answer_tokens: with generate.
        device: where the model runs.

    Raises:
        ValueError: an unknown pooling, or a layer that the model has not.

    Source:
        LLM4MSR (Wang et al., CIKM 2024) keeps the last hidden state of a sampled generation:
        `generate` is that with greedy decoding, so that a vector is repeatable. `mean` probes
        better on small models, costs a twentieth, and is the default.
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
        device: torch.device | str = "cpu",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be {', '.join(POOLINGS)}; got {pooling!r}.")
        self.device = torch.device(device)
        self.lm = model.eval().requires_grad_(False).to(self.device)
        self.model: nn.Module = model.base_model if pooling == "generate" else model  # type: ignore[assignment]
        self.tokens = PromptTokenizer(tokenizer, max_tokens)
        self.pooling = pooling
        self.answer_tokens = answer_tokens
        if pooling == "generate" and layer != "last":
            raise ValueError(f"pooling generate reads the last layer; got layer={layer!r}.")
        if layer != "last":
            _keep_layers(self.model, layer)
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad is None else int(pad)
        self.is_causal = _is_causal(self.model, self.device)
        """Whether a token sees only those before it, so that a `Prefix` can be shared."""

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
        """Load model and tokenizer from a local folder; the LM head only to generate.

        Raises:
            ValueError: an unknown dtype, or weights are missing.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
        logging.disable_progress_bar()  # the job has its own
        kind = AutoModelForCausalLM if pooling == "generate" else AutoModel
        trusted = {"trust_remote_code": trust_remote_code}
        model, found = kind.from_pretrained(
            str(folder), dtype=DTYPES[dtype], output_loading_info=True, **trusted
        )
        if found["missing_keys"]:
            missing = sorted(found["missing_keys"])
            raise ValueError(
                f"{folder} must hold all weights of a {type(model).__name__}; it lacks "
                f"{len(missing)}, the first {missing[0]}. A model without LM head cannot generate."
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **trusted)
        return cls(model, tokenizer, pooling=pooling, **options)

    @property
    def flops_per_token(self) -> float:
        """Multiplications and additions of the layers' matrices for one token; attention apart."""
        matrices = [p.numel() for p in _layers(self.model).parameters() if p.dim() == 2]
        return 2.0 * sum(matrices)

    @torch.inference_mode()
    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Run what prompts begin with once.

        Raises:
            ValueError: it has no token, or tokens of this model see what comes after them.
        """
        if not ids or not self.is_causal:
            raise ValueError("a prefix must have a token, and a model whose attention is causal.")
        tokens = torch.tensor([list(ids)], device=self.device)
        out = self.model(input_ids=tokens, use_cache=True)
        layers = out.past_key_values.layers[: len(_layers(self.model))]
        cache = [(layer.keys, layer.values) for layer in layers]
        return Prefix(list(ids), out.last_hidden_state[0], cache)

    @torch.inference_mode()
    def encode(self, rows: Sequence[Sequence[int]], prefix: Prefix | None = None) -> Encoded:
        """The vectors of one batch of token ids, which begin with those of the prefix.

        Raises:
            ValueError: a prompt has no token of its own.
        """
        skip = len(prefix.ids) if prefix else 0
        lengths = torch.tensor([len(row) - skip for row in rows])
        if int(lengths.min()) <= 0:
            place = int(lengths.argmin())
            raise ValueError(f"prompt {place} of the batch must have a token of its own.")
        ids = torch.full((len(rows), int(lengths.max())), self.pad_id)
        for position, row in enumerate(rows):
            ids[position, : len(row) - skip] = torch.tensor(row[skip:])
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]
        ids, real, lengths = (part.to(self.device) for part in (ids, real, lengths))
        mask = real.long()
        cache = None
        if prefix is not None:
            mask = torch.cat([mask.new_ones(len(rows), skip), mask], dim=1)
            cache = _expanded(prefix, len(rows))
        elif self.pooling == "generate":
            cache = DynamicCache()
        keywords = {} if cache is None else {"past_key_values": cache}
        states = self.model(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **keywords
        ).last_hidden_state
        if self.pooling == "mean":
            # A product and not a sum over a mask: states of padding may be large, never infinite.
            summed = torch.bmm(real[:, None].to(states.dtype).float(), states.float())[:, 0]
            if prefix is not None:
                summed = summed + prefix.states.float().sum(0)
            return Encoded(_numpy(summed / (lengths + skip)[:, None]))
        last = states[torch.arange(len(rows), device=self.device), lengths - 1]
        if self.pooling == "last":
            return Encoded(_numpy(last))
        return self._answer(last, mask, lengths + skip, cache)

    def _answer(
        self, state: Tensor, mask: Tensor, lengths: Tensor, cache: DynamicCache | None
    ) -> Encoded:
        """Greedy decoding; a row that ends keeps the state that chose its end."""
        head = self.lm.get_output_embeddings()  # type: ignore[operator]
        ends = torch.tensor(_end_ids(self.lm), device=self.device)
        kept, is_open = state.clone(), torch.ones_like(lengths, dtype=torch.bool)
        said: list[Tensor] = []
        for step in range(self.answer_tokens):
            kept[is_open] = state[is_open]
            token = head(state).argmax(dim=-1)
            said.append(torch.where(is_open, token, self.pad_id))
            is_open &= ~torch.isin(token, ends)
            if step + 1 == self.answer_tokens or not is_open.any():
                break
            mask = torch.cat([mask, is_open[:, None].long()], dim=1)
            state = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=(lengths + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
        rows = torch.stack(said, dim=1).tolist()
        return Encoded(_numpy(kept), [self.tokens.decode(row) for row in rows])


@torch.inference_mode()
def _is_causal(model: nn.Module, device: torch.device) -> bool:
    """Whether the first state stays when what follows changes: configs do not say it alike."""
    ids = torch.tensor([[1, 2, 3], [1, 4, 5]], device=device)
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    first, second = states[:, 0].float()
    return bool((first - second).abs().max() <= 1e-6 * first.abs().max())


def _numpy(vectors: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(vectors.float().cpu().numpy())


def _layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a base model.

    Raises:
        ValueError: they are not where causal LMs have them.
    """
    for name in ("layers", "h", "blocks", "encoder.layer"):
        found = model
        for part in name.split("."):
            found = getattr(found, part, None)  # type: ignore[assignment]
        if isinstance(found, nn.ModuleList):
            return found
    raise ValueError(
        f"a model must have its layers under `layers` to read one of them; {type(model).__name__} "
        "has not. Use layer=last."
    )


def _keep_layers(model: nn.Module, layer: Layer) -> None:
    """Throw away what stands above the layer that is read, the final norm too."""
    layers = _layers(model)
    count = len(layers) // 2 if layer == "middle" else layer
    if not isinstance(count, int) or not 1 <= count <= len(layers):
        raise ValueError(f"layer must be last, middle or from 1 to {len(layers)}; got {layer!r}.")
    del layers[count:]
    for name in ("norm", "ln_f", "final_layernorm"):
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())


def _expanded(prefix: Prefix, rows: int) -> DynamicCache:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix.cache):
        shape = (rows, *keys.shape[1:])
        cache.update(keys.expand(shape), values.expand(shape), number)
    return cache


def _end_ids(lm: nn.Module) -> list[int]:
    """Tokens that end an answer."""
    found = getattr(getattr(lm, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = getattr(lm.config, "eos_token_id", None)
    if found is None:
        return []
    return [found] if isinstance(found, int) else list(found)
