"""`msrec bench encode`: prompts per second of the encoder, against plain padded loops."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from torch import nn
from transformers import AutoModel

from msrec.data.llm.encoder import DTYPES, FrozenEncoder
from msrec.data.llm.models.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompt_batches import encoded_batches, planned_batches, shared_prefix
from msrec.data.llm.text.prompts import item_prompts, user_prompts
from msrec.data.llm.text.templates import load_template, template_of
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.devices import rank_device
from msrec.launch.encoding.options import BATCH_TOKENS
from msrec.tools.bench.harness.measure import compare_all, interleaved
from msrec.tools.bench.harness.options import Repeats
from msrec.tools.bench.harness.report import console, prepare, report
from msrec.tools.cli.arguments import Config, Overrides

PromptTokens = list[list[int]]
"""Token ids of each prompt."""


def bench_encode(
    config: Config,
    overrides: Overrides = None,
    level: Annotated[
        Literal["user", "item"], typer.Option(help="prompts of users, or plain texts of items")
    ] = "user",
    prompts: Annotated[int, typer.Option(min=2, help="prompts to encode, drawn by a seed")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="prompts of a batch of the plain loops")] = 8,
    repeats: Repeats = 3,
) -> None:
    """Encoding prompts, against plain loops over padded batches.

    msrec computes common beginnings of prompts once and packs short ones without padding. The plain
    loop takes prompts in their order, pads each batch to its longest prompt and runs the model of
    transformers; the sorted loop takes them by length. All pool by the mean.
    """
    on = prepare(threads=None)
    run = load_config(config, overrides or [])
    schema = load_schema(run.dataset)
    device = rank_device(run.device, has_tables=False)
    batch_tokens = run.llm.batch_tokens or BATCH_TOKENS[device.type]
    folder = model_folder(run.llm.model)
    max_tokens = run.llm.max_tokens
    encoder = FrozenEncoder.load(
        folder, dtype=run.llm.dtype, max_tokens=max_tokens, device=str(device)
    )
    trust = {"trust_remote_code": run.llm.trust_remote_code}
    model = AutoModel.from_pretrained(str(folder), dtype=DTYPES[run.llm.dtype], **trust)
    model = model.eval().requires_grad_(False).to(device)
    rows = (item_tokens if level == "item" else prompt_tokens)(run, schema.name, prompts)
    by_length = sorted(rows, key=len, reverse=True)
    vectors: dict[str, np.ndarray] = {}

    def plain() -> None:
        vectors["plain"] = _encode_plain(model, rows, batch)

    def ordered() -> None:
        _encode_plain(model, by_length, batch)

    def ours() -> None:
        vectors["msrec"] = encode_rows(encoder, rows, batch_tokens)

    cases = {"msrec": ours, "the plain loop": plain, "the sorted loop": ordered}
    rounds = interleaved(cases, repeats)
    tokens = sum(map(len, rows))
    findings = [
        *compare_all("prompts", rounds, len(rows), "prompts/s"),
        *compare_all("tokens", rounds, tokens, "tokens/s"),
    ]
    padded, by_length_padded = (_padded_tokens(each, batch) for each in (rows, by_length))
    computed = computed_tokens(encoder, rows, batch_tokens)
    cosine = smallest_cosine(vectors["plain"], vectors["msrec"])
    more: dict[str, float] = {"padded_tokens": padded, "sorted_padded_tokens": by_length_padded}
    more |= {"computed_tokens": computed, "smallest_cosine": cosine}
    title = f"{schema.name}: {len(rows)} {level}s, {run.llm.model}, {run.llm.dtype}"
    report("encode", title, findings, on, more)
    console.print(f"smallest cosine of the two vectors of a prompt: {cosine:.6f}")
    console.print(
        f"tokens computed: {padded:,} by the plain loop, {by_length_padded:,} by the sorted loop, "
        f"{computed:,} by msrec; if only they counted, the ratios would be "
        f"{padded / computed:.2f} and {by_length_padded / computed:.2f}"
    )


def prompt_tokens(run: RunConfig, dataset: str, prompts: int) -> PromptTokens:
    """Returns the prompts of some users, drawn by a seed, as the run's model reads them."""
    template = load_template(template_of(dataset, run.llm.template))
    tokenizer = load_tokenizer(model_folder(run.llm.model), run.llm.trust_remote_code)
    tokens = PromptTokenizer(tokenizer, run.llm.max_tokens)
    texts = user_prompts(run.dataset, template, tokens).frame["text"]
    sample = texts.sample(min(prompts, len(texts)), seed=0).to_list()
    question = f"\n{template.user_question}"
    return tokens.tokenize(sample, system=template.system, keep_end=question)[0]


def item_tokens(run: RunConfig, _: str, prompts: int) -> PromptTokens:
    """Returns the plain texts of some items, drawn by a seed, as a source of `llm.sources`."""
    tokenizer = load_tokenizer(model_folder(run.llm.model), run.llm.trust_remote_code)
    tokens = PromptTokenizer(tokenizer, run.llm.max_tokens, is_chat=False)
    texts = item_prompts(run.dataset, None).frame["text"]
    return tokens.tokenize(texts.sample(min(prompts, len(texts)), seed=0).to_list())[0]


@torch.inference_mode()
def _encode_plain(model: nn.Module, rows: PromptTokens, batch: int) -> np.ndarray:
    """Encodes as one would write it by hand; returns (prompts, H)."""
    pooled, device = [], next(model.parameters()).device
    for part in _batches(rows, batch):
        tensors = [torch.tensor(row, device=device) for row in part]
        ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        ones = [torch.ones_like(row) for row in tensors]
        mask = nn.utils.rnn.pad_sequence(ones, batch_first=True)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask.unsqueeze(2).float()
        pooled.append((states.float() * real).sum(1) / real.sum(1))
    return np.asarray(torch.cat(pooled).cpu().numpy())


def encode_rows(encoder: FrozenEncoder, rows: PromptTokens, batch_tokens: int) -> np.ndarray:
    """Encodes as `msrec encode` does; returns (prompts, H)."""
    batches = list(encoded_batches(encoder, rows, batch_tokens))
    order = np.argsort(np.concatenate([batch.positions for batch in batches]))
    return np.concatenate([batch.encoded.vectors for batch in batches])[order]


def computed_tokens(encoder: FrozenEncoder, rows: PromptTokens, batch_tokens: int) -> int:
    """Returns the number of tokens that `encode_rows` computes, with the shared prefix."""
    return len(shared_prefix(encoder, rows)) + sum(
        tokens for _, tokens in planned_batches(encoder, rows, batch_tokens)
    )


def _padded_tokens(rows: PromptTokens, batch: int) -> int:
    return sum(len(part) * max(map(len, part)) for part in _batches(rows, batch))


def _batches(rows: PromptTokens, batch: int) -> Sequence[PromptTokens]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the smallest cosine of two vectors in the same row."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())
