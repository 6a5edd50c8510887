"""Plans of a config before there is a data set or a knowledge store."""

import dataclasses

import pytest

from msrec.data.llm.models.model_weights import is_local, model_folder
from msrec.data.synthetic.random_rows import random_rows
from msrec.launch.config.run_config import load_config, save_config
from msrec.tools.planner.command.build_request import request_from_options
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.sources.run_memory import tables_and_dense
from msrec.tools.planner.sources.without_data import HIDDEN_SIZES
from msrec.tools.planner.tables import read_tables_file

pytestmark = pytest.mark.slow

TABLES = """
- {name: user_id, rows: 100000000, dim: 8}
- {name: item_id, rows: 30000000, dim: 8, features: 2}
- {name: words, rows: 5000, dim: 8, pooling: 7.5}
"""
MODEL = ("backbone.name=mlp", "backbone.dims=[32]", "embeddings.dim=8", "trainer.global_batch=4096")


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "app_tables.yaml").write_text(TABLES)
    return tmp_path / "app.yaml"


def saved(file, *overrides):
    config = load_config(None, [f"dataset={file.parent / 'data'}", *MODEL, *overrides])
    save_config(config, file)
    return config


def test_a_config_alone_is_planned_as_with_its_data(config_file):
    config = saved(config_file)
    before = request_from_options(PlanOptions(config_file, gpus_per_node=2))
    listed = read_tables_file(config_file.with_name("app_tables.yaml"))
    by_name = {table.name: table for table in before.tables}
    for table in listed:
        found = by_name[table.name]
        assert (found.rows, found.dim, found.pooling) == (table.rows, 8, table.pooling)
        assert found.features == table.features
        assert found.module == "ranker.embeddings.ebc"
    assert "data does not exist: planned with the tables of" in before.notes[0]
    assert "A rank has 2,048 rows of a step" in before.notes[1]
    assert not config.dataset.exists()
    random_rows(config.dataset, listed, rows=2048, users=100, items=100)
    after = request_from_options(PlanOptions(config_file, gpus_per_node=2))
    assert not after.notes
    assert before.dense.fixed == after.dense.fixed
    width = 4 * 8 + 2  # four features, two dense columns
    assert before.dense.at(1000)["activations"] == pytest.approx(
        after.dense.at(1000)["activations"], rel=0.02
    )
    assert before.dense.fixed["dense parameters"] >= 4 * (width * 32 + 32 + 32 + 1)
    same = dataclasses.replace(after, tables=before.tables)
    assert make_plan(before).modules == make_plan(same).modules
    with pytest.raises(ValueError, match="--tables and --llm-dim are for a config without data"):
        request_from_options(PlanOptions(config_file, llm_dim=4))


def test_the_networks_that_read_the_llm_have_the_size_of_its_vectors(config_file):
    meta = ("meta.user=true", "meta.rank=4", "meta.width=8", "backbone.dropout=0")
    saved(config_file, *meta, "llm.model=minilm-l6-v2", "llm.store=absent")
    sizes = {}
    for dim in (None, 384, 100):
        request = request_from_options(PlanOptions(config_file, llm_dim=dim))
        sizes[dim] = request.dense.fixed["networks that read the LLM"]
        assert any(f"have {dim or 384} components" in note for note in request.notes)
    assert sizes[None] == sizes[384] > sizes[100] > 0
    # The first layer of the network reads the vector.
    assert (sizes[384] - sizes[100]) % (4 * 284) == 0
    saved(config_file, *meta, "llm.model=some/model", "llm.store=absent")
    with pytest.raises(ValueError, match="llm.model=some/model is not local. Give --llm-dim"):
        request_from_options(PlanOptions(config_file))


def test_what_only_data_tells_is_refused(config_file, tmp_path):
    saved(config_file, "sequence.encoder=din", "sequence.protocol=stream")
    with pytest.raises(ValueError, match="a config with sequence.encoder must have its data set"):
        request_from_options(PlanOptions(config_file))
    alone = tmp_path / "alone.yaml"
    saved(alone)
    with pytest.raises(FileNotFoundError, match=r"nor does .*alone_tables.yaml"):
        request_from_options(PlanOptions(alone))
    request = request_from_options(
        PlanOptions(alone, tables=config_file.with_name("app_tables.yaml"))
    )
    assert len(request.tables) == 3


@pytest.mark.parametrize("model", [name for name in HIDDEN_SIZES if is_local(name)])
def test_sizes_of_packaged_models_are_those_of_their_config(model):
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(model_folder(model)).hidden_size == HIDDEN_SIZES[model]


def test_the_tables_of_a_config_equal_those_of_its_data(config_file):
    config = saved(config_file)
    listed = read_tables_file(config_file.with_name("app_tables.yaml"))
    before = request_from_options(PlanOptions(config_file)).tables
    random_rows(config.dataset, listed, rows=2048, users=100, items=100)
    measured, _ = tables_and_dense(config, 1024)
    for table, found in zip(before, measured, strict=True):
        assert found == table.model_copy(update={"pooling": found.pooling})
        assert found.pooling == pytest.approx(table.pooling, rel=0.05)
