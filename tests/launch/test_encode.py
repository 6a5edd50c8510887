"""Encoding job: sharded, resumed and incremental runs give the same store."""

import json
from dataclasses import fields
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from llm_data import TRAIN, USERS, stop_after, write_dataset, write_model

from msrec.data.engines.engines import make_engine
from msrec.data.llm import store_writer
from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.store import KnowledgeStore, VectorSettings
from msrec.data.llm.text.templates import load_template
from msrec.data.schema import TextFields, load_schema, save_schema
from msrec.launch.config.run_config import RunConfig
from msrec.launch.encoding.encode import encode
from msrec.launch.encoding.job import encode_config
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.progress import EncodeProgress
from msrec.launch.encoding.speed import Progress, SpeedCounter, Work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", TRAIN, users=USERS)


def run(dataset, store, model, on_progress=None, engine=None, **changes):
    """Encodes with `changes` to the settings of the vectors and to the options of the job."""
    settings = {"dtype": "float32", "storage": "float32", "max_tokens": 600} | changes
    names = {field.name for field in fields(VectorSettings)}
    options = EncodeOptions(**{name: settings.pop(name) for name in settings.keys() - names})
    vectors = VectorSettings(model, **settings)
    return encode(dataset, store, vectors, options, (), engine, on_progress)


def job(dataset, store, model, **changes):
    return run(dataset, store, model, **({"batch_tokens": 900, "save_every_s": 0} | changes)).levels


@pytest.fixture(scope="module")
def whole(dataset, model, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    job(dataset, store, model)
    return store


def assert_same_store(store, other):
    for level in ("scenario", "user"):
        a, b = KnowledgeStore.open(store / level), KnowledgeStore.open(other / level)
        assert a.keys.tolist() == b.keys.tolist()
        np.testing.assert_allclose(a.vectors, b.vectors, rtol=1e-4, atol=1e-5)
        same = [m.manifest.copy() for m in (a, b)]
        for manifest in same:
            for name in ("mean", "std", "bytes", "crc32", "reused"):
                manifest.pop(name, None)
        assert same[0] == same[1]


def test_both_levels_have_their_keys_and_settings(whole):
    users = KnowledgeStore.open(whole / "user")
    scenarios = KnowledgeStore.open(whole / "scenario")
    assert users.keys.tolist() == USERS[:11]
    assert scenarios.keys.tolist() == ["search", "feed"]
    assert users.vectors.shape == (11, 16)
    assert users.manifest["left_out"] == users.manifest["no_history"] == 1
    users.check({"level": "user", "dataset": "shop", "train_rows": len(TRAIN), "layer": "last"})
    users.check({"template": "default", "template_version": 2})
    assert users.manifest["split"]["train_until"] == 100


def test_a_stored_vector_is_that_of_its_prompt_alone(whole, dataset, model):
    from msrec.data.llm.text.prompts import user_prompts

    template = load_template("default")
    key, text = user_prompts(dataset, template).pairs()[7]
    encoder = FrozenEncoder.load(model, dtype="float32", max_tokens=600)
    rows, _ = encoder.tokens.tokenize([text], system=template.system)
    store = KnowledgeStore.open(whole / "user")
    stored = store.vectors[store.rows(np.array([key]))[0]]
    np.testing.assert_allclose(stored, encoder.encode(rows).vectors[0], rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four keys at most, in this process and in workers that it forks or starts."""
    monkeypatch.setattr(store_writer, "MIN_BLOCK", {"user": 4, "scenario": 4})


@pytest.fixture
def engines(request):
    """Function that makes an engine of a name, which ends with the test."""

    def start(name, workers=2):
        context = make_engine(name, workers, None)
        engine = context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
        return engine

    return start


def test_blocks_give_the_same_store(dataset, model, whole, tmp_path, small_blocks):
    seen = []
    job(dataset, tmp_path, model, on_progress=seen.append)
    assert_same_store(tmp_path, whole)
    assert (seen[-1].done, seen[-1].total) == (14, 14)


@pytest.mark.parametrize("name", ["processes", "ray"])
def test_every_engine_gives_the_same_store(dataset, model, tmp_path, small_blocks, engines, name):
    expected = run(dataset, tmp_path / "one", model)
    seen = []
    result = run(dataset, tmp_path / name, model, seen.append, engines(name))
    assert result.levels == expected.levels
    assert (seen[-1].done, seen[-1].total, seen[-1].encoded) == (14, 14, 13)
    assert result.work.tokens == expected.work.tokens
    for file in ("keys.parquet", "vectors.npy"):
        for level in ("user", "scenario"):
            one, other = (tmp_path / folder / level / file for folder in ("one", name))
            assert one.read_bytes() == other.read_bytes()


def test_a_killed_run_resumes_and_computes_each_key_once(
    dataset, model, whole, tmp_path, small_blocks
):
    with pytest.raises(KeyboardInterrupt):
        job(dataset, tmp_path, model, on_progress=stop_after(6))
    saved = list((tmp_path / "user" / "parts").glob("*/part-*"))
    assert saved
    encoded = sum(pl.read_parquet(file).height for file in saved)
    counts = job(dataset, tmp_path, model)["user"]
    assert counts["encoded"] == 11 - encoded
    assert_same_store(tmp_path, whole)


def test_a_finished_store_is_left_as_it_is(dataset, model, whole, monkeypatch):
    monkeypatch.setattr(FrozenEncoder, "load", None)
    before = (whole / "user" / "manifest.json").stat().st_mtime_ns
    counts = job(dataset, whole, model)
    assert counts["user"] | {"keys": 11, "encoded": 0} == counts["user"]
    assert (whole / "user" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change", [{"pooling": "last"}, {"template": "movielens"}, {"max_tokens": 300}, {"pca": 4}]
)
def test_resuming_with_other_settings_is_refused(dataset, model, whole, change):
    with pytest.raises(ValueError, match=f"begun with .*{next(iter(change))}"):
        job(dataset, whole, model, **change)


def test_another_model_under_the_same_name_is_refused(dataset, whole, model, tmp_path):
    settings = json.loads((whole / "user" / "settings.json").read_text())
    other = str(write_model(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="model_sha256"):
        job(dataset, whole, other)
    assert json.loads((whole / "user" / "settings.json").read_text()) == settings


def test_progress_counts_up_to_the_total(dataset, model, tmp_path):
    seen = []
    job(dataset, tmp_path, model, on_progress=seen.append)
    assert (seen[0].done, seen[0].total, seen[0].tokens, seen[0].left_s) == (0, 14, 0, None)
    assert (seen[-1].done, seen[-1].total, seen[-1].left_s) == (14, 14, 0)
    assert all(a.done <= b.done and a.tokens <= b.tokens for a, b in pairwise(seen))
    manifests = [KnowledgeStore.open(tmp_path / n).manifest for n in ("scenario", "user")]
    assert seen[-1].tokens == sum(manifest["tokens"] for manifest in manifests)


def test_the_forecast_is_right_from_the_first_batch_although_long_prompts_come_first():
    seen = []
    counter = SpeedCounter(1000, seen.append)
    counter.add(Work(100))  # by an earlier run
    counter.expect(450, 40 * 250 + 410 * 20)  # a window of half of the rest: 40 are long
    for prompts, tokens in [(20, 260), (20, 260), (410, 30)]:  # of them 10 in a shared prefix
        shared = prompts * 10
        seconds = (prompts * tokens - shared) / 1e3  # 1,000 tokens per s
        counter.add(Work(prompts, prompts, 0, 0, prompts * tokens, shared, seconds))
    whole_s = 2 * (40 * 250 + 410 * 20) / 1e3
    for progress in seen[1:]:
        assert progress.seconds + progress.left_s == pytest.approx(whole_s)


def test_a_dataset_without_text_is_refused_before_anything_is_written(tmp_path, model):
    folder = tmp_path / "data"
    write_dataset(folder, TRAIN)
    schema = load_schema(folder)
    save_schema(schema.model_copy(update={"text": TextFields()}), folder)
    for level in ("user", "item"):
        with pytest.raises(ValueError, match="text must name a title or attributes of items"):
            job(folder, tmp_path / "store", model, levels=(level,))
    assert not (tmp_path / "store").exists()


def test_a_context_that_is_too_short_is_refused_before_anything_is_written(
    dataset, tmp_path, model
):
    with pytest.raises(ValueError, match=r"max_tokens must be at most [\d,]+, the context of"):
        job(dataset, tmp_path / "store", model, max_tokens=10**6)
    assert not (tmp_path / "store").exists()


def test_histories_fit_max_tokens_and_cut_ones_are_counted(dataset, model, tmp_path):
    job(dataset, tmp_path, model, max_tokens=400)
    users = KnowledgeStore.open(tmp_path / "user").manifest
    assert 0 < users["history_cut"] < 11
    assert users["truncated"] == 0
    tokens = pl.read_parquet(tmp_path / "user/keys.parquet")["tokens"]
    assert 350 < tokens.max() <= 400


def test_items_can_be_encoded_alone(dataset, model, tmp_path):
    levels = job(dataset, tmp_path, model, levels=("item",))
    assert levels["item"] | {"keys": 6, "encoded": 6, "left_out": 0} == levels["item"]
    items = KnowledgeStore.open(tmp_path / "item")
    assert items.keys.tolist() == list(range(6))


def test_a_shared_prefix_is_computed_once_and_changes_no_vector(
    dataset, model, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr("msrec.data.llm.prompt_batches.MIN_PREFIX_TOKENS", 10**9)
    tree = run(dataset, tmp_path / "tree", model)  # packed: any beginnings are shared
    assert tree.work.shared_tokens > 0.3 * tree.work.tokens
    assert_same_store(tmp_path / "tree", whole)
    monkeypatch.setattr(FrozenEncoder, "_packed", lambda self: None)
    plain = run(dataset, tmp_path, model)
    assert plain.work.shared_tokens == 0
    assert_same_store(tmp_path, whole)
    monkeypatch.undo()
    shared = run(dataset, tmp_path / "b", model)
    assert shared.work.shared_tokens > 0.3 * shared.work.tokens
    assert shared.work.prompts == 13
    assert 0 < shared.work.matmul_share < 1.5


def test_generate_stores_the_answers(dataset, model, tmp_path):
    levels = job(dataset, tmp_path, model, pooling="generate", answer_tokens=5)
    assert levels["user"]["encoded"] == 11
    keys = pl.read_parquet(tmp_path / "user/keys.parquet")
    assert keys["text"].null_count() == 0
    assert KnowledgeStore.open(tmp_path / "user").manifest["answer_tokens"] == 5


# Incremental encoding ------------------------------------------------------------------------


@pytest.fixture
def a_day_later(tmp_path):
    """The same dataset with one row more, of user u3."""
    more = [(3, 1, 0, 1.0, 99)]
    return write_dataset(tmp_path / "later", [*TRAIN, *more], users=USERS)


def test_only_users_whose_prompt_changed_are_encoded_again(
    dataset, model, whole, tmp_path, a_day_later
):
    levels = job(a_day_later, tmp_path / "new", model, previous=whole)
    assert (levels["user"]["encoded"], levels["user"]["reused"]) == (1, 10)
    assert (levels["scenario"]["encoded"], levels["scenario"]["reused"]) == (0, 2)
    job(a_day_later, tmp_path / "fresh", model)
    assert_same_store(tmp_path / "new", tmp_path / "fresh")
    assert KnowledgeStore.open(tmp_path / "new/user").manifest["reused"] == 10


def test_an_earlier_store_with_other_settings_is_refused(model, whole, tmp_path, a_day_later):
    for change, message in (
        ({"pooling": "last"}, "pooling 'mean' .expected 'last'."),
        ({"storage": "int8"}, "storage 'int8', pca None: not the model's vectors"),
    ):
        with pytest.raises(ValueError, match=f"an earlier store must have .*{message}"):
            job(a_day_later, tmp_path / "new" / message[:3], model, previous=whole, **change)


def test_a_config_names_levels_and_store(dataset, model, tmp_path):
    llm = {"model": model, "dtype": "float32", "max_tokens": 600, "items": True}
    levels = encode_config(RunConfig(dataset=dataset, llm=llm | {"store": tmp_path})).levels
    sizes = {level: counts["keys"] for level, counts in levels.items()}
    assert sizes == {"scenario": 2, "user": 11, "item": 6}
    assert len(KnowledgeStore.open(tmp_path / "user")) == 11
    with pytest.raises(ValueError, match="llm.store must name a folder"):
        encode_config(RunConfig(dataset=dataset, llm=llm))


def test_progress_without_time_in_a_model_shows_no_speed(capsys):
    with EncodeProgress(is_shown=True) as progress:
        progress.update(Progress(60, 60, 60, 928, seconds=0.0, left_s=None))
        progress.update(Progress(60, 60, 60, 900, seconds=2.0, left_s=0.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["encode 60/60", "encode 60/60  30.0 prompts/s  450 tokens/s  0 s left"]
