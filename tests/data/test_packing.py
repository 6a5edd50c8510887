"""Packed prompts and fused layers give the vectors of plain transformers, for each family."""

import numpy as np
import pytest
import torch
import transformers as hf
from llm_data import write_model

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models.fused import FusedGate, FusedLinear, fuse_layers
from msrec.data.llm.models.packing import SHORT_TOKENS, PackedBatch, num_nodes
from msrec.data.llm.prompt_batches import encoded_batches

pytestmark = pytest.mark.slow

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 64, "initializer_range": 0.2, "max_position_embeddings": 200}
GROUPED = WIDE | {"num_key_value_heads": 2, "pad_token_id": 0}
MAX_TOKENS = 100
FAMILIES = {
    "llama": (hf.LlamaConfig, GROUPED),
    "qwen3": (hf.Qwen3Config, GROUPED | {"head_dim": 8}),
    "gemma3": (hf.Gemma3TextConfig, GROUPED | {"head_dim": 8, "sliding_window": 128}),
    "gpt2": (hf.GPT2Config, {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "bert": (hf.BertConfig, WIDE),
    "roberta": (hf.RobertaConfig, WIDE | {"pad_token_id": 1}),
    "distilbert": (
        hf.DistilBertConfig,
        {"vocab_size": 300, "dim": 32, "n_layers": 2, "n_heads": 4},
    ),
}
PADDED = {
    "softcap": (hf.Gemma2Config, GROUPED | {"head_dim": 8, "sliding_window": 128}),
    "window": (hf.Gemma3TextConfig, GROUPED | {"head_dim": 8, "sliding_window": 50}),
    "mpnet": (hf.MPNetConfig, WIDE | {"pad_token_id": 1}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model"))
    return hf.AutoTokenizer.from_pretrained(folder)


def random_model(family, dtype=torch.float32):
    config, sizes = family
    torch.manual_seed(0)
    return hf.AutoModel.from_config(config(**sizes)).to(dtype).eval()


def prompts():
    """Mixed lengths, one of a single token, one of max_tokens, equal ones, equal beginnings."""
    rng = np.random.default_rng(0)
    lengths = [7, 1, MAX_TOKENS, 12, 7, 33, SHORT_TOKENS, SHORT_TOKENS + 1, 12]
    rows = [rng.integers(3, 300, length).tolist() for length in lengths]
    return [*rows, rows[3], rows[5][:20] + [5], rows[5][:20] + [6, 7], rows[5][:4]]


@torch.no_grad()
def plain(model, rows, pooling, layers=2):
    """Each prompt alone through plain transformers."""
    vectors = []
    for row in rows:
        output = model(input_ids=torch.tensor([row]), output_hidden_states=True)
        states = output.last_hidden_state if layers == 2 else output.hidden_states[layers]
        vectors.append(states[0].float().mean(0) if pooling == "mean" else states[0, -1].float())
    return torch.stack(vectors).numpy()


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_prompts_have_the_vectors_of_plain_transformers(family, pooling, tokenizer):
    rows, model = prompts(), random_model(FAMILIES[family])
    expected = plain(model, rows, pooling)
    encoder = FrozenEncoder(model, tokenizer, pooling=pooling, max_tokens=MAX_TOKENS)
    assert encoder.packed is not None
    vectors = encoder.encode(rows).vectors
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    for row, vector in zip(rows, expected, strict=True):
        alone = encoder.encode([row]).vectors[0]
        np.testing.assert_allclose(alone, vector, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_have_the_vectors_of_plain_ones_in_bfloat16(family, pooling, tokenizer):
    rows = prompts()
    model = random_model(FAMILIES[family], torch.bfloat16)
    expected = plain(model, rows, pooling)
    encoder = FrozenEncoder(model, tokenizer, pooling=pooling, max_tokens=MAX_TOKENS)
    assert cosines(encoder.encode(rows).vectors, expected).min() > 0.999


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_lower_layer_is_packed_too(family, tokenizer):
    rows = prompts()
    expected = plain(random_model(FAMILIES[family]), rows, "mean", layers=1)
    encoder = FrozenEncoder(
        random_model(FAMILIES[family]), tokenizer, layer=1, max_tokens=MAX_TOKENS
    )
    assert encoder.packed is not None
    np.testing.assert_allclose(encoder.encode(rows).vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_cannot_be_packed_is_padded(family, tokenizer):
    rows, model = prompts(), random_model(PADDED[family])
    expected = plain(model, rows, "mean")
    encoder = FrozenEncoder(model, tokenizer, max_tokens=MAX_TOKENS)
    assert encoder.packed is None
    np.testing.assert_allclose(encoder.encode(rows).vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_all_batches_together_give_each_prompt_its_vector(family, tokenizer):
    rows = prompts()
    expected = plain(random_model(FAMILIES[family]), rows, "mean")
    encoder = FrozenEncoder(random_model(FAMILIES[family]), tokenizer, max_tokens=MAX_TOKENS)
    for batch in encoded_batches(encoder, rows, batch_tokens=60):
        np.testing.assert_allclose(
            batch.encoded.vectors, expected[batch.positions], rtol=1e-4, atol=1e-5
        )
        nodes = PackedBatch.of([rows[p] for p in batch.positions], is_causal=encoder.is_causal)
        assert batch.computed_tokens == nodes.ids.shape[1]


def test_nodes_are_the_different_beginnings():
    rows = prompts()
    beginnings = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert num_nodes(rows) == len(beginnings) < sum(map(len, rows))
    batch = PackedBatch.of(rows, is_causal=True)
    assert batch.ids.shape[1] == len(beginnings)
    assert batch.ids[0][batch.path].tolist() == sum(rows, [])
    values = torch.randn(len(beginnings), 3)
    assert torch.equal(batch.join(list(batch.split(values))), values)


def test_a_prompt_without_a_token_is_refused(tokenizer):
    encoder = FrozenEncoder(random_model(FAMILIES["bert"]), tokenizer, max_tokens=MAX_TOKENS)
    with pytest.raises(ValueError, match="prompt 1 of the batch must have a token"):
        encoder.encode([[5, 6], []])


def test_feed_forward_layers_are_fused_where_the_processor_has_bfloat16():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no products in bfloat16 on this processor")
    llama, bert = (random_model(FAMILIES[name], torch.bfloat16) for name in ("llama", "bert"))
    for model in (llama, bert):
        fuse_layers(model)
    assert isinstance(llama.layers[0].mlp, FusedGate)
    assert bert.encoder.layer[0].intermediate.activation == ("gelu", "none")
    assert isinstance(bert.encoder.layer[0].attention.self.query, FusedLinear)


def test_a_layer_that_does_something_more_is_not_fused():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(8, 8).bfloat16()
            self.intermediate_act_fn = torch.nn.GELU()

        def forward(self, x):
            return 2 * self.intermediate_act_fn(self.dense(x))

    model = torch.nn.ModuleList([Scaled().requires_grad_(False)])
    x = torch.randn(3, 8).bfloat16()
    expected = model[0](x)
    fuse_layers(model)
    assert type(model[0]) is Scaled
    torch.testing.assert_close(model[0](x), expected, rtol=0.05, atol=0.02)
