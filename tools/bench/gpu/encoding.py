"""Line of `msrec bench gpu` on the frozen LLM: its speed, and its vectors against the CPU's."""

import time
from pathlib import Path

import torch

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models.model_weights import DEFAULT_MODEL, is_local, model_folder
from msrec.launch.encoding.options import BATCH_TOKENS
from msrec.tools.bench.encode import encode_rows, prompt_tokens, smallest_cosine
from msrec.tools.bench.gpu.setting import Found, Setting, synchronize

SMALLEST_COSINE = 0.999
COMPARED = 16
"""Prompts that the CPU encodes too, in float32."""


def encode(setting: Setting) -> Found:
    """A thousand prompts in bf16: tokens/s, and cosines to the CPU's vectors in float32."""
    has_model = setting.is_gpu and is_local(DEFAULT_MODEL)
    folder = model_folder(DEFAULT_MODEL) if has_model else random_model(setting.folder / "llm")
    max_tokens = 512 if has_model else 1024  # the random model reads bytes
    options = (f"llm.model={folder}", f"llm.max_tokens={max_tokens}")
    config = setting.config("encode", setting.app_data(), *options)
    rows = prompt_tokens(config, "synthetic", setting.size(1_000, 20))
    device = torch.device(setting.kind)
    on_device = FrozenEncoder.load(folder, dtype="bfloat16", max_tokens=max_tokens, device=device)
    budget = BATCH_TOKENS[setting.kind]
    encode_rows(on_device, rows[:COMPARED], budget)  # warm-up
    synchronize()
    started = time.perf_counter()
    vectors = encode_rows(on_device, rows, budget)
    seconds = time.perf_counter() - started
    tokens_per_s = sum(map(len, rows)) / seconds
    exact = FrozenEncoder.load(folder, dtype="float32", max_tokens=max_tokens)
    cosine = smallest_cosine(vectors[:COMPARED], encode_rows(exact, rows[:COMPARED], 2048))
    figures = {"tokens_per_s": tokens_per_s, "cosine": cosine, "prompts": len(rows)}
    name = DEFAULT_MODEL if has_model else "a random model"
    text = f"{len(rows):,} prompts by {name}, {tokens_per_s:,.0f} tokens/s, cosine {cosine:.5f}"
    if not cosine > SMALLEST_COSINE:
        raise ValueError(f"cosines to the CPU must be above {SMALLEST_COSINE}: {text}")
    return Found(text, figures)


def random_model(folder: Path) -> Path:
    """Writes a random Llama of 8 layers and a tokenizer with one token for each byte."""
    from transformers import LlamaConfig, LlamaModel

    if folder.exists():
        return folder
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    LlamaModel(config).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def save_byte_tokenizer(folder: Path) -> None:
    """Writes a tokenizer with a token for each byte, 0 to 255, and one for padding, 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: row for row, letter in enumerate(letters)} | {"<pad>": 256}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>").save_pretrained(folder)
