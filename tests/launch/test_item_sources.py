"""Item sources: LSA against scikit-learn, resumed and incremental encodings, refused settings."""

import json

import numpy as np
import pytest
from llm_data import stop_after, whole, write_dataset, write_model
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from msrec.data.io.paths import to_path
from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.item_source.codebook import item_codebook
from msrec.data.llm.item_source.lsa import LsaModel
from msrec.data.llm.item_vectors import load_item_vectors
from msrec.data.llm.store import KnowledgeStore, VectorSettings, item_source_folder
from msrec.data.llm.text.prompts import item_prompts
from msrec.launch.config.run_config import RunConfig
from msrec.launch.encoding.encode import encode
from msrec.launch.encoding.job import encode_config
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.run_prompts import named_prompt
from msrec.launch.knowledge_inputs import item_sources

WORDS = ["red", "blue", "shoe", "hat", "ring", "pan", "lamp", "wool", "steel", "of", "a"]
RNG = np.random.default_rng(0)
TITLES = [" ".join(RNG.choice(WORDS, 1 + number % 5)) for number in range(40)]
TITLES[7] = ""  # an item without text


def shop(folder, titles=TITLES):
    return write_dataset(folder, [(0, 0, 0, 1.0, 1)], titles=titles, kinds=[None] * len(titles))


def run(dataset, store, source="lsa", on_progress=None, **options):
    settings = VectorSettings("unused", dtype="float32", max_tokens=64)
    options = EncodeOptions((), **({"batch_tokens": 100, "save_every_s": 0} | options))
    return encode(dataset, store, settings, options, [source], None, on_progress)


def counts_of(result, source="lsa"):
    return result.levels[f"{source} item"]


def opened(store, source="lsa"):
    return KnowledgeStore.open(item_source_folder(store, source))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def stored(dataset, model, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    run(dataset, store)
    run(dataset, store, model)
    return store


def test_lsa_equals_the_pipeline_of_scikit_learn(dataset, stored):
    texts = item_prompts(dataset, None).frame["text"].to_list()
    tfidf = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=r"\w+")
    size = min(len(texts), len(tfidf.fit(texts).vocabulary_))
    svd = TruncatedSVD(size, n_iter=7, random_state=0)
    expected = make_pipeline(tfidf, svd).fit_transform(texts)
    store = opened(stored)
    assert store.vectors.dtype == np.float16
    np.testing.assert_allclose(store.vectors, expected, rtol=1e-3, atol=1e-3)
    assert store.manifest["lsa_explained"] == pytest.approx(svd.explained_variance_ratio_.sum())


def test_a_saved_lsa_model_gives_the_vectors_of_the_fitted_one(tmp_path):
    texts = ["红色 鞋子", "红色帽子", "ring of steel", "a ring"]
    fitted = LsaModel.fit(texts)
    fitted.save(tmp_path / "lsa.npz")
    saved = LsaModel.load(tmp_path / "lsa.npz")
    assert set(saved.vectoriser.get_feature_names_out()) == {"红", "色", "红 色", "子", "ring"}
    np.testing.assert_array_equal(saved.transform(texts), fitted.transform(texts))
    assert not saved.transform(["unknown"]).any()


def test_texts_without_a_common_term_are_refused():
    with pytest.raises(ValueError, match=r"llm.sources=\[lsa\] must find a term in at least two"):
        LsaModel.fit(["one", "two"])


def test_a_model_reads_the_plain_text_without_chat_form(dataset, model, stored):
    encoder = FrozenEncoder.load(model, dtype="float32")
    store = opened(stored, model)
    assert store.keys.tolist() == [number for number in range(40) if number != 7]
    rows = [list(encoder.tokens.tokenizer(TITLES[3])["input_ids"])]
    row = store.rows(np.array([3]))[0]
    np.testing.assert_allclose(store.vectors[row], encoder.encode(rows).vectors[0], atol=2e-3)


@pytest.mark.parametrize("source", ["lsa", "model"])
def test_a_killed_encoding_resumes_to_the_same_vectors(
    dataset, model, stored, tmp_path, source, monkeypatch
):
    source = model if source == "model" else source
    monkeypatch.setattr("msrec.launch.encoding.item_sources.MAX_BLOCK", 10)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path, source, on_progress=stop_after(2))
    counts = counts_of(run(dataset, tmp_path, source), source)
    assert 0 < counts["encoded"] < 39
    np.testing.assert_allclose(
        opened(tmp_path, source).vectors, opened(stored, source).vectors, atol=2e-3
    )
    assert counts_of(run(dataset, tmp_path, source), source)["encoded"] == 0


@pytest.mark.parametrize("source", ["lsa", "model"])
def test_new_items_leave_old_vectors_bit_identical(dataset, model, tmp_path, stored, source):
    source = model if source == "model" else source
    before = load_item_vectors(dataset, stored, source, 6)
    codebook = item_codebook(opened(stored, source), 6, levels=2, codes=3)
    later = shop(tmp_path / "later", [*TITLES, "red lamp", "steel ring"])
    counts = counts_of(run(later, tmp_path / "new", source, previous=stored), source)
    assert (counts["reused"], counts["encoded"]) == (39, 2)
    np.testing.assert_array_equal(
        opened(tmp_path / "new", source).vectors[:39], opened(stored, source).vectors
    )
    after = load_item_vectors(later, tmp_path / "new", source, 6)
    np.testing.assert_array_equal(whole(after)[:40], whole(before))
    copied = item_codebook(opened(tmp_path / "new", source), 6, levels=2, codes=3)
    np.testing.assert_array_equal(copied.centroids, codebook.centroids)
    assert after.has[40:].all()


def test_new_items_are_transformed_by_the_fitted_lsa_model(tmp_path, stored):
    later = shop(tmp_path / "later", [*TITLES, "red lamp", "zebra zebra"])
    run(later, tmp_path / "new", previous=stored)
    fitted = LsaModel.load(item_source_folder(stored, "lsa") / "lsa.npz")
    expected = fitted.transform(["red lamp", "zebra zebra"]).astype(np.float16)
    np.testing.assert_array_equal(opened(tmp_path / "new").vectors[39:], expected)
    loaded = load_item_vectors(later, tmp_path / "new", "lsa", 6)
    assert loaded.has.tolist() == [number not in (7, 41) for number in range(42)]


def test_other_settings_are_refused(dataset, model, stored, tmp_path):
    with pytest.raises(ValueError, match="begun with .*num_items 40"):
        run(shop(tmp_path / "more", [*TITLES, "x"]), stored)
    file = item_source_folder(stored, "lsa") / "manifest.json"
    other = tmp_path / "other" / "item-sources" / "lsa"
    other.mkdir(parents=True)
    for each in file.parent.iterdir():
        (other / each.name).write_bytes(each.read_bytes())
    manifest = json.loads(file.read_text())
    manifest["lsa"]["min_df"] = 5
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="an earlier store must have .*'min_df': 5"):
        run(dataset, tmp_path / "new", previous=tmp_path / "other")


def config_of(dataset, store, model, **llm):
    settings = {"store": store, "dtype": "float32", "max_tokens": 64, "sources": [model, "lsa"]}
    return RunConfig(dataset=dataset, seed=3, llm=settings | {"item_dim": 8} | llm)


def test_a_config_encodes_its_sources_and_only_the_levels_that_the_run_reads(
    dataset, model, tmp_path
):
    result = encode_config(config_of(dataset, tmp_path, model))
    sizes = {name: counts["keys"] for name, counts in result.levels.items()}
    assert sizes == {f"{model} item": 39, "lsa item": 39}
    assert [folder.name for folder in tmp_path.iterdir()] == ["item-sources"]
    assert named_prompt(config_of(dataset, tmp_path, model), "item=3") == TITLES[3]
    first, second = item_sources(
        config_of(dataset, tmp_path, model, source_controls={"lsa": "random"})
    )
    assert (first.name, second.name) == (model, "lsa")
    assert whole(first).shape == whole(second).shape == (40, 8)
    plain = item_sources(config_of(dataset, tmp_path, model))
    np.testing.assert_array_equal(whole(first), whole(plain[0]))
    assert (whole(second) != whole(plain[1])).any()


def test_a_source_that_is_not_there_is_refused_before_the_others_are_encoded(
    dataset, model, tmp_path
):
    config = config_of(dataset, tmp_path / "store", str(tmp_path / "nope"))
    sources = ["lsa", str(tmp_path / "nope")]
    config = config.model_copy(update={"llm": config.llm.model_copy(update={"sources": sources})})
    with pytest.raises(FileNotFoundError, match="nope"):
        encode_config(config)
    assert not list((tmp_path / "store").glob("item-sources/*"))


def test_a_run_refuses_a_store_of_other_settings_or_without_the_source(dataset, model, stored):
    with pytest.raises(ValueError, match=r"the store has max_tokens 64 \(expected 32\)"):
        item_sources(config_of(dataset, stored, model, max_tokens=32))
    with pytest.raises(FileNotFoundError, match="llm.sources needs llm.store=FOLDER"):
        item_sources(config_of(dataset, None, model))
    with pytest.raises(FileNotFoundError, match=r"manifest.json must exist"):
        item_sources(config_of(dataset, stored, model, sources=["minilm-l6-v2"]))


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"sources": ["lsa", "lsa"]}, "sources must differ"),
        (
            {"source_controls": {"lsa": "random"}},
            r"must name sources of the list \(none\); got 'lsa'",
        ),
        ({"sources": ["m"], "pooling": "generate"}, "sources need pooling=mean or last"),
    ],
)
def test_a_config_with_wrong_sources_is_refused(llm, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(dataset=to_path("x"), llm=llm)
