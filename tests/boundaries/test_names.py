"""Names in data never become paths or attributes: any name works, or conversion refuses it."""

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingBagCollection
from trainings import config_of

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.vocabulary import VOCABULARIES, load_vocabularies, vocabulary_file
from msrec.data.io.names import check_name, module_name, safe_name
from msrec.data.schema import Scenario, Schema, load_schema, save_schema
from msrec.launch.distributed import process_group
from msrec.launch.explanations.explanation_file import user_file
from msrec.launch.serving.quantized_tables import table_path
from msrec.launch.training.trainer import train_run
from msrec.model.embeddings import table_configs
from msrec.tools.planner.tables import read_tables_file
from msrec.tools.planner.torchrec_times import meta_collection

HOSTILE = [
    *("../../../victim", "/etc/passwd", "..", ".", "a.b", "a%2Eb", "age/group", "C:\\x", "50%"),
    *("type", "keys", "values", "forward", "training", "_modules", "__class__", "self", "to"),
    *(
        "Größe",
        "名前",
        "🙂",
        "[red]",
        "feed [/home]",
        "a*",
        "a?[b]",
        "--help",
        "null",
        "1.5",
        "x" * 300,
    ),
]
WORDS = st.sampled_from([*HOSTILE, *dir(nn.ModuleDict())])
TEXT = st.one_of(st.text(min_size=1, max_size=300), WORDS)


def tables_of(names, rows=120):
    """Returns raw tables whose items have a feature for each name."""
    rng = np.random.default_rng(0)
    items = pl.DataFrame({"item_key": np.arange(8)} | {n: rng.integers(0, 3, 8) for n in names})
    return RawTables(
        name="names",
        description="Names.",
        interactions=pl.DataFrame(
            {
                "user_key": np.arange(rows) % 6,
                "item_key": np.arange(rows) % 8,
                "scenario": np.arange(rows) % 2,
                "label": np.arange(rows) % 3 % 2,
            }
        ),
        users=pl.DataFrame({"user_key": np.arange(6)}),
        items=items,
        scenarios=[Scenario(name=name, description="") for name in ("[red]", "../feed")],
        features=(*ID_FEATURES, *(Feature(name, "item") for name in names)),
    )


@given(st.lists(TEXT, min_size=2, max_size=6, unique=True))
@settings(max_examples=examples(200), deadline=None)
def test_safe_names_are_parts_of_paths_and_modules_and_never_the_same(names):
    encoded = [safe_name(name) for name in names]
    assert len(set(encoded)) == len(names)
    modules = nn.ModuleDict()
    for name in encoded:
        assert "/" not in name
        assert name not in {".", ".."}
        assert len(name.encode(errors="surrogatepass")) <= 230
        assert not any(ord(c) < 32 or c == "." for c in name)
        assert module_name(name) == name
        modules[name] = nn.Identity()
    assert list(modules) == encoded


@given(st.lists(TEXT, min_size=1, max_size=4, unique=True))
@settings(max_examples=examples(25), deadline=None)
def test_any_name_converts_and_has_its_own_vocabulary_or_is_refused(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    raw, refusal = tables_of(names), ""
    try:
        schema = write_dataset(raw, folder / "data")
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "Rename" in refusal
        assert list(folder.iterdir()) == []
        return
    assert [f.name for f in load_schema(folder / "data").sparse] == ["user_id", "item_id", *names]
    vocabularies = load_vocabularies(folder / "data")
    train = pl.read_parquet(folder / "data" / "train" / "*.parquet")
    for name in names:
        values = [None, *vocabularies[name].to_list()]
        expected = raw.items[name].gather(train["item"]).to_list()
        assert [values[row] for row in train[name]] == expected
    configs = table_configs(schema, 4)
    EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    files = {path.name for path in folder.iterdir()}
    assert files == {"data"}


def test_a_model_of_hostile_names_trains_and_its_rows_are_encoded(tmp_path):
    write_dataset(tables_of(HOSTILE, rows=400), tmp_path / "data")
    options = "embeddings.sharding={a.b: row_wise, type: row_wise}"
    with process_group("cpu") as process:
        result = train_run(config_of(tmp_path / "data", tmp_path / "runs", options), process)
    assert np.isfinite(result.losses).all()
    items = pl.read_parquet(tmp_path / "data" / "items.parquet")
    rows = tables_of(HOSTILE).items.join(items, on="item_key")
    rows = rows.with_columns(user_key=pl.lit(1), scenario=pl.lit("../feed"))
    encoded = RowEncoder(tmp_path / "data").encode(rows.to_arrow(), "rows")
    assert all((encoded[name] > 0).all() for name in HOSTILE)


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "\x1b[31m", "a\rb", "\u2028", "\u202egpj", "\x00", "\x9b31m"]
)
def test_a_name_that_forges_lines_or_steers_the_terminal_is_refused(tmp_path, name):
    for raw in (tables_of([name]), tables_of(["x"])):
        if "x" in raw.items.columns:
            scenarios = [*raw.scenarios[1:], Scenario(name=name, description="")]
            raw = RawTables(**{**vars(raw), "scenarios": scenarios})
        with pytest.raises(ValueError, match="must have a visible character") as refused:
            write_dataset(raw, tmp_path / "data")
        assert "\n" not in str(refused.value)
        assert "\x1b" not in str(refused.value)
    with pytest.raises(ValueError, match="name"):
        check_name("the name", name)


@pytest.mark.parametrize("name", ["user", "scenario", "user_key", "p_click", "label", "item_id"])
def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' .*Rename"):
        write_dataset(tables_of([name]), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_table_named_by_a_path_in_dataset_yaml_stays_in_the_export(tmp_path):
    write_dataset(tables_of(["x"]), tmp_path / "data")
    file = tmp_path / "data" / "dataset.yaml"
    values = yaml.safe_load(file.read_text())
    values["tables"] = {f"{tmp_path}/victim": 9, "type": 9, **values["tables"]}
    values["sparse"][2]["table"] = f"{tmp_path}/victim"
    file.write_text(yaml.safe_dump(values))
    schema = load_schema(tmp_path / "data")
    assert schema.sparse[2].table in schema.tables
    for table in schema.tables:
        assert table_path(tmp_path / "out", table).parent == tmp_path / "out"
    again = load_schema(save_schema(schema, tmp_path / "again").parent)
    assert again == schema


def test_vocabularies_that_were_written_before_names_were_encoded_are_found(tmp_path):
    write_dataset(tables_of(["50%", "user.age"]), tmp_path / "data")
    vocabularies = tmp_path / "data" / VOCABULARIES
    before = load_vocabularies(tmp_path / "data")
    (vocabularies / "50%25.parquet").rename(vocabularies / "50%.parquet")
    (vocabularies / "user%2Eage.parquet").rename(vocabularies / "user.age.parquet")
    after = load_vocabularies(tmp_path / "data")
    assert {n: v.to_list() for n, v in before.items()} == {n: v.to_list() for n, v in after.items()}
    assert vocabulary_file(tmp_path / "data", "../data/vocabularies/50%").name.startswith("%2E%2E")


def test_names_of_tables_that_were_trained_stay_as_they_are():
    names = ["user_id", "rating>1", "50%", "Größe", "a b", "_x", "[red]", "a@b", "A-1", "x,y=z"]
    assert list(map(module_name, names)) == names
    values = {"name": "d", "description": "", "labels": ["label"], "split": {"method": "random"}}
    values |= {"scenarios": [{"name": "s", "description": ""}], "num_users": 1, "num_items": 1}
    sparse = [{"name": name, "table": name} for name in names]
    schema = Schema.model_validate(values | {"tables": dict.fromkeys(names, 3), "sparse": sparse})
    assert list(schema.tables) == names


def test_users_with_similar_keys_have_their_own_explanations(tmp_path):
    keys = ["a/b", "a_b", "a.b", "../a", "..", "", " ", "x" * 400, "x" * 401, "u\n1"]
    files = {user_file(tmp_path, key) for key in keys}
    assert len(files) == len(keys)
    assert {file.parent.parent for file in files} == {tmp_path}


def test_a_table_with_the_name_of_the_history_of_users_is_refused_beside_it(tmp_path):
    schema = write_dataset(tables_of(["user_history"]), tmp_path / "data")
    assert len(table_configs(schema, 4)) == 3
    with pytest.raises(ValueError, match="table 'user_history' .* rename that feature"):
        table_configs(schema, 4, ["user"])


def test_a_list_of_tables_may_have_any_names(tmp_path):
    (tmp_path / "t.csv").write_text("name,rows,dim\na.b,1000,16\ntype,10,16\n../x,10,16\n")
    tables = read_tables_file(tmp_path / "t.csv")
    assert len(meta_collection(tables, "adam").embedding_bags) == 3


def test_the_key_column_of_a_dataset_beside_the_id_is_refused(tmp_path):
    pl.DataFrame({"user_id": [1], "user_key": [2], "item_id": [1]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    with pytest.raises(ValueError, match="scenario"):
        read_tables(tmp_path)
    frame = pl.read_parquet(tmp_path / "interactions.parquet")
    frame = frame.with_columns(scenario=pl.lit("a"), label=pl.lit(1))
    frame.write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(ValueError, match="must not have the column 'user_key' beside 'user_id'"):
        read_tables(tmp_path)
