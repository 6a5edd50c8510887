"""Runs with semantic ids: loaders, other datasets, raw rows, ranks, exports, refusals."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from interest_runs import ITEM_DIM, interest_dataset, made_sources
from llm_data import write_source
from ranks import run_ranks
from renumbering import renumbered, save_values
from tiny import tiny_dataset
from trainings import config_of, fit

from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.io.paths import to_path
from msrec.data.llm.item_source.settings import source_settings
from msrec.data.llm.store import VERSION, VectorSettings
from msrec.data.schema import SparseFeature, load_schema, save_schema
from msrec.launch.build_model import build_model
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import RunConfig, load_config, save_config
from msrec.launch.distributed import Process, process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import ScoredDataset, build_loader
from msrec.launch.serving.export import export
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import open_run

ONE = Process(0, 1, 1, torch.device("cpu"))
SEMANTIC = [
    *("llm.sources=[made]", f"llm.item_dim={ITEM_DIM}"),
    "llm.semantic_ids={source: made, levels: 2, codes: 4}",
]


def item_store(dataset, store):
    """A source with a vector of each item of a tiny dataset but the last."""
    settings = source_settings(dataset, "made", VectorSettings(**LLMConfig().encoding))
    settings |= {"version": VERSION, "model_sha256": "0" * 64}
    keys = [f"i{number}" for number in range(59)]
    vectors = np.random.default_rng(0).normal(size=(59, 12))
    return write_source(store, keys, vectors, "made", settings)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = save_values(tiny_dataset(tmp_path_factory.mktemp("semantic") / "tiny"))
    item_store(folder, folder.parent / "store")
    return folder


def codes_by_row(config, split, data=None):
    """Row id -> codes of both levels, as the batches of a loader have them."""
    knowledge = KnowledgeInputs(config, load_schema(config.dataset), data)
    alignment = VocabularyAlignment(config.dataset, data) if data else None
    scored = ScoredDataset(data, alignment) if data else None
    codes = {}
    for batch in build_loader(
        config, split, ONE, knowledge, 96, shuffle=False, scored=scored
    ).batches():
        assert batch.sparse.keys()[-2:] == ["semantic_1", "semantic_2"]
        levels = [batch.sparse[f"semantic_{n}"].values().tolist() for n in (1, 2)]
        codes |= dict(zip(batch.row_id.tolist(), zip(*levels, strict=True), strict=True))
    return codes, knowledge


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_row_has_the_codes_of_its_item(dataset, tmp_path, split):
    codes, knowledge = codes_by_row(config_of(dataset, tmp_path, *SEMANTIC), split)
    items = np.concatenate([pq.read_table(p)["item"] for p in sorted(dataset.glob(f"{split}/*"))])
    assert knowledge.item_sources == ()
    assert knowledge.semantic_ids.codes[59].tolist() == [0, 0]
    assert (knowledge.semantic_ids.codes[:59] > 0).all()
    for row, item in enumerate(items):
        assert codes[row] == tuple(knowledge.semantic_ids.codes[item])


def test_a_control_of_the_source_changes_the_codes(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *SEMANTIC)
    control = config_of(dataset, tmp_path, *SEMANTIC, "llm.source_controls={made: shuffled}")
    plain, shuffled = (
        KnowledgeInputs(each, load_schema(dataset)).semantic_ids.codes for each in (config, control)
    )
    assert (plain != shuffled).any()
    assert sorted(map(tuple, plain)) == sorted(map(tuple, shuffled))


def test_another_dataset_has_the_codes_of_the_same_items(dataset, tmp_path):
    config = config_of(dataset, tmp_path, *SEMANTIC)
    other = renumbered(dataset, tmp_path / "other")
    assert codes_by_row(config, "test", other)[0] == codes_by_row(config, "test")[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["embeddings.per_scenario=true"]])
def test_two_ranks_train_as_one(dataset, tmp_path, options):
    options = [*SEMANTIC, "trainer.epochs=1", "embeddings.row_wise_from=5", *options]
    config = config_of(dataset, tmp_path / "one", *options)
    two = config_of(dataset, tmp_path / "two", *options)
    alone, *_ = run_ranks(fit, 1, config)[0]
    together, *_ = run_ranks(fit, 2, two)[0]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


@pytest.mark.slow
def test_an_export_scores_raw_rows_as_the_run_does(tmp_path):
    raw = interest_dataset(tmp_path / "data")
    made_sources(tmp_path / "data", tmp_path / "store")
    # Features of scaled tables too.
    config = config_of(tmp_path / "data", tmp_path / "runs", *SEMANTIC, "scale=0.5")
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    rows = raw.tail(200).drop("label", "time")
    rows.write_parquet(tmp_path / "rows.parquet")
    with process_group("cpu") as process:
        evaluate(config.run_dir, process)
        export(config.run_dir, tmp_path / "out", process, tables="float16", compiled=False)
        run = open_run(config.run_dir, process)
        predict_files(run, process, [to_path(tmp_path / "rows.parquet")], tmp_path / "scores")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["rows"] == 600
    scorer = Scorer(tmp_path / "out")
    expected = pq.read_table(tmp_path / "scores")["score"].to_numpy()
    encoded = scorer.encoder.encode_table(rows.to_arrow(), "rows")
    np.testing.assert_allclose(scorer.score(encoded)[:, 0], expected, atol=5e-4)
    new = rows.head(1).with_columns(item_key=70001).to_arrow()
    assert [ids.tolist() for ids in scorer.encoder.encode_table(new, "rows").ids[-2:]] == [[0], [0]]


def test_a_source_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match=r"semantic_ids.source must be one of .* \(lsa\)"):
        RunConfig(
            dataset=to_path("x"), llm={"sources": ["lsa"], "semantic_ids": {"source": "other"}}
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("llm.semantic_ids.level=2", "semantic_ids.level is not a known key; near it are levels"),
        ("llm.semantic_ids=3", "must hold keys, such as llm.semantic_ids.codes; got 3"),
        ("llm.semantic_ids.levels=2", "source: Field required"),
    ],
)
def test_wrong_options_name_the_known_ones(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, ["dataset=x", "llm.sources=[lsa]", override])


def test_a_dataset_with_a_feature_of_that_name_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny", rows=300, valid_rows=60)
    item_store(dataset, tmp_path / "store")
    schema = load_schema(dataset)
    more = [*schema.sparse, SparseFeature(name="semantic_1", table="genre")]
    save_schema(schema.model_copy(update={"sparse": more}), dataset)
    config = config_of(dataset, tmp_path, *SEMANTIC)
    schema = load_schema(dataset)
    with pytest.raises(ValueError, match="must have no column or table 'semantic_1'"):
        build_model(config, schema, KnowledgeInputs(config, schema))
