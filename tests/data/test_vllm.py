"""vLLM as the library of the frozen LLM: what it is asked for, and what is refused."""

import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from llm_data import TRAIN, USERS, write_dataset, write_model

from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.store import KnowledgeStore, VectorSettings
from msrec.data.llm.vllm_encoder import VllmEncoder
from msrec.launch.encoding.encode import encode
from msrec.launch.encoding.options import EncodeOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def vllm(monkeypatch, model):
    """A module with the part of vLLM's interface that is used; its model is transformers'."""
    asked = {}

    class LLM:
        def __init__(self, **options):
            asked.update(options)
            self._encoder = FrozenEncoder.load(
                options["model"], dtype=options["dtype"], max_tokens=options["max_model_len"]
            )

        def embed(self, prompts, *, use_tqdm):
            rows = [prompt["prompt_token_ids"] for prompt in prompts]
            vectors = self._encoder.encode(rows).vectors
            return [SimpleNamespace(outputs=SimpleNamespace(embedding=v.tolist())) for v in vectors]

    module, config = ModuleType("vllm"), ModuleType("vllm.config")
    module.LLM, config.PoolerConfig = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.config", config)
    return asked


def store(dataset, folder, model, backend):
    vectors = VectorSettings(str(model), dtype="float32", storage="float32", max_tokens=600)
    encode(dataset, folder, vectors, EncodeOptions(backend=backend))
    return {level: KnowledgeStore.open(folder / level) for level in ("user", "scenario")}


def test_vllm_gets_token_ids_and_returns_plain_means(vllm, model, tmp_path):
    dataset = write_dataset(tmp_path / "data", TRAIN, users=USERS)
    expected = store(dataset, tmp_path / "a", model, "transformers")
    for level, made in store(dataset, tmp_path / "b", model, "vllm").items():
        assert made.keys.tolist() == expected[level].keys.tolist()
        np.testing.assert_allclose(made.vectors, expected[level].vectors, rtol=1e-3, atol=1e-3)
    pooler = vllm.pop("pooler_config")
    assert vars(pooler) == {"seq_pooling_type": "MEAN", "use_activation": False}
    expected = {"model": str(model), "runner": "pooling", "convert": "embed", "dtype": "float32"}
    assert vllm == expected | {"max_model_len": 600, "trust_remote_code": False}


def options(**changes):
    plain = {"pooling": "mean", "layer": "last", "dtype": "float32", "max_tokens": 600}
    others = {"is_chat": True, "trust_remote_code": False, "device": torch.device("cpu")}
    return plain | others | changes


@pytest.mark.parametrize("change", [{"pooling": "generate"}, {"layer": "middle"}, {"layer": 1}])
def test_what_vllm_cannot_read_is_refused(vllm, model, change):
    with pytest.raises(ValueError, match="llm.backend=vllm reads the last layer of the prompt"):
        VllmEncoder(model, **options(**change))


def test_without_vllm_the_command_to_install_it_is_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"needs vLLM, .*torch .*: pip install vllm"):
        VllmEncoder(model, **options())


@pytest.mark.parametrize(("visible", "own"), [("", "1"), ("4,6", "6"), ("a,b", "b")])
def test_a_rank_shows_vllm_its_own_gpu_only(vllm, model, monkeypatch, visible, own):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    VllmEncoder(model, **options(device=torch.device("cuda", 1)))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
