"""Models that cannot encode prompts of some length are refused with the reason."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models.model_limits import check_model, learned_positions
from msrec.data.llm.models.model_weights import load_tokenizer

SMALL = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (GPT2Config(n_positions=64), 64),
        (BertConfig(max_position_embeddings=128), 128),
        (LlamaConfig(max_position_embeddings=256), 256),
        (OPTConfig(max_position_embeddings=32), 32),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_prompts_and_answers_fit_the_context_that_the_config_names(tmp_path, config, context):
    config.save_pretrained(tmp_path)
    check_model(tmp_path, context - 8, 8)
    with pytest.raises(ValueError, match=f"must be at most {context}, .* {context + 1}"):
        check_model(tmp_path, context + 1)
    with pytest.raises(ValueError, match=r"plus llm.answer_tokens \(8\) must be at most"):
        check_model(tmp_path, context - 7, 8)


def test_the_learned_positions_are_those_that_a_prompt_can_use():
    roberta = RobertaModel(RobertaConfig(**SMALL, intermediate_size=8, max_position_embeddings=34))
    opt = OPTConfig(**SMALL, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=32)
    gpt2 = GPT2Model(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1, vocab_size=30))
    assert learned_positions(roberta) == 32
    assert learned_positions(OPTModel(opt)) >= 32  # two more; the config says 32
    assert learned_positions(gpt2) == 16
    assert learned_positions(torch.nn.Embedding(9, 2)) is None
    roberta(input_ids=torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, 33), 5))


def test_an_encoder_decoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be a decoder .* is an encoder-decoder, t5"):
        check_model(tmp_path, 10)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"model_type": "nope"}', '{"model_type": 3}']
)
def test_a_bad_config_is_one_sentence_with_its_folder(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path} must hold a model"):
        check_model(tmp_path, 10)


@pytest.mark.parametrize("damage", [None, b"", b"{}", b"\x00" * 50])
def test_bad_weights_and_tokenizers_are_one_sentence_with_their_folder(tmp_path, damage):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    if damage is not None:
        (tmp_path / "model.safetensors").write_bytes(damage)
        (tmp_path / "tokenizer.json").write_bytes(damage)
    with pytest.raises(ValueError, match=f"{tmp_path} must hold a model that"):
        FrozenEncoder.load(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} .tokenizer. must hold a model"):
        load_tokenizer(tmp_path)
