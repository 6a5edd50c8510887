"""`msrec bench encode`: prompts per second of the encoder, against a plain padded loop."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompt_batches import encoded_batches, shared_prefix
from msrec.data.llm.prompts import user_prompts
from msrec.data.llm.templates import load_template, template_of
from msrec.data.llm.tokenization import PromptTokenizer
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
    prompts: Annotated[int, typer.Option(min=2, help="users to encode, drawn by a seed")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="prompts of a batch of the plain loop")] = 8,
    repeats: Repeats = 3,
) -> None:
    """Encoding prompts, against a plain loop over padded batches.

    msrec computes the common beginning of the prompts once. The plain loop takes prompts in their
    order, pads each batch to its longest prompt and runs the same model; both pool by the mean.
    """
    on = prepare(threads=None)
    run = load_config(config, overrides or [])
    schema = load_schema(run.dataset)
    device = rank_device(run.device, has_tables=False)
    batch_tokens = run.llm.batch_tokens or BATCH_TOKENS[device.type]
    encoder = FrozenEncoder.load(
        model_folder(run.llm.model),
        dtype=run.llm.dtype,
        max_tokens=run.llm.max_tokens,
        device=str(device),
    )
    rows = prompt_tokens(run, schema.name, prompts)
    vectors: dict[str, np.ndarray] = {}

    def plain() -> None:
        vectors["plain"] = _encode_plain(encoder.lm, rows, batch)

    def ours() -> None:
        vectors["msrec"] = encode_rows(encoder, rows, batch_tokens)

    rounds = interleaved({"msrec": ours, "the plain loop": plain}, repeats)
    tokens = sum(map(len, rows))
    findings = [
        *compare_all("prompts", rounds, len(rows), "prompts/s"),
        *compare_all("tokens", rounds, tokens, "tokens/s"),
    ]
    padded = sum(len(part) * max(map(len, part)) for part in _batches(rows, batch))
    computed = tokens - (len(rows) - 1) * len(shared_prefix(encoder, rows))
    cosine = smallest_cosine(vectors["plain"], vectors["msrec"])
    more = {"padded_tokens": padded, "computed_tokens": computed, "smallest_cosine": cosine}
    title = f"{schema.name}: {len(rows)} users, {run.llm.model}, {run.llm.dtype}"
    report("encode", title, findings, on, more)
    console.print(f"smallest cosine of the two vectors of a user: {cosine:.6f}")
    console.print(
        f"tokens computed: {padded:,} by the plain loop, {computed:,} by msrec; if only they "
        f"counted, the ratio would be {padded / computed:.2f}"
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


def _batches(rows: PromptTokens, batch: int) -> Sequence[PromptTokens]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the smallest cosine of two vectors in the same row."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / norms).min())
