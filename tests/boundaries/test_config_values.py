"""Values of a config from outside: each is within its bounds, or refused in one sentence."""

import math

import pytest
import yaml
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from msrec.data.schema import Schema
from msrec.launch.config.backbone_section import BACKBONE_OPTIONS
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.model.embeddings import table_configs
from msrec.tools.planner.tables import TableLoad

REFUSED = {
    "embeddings.dim=10": "embeddings.dim: Input should be a multiple of 4; got 10",
    "embeddings.dim=100000000": "embeddings.dim: Input should be less than or equal to 2048",
    "llm.item_dim=130": "llm.item_dim: Input should be a multiple of 4",
    "trainer.global_batch=1000000000000": "trainer.global_batch: Input should be less than or",
    "trainer.eval_batch=1000000000": "trainer.eval_batch: Input should be less than or equal",
    "trainer.prefetch=1000000": "trainer.prefetch: Input should be less than or equal to 1024",
    "optimizer.lr=.inf": "optimizer.lr: Input should be a finite number; got inf",
    "embeddings.lr=.nan": "embeddings.lr: Input should be a finite number; got nan",
    "trainer.hang_s=.inf": "trainer.hang_s: Input should be a finite number",
    "optimizer.frozen={tables: [0, .inf]}": "optimizer.frozen.tables.1: Input should be a finite",
    "embeddings.id_dropout={a: .nan}": "embeddings.id_dropout.a: Input should be a finite number",
    "backbone.dims=[0]": "backbone.dims.0: Input should be greater than or equal to 1",
    "backbone.dims=[1000000]": "backbone.dims.0: Input should be less than or equal to 65536",
    "backbone.dropout=-1": "backbone.dropout: Input should be greater than or equal to 0",
    "seed=1.0e+23": "seed: Unable to parse input string as an integer, exceeded maximum",
    "seed=99999999999999999999999": "seed: Input should be less than 4294967296",
    "seed=-1": "seed: Input should be greater than or equal to 0",
    "run_root=3": "run_root: must be a path, as text; got 3",
    "dataset=[a]": "dataset: must be a path, as text; got",
    'plan="a\\0b"': "plan: must be a path without the character NUL",
    "backbone=mmoe": "backbone must hold keys, such as backbone.name; got 'mmoe'",
    ".".join(["a"] * 100_000) + "=1": "an override must have a key of the config; got 'a.a.a",
}


@pytest.mark.parametrize(("override", "sentence"), REFUSED.items(), ids=[k[:30] for k in REFUSED])
def test_an_absurd_value_is_one_sentence(override, sentence):
    with pytest.raises(ValueError, match=".") as caught:
        load_config(None, ["dataset=d", "backbone.name=mlp", override])
    assert type(caught.value) is ValueError
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


def leaves(section, prefix=""):
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif name != "backbone":
            yield f"{prefix}{name}", []


KEYS = [
    *leaves(RunConfig),
    *(
        (f"backbone.{option}", [f"backbone.name={name}"])
        for name, section in BACKBONE_OPTIONS.items()
        for option in section.model_fields
        if option != "name"
    ),
]
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    st.lists(st.integers() | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def numbers(tree):
    if isinstance(tree, dict):
        tree = [*tree.values()]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


@settings(max_examples=examples(400), deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_every_number_of_a_config_is_finite_and_of_a_size_that_libraries_take(key, value):
    name, overrides = key
    try:
        config = load_config(None, ["dataset=d", *overrides, f"{name}={yaml_of(value)}"])
    except ValueError as error:
        problem = error
    else:
        values = numbers(config.model_dump(mode="json"))
        assert all(math.isfinite(number) and abs(number) < 2**63 for number in values), values
        return
    assert type(problem) is ValueError
    assert len(str(problem)) < 600


def yaml_of(value):
    return yaml.safe_dump(value, default_flow_style=True)


def schema(rows):
    return Schema.model_validate(
        {
            "name": "x",
            "description": "x",
            "scenarios": [{"name": "a", "description": "a"}, {"name": "b", "description": "b"}],
            "tables": {"t": rows},
            "sparse": [{"name": "f", "table": "t"}],
            "labels": ["label"],
            "split": {"method": "given"},
            "num_users": 2**30,
            "num_items": 2**31,
        }
    )


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(-5, 2**33) | st.integers(2**40 - 5, 2**41), st.integers(-5, 5000))
def test_schema_config_and_planner_take_the_same_tables(rows, dim):
    """But for longer tables, which the planner takes for models of others."""
    fits = {
        "schema": accepts(lambda: schema(rows)),
        "config": accepts(lambda: load_config(None, ["dataset=d", f"embeddings.dim={dim}"])),
        "plan": accepts(lambda: TableLoad(name="t", rows=rows, dim=dim)),
    }
    assert fits["plan"] == (1 <= rows < 2**40 and fits["config"])
    assert fits["schema"] == (1 <= rows < 2**31)
    assert fits["config"] == (4 <= dim <= 2048 and dim % 4 == 0)


def accepts(make):
    try:
        make()
    except ValueError:
        return False
    return True


def test_tables_that_a_run_adds_have_the_same_limit():
    with pytest.raises(ValueError, match="2147483648 items with 2 levels have more"):
        table_configs(schema(10), 8, ["user"])
    with pytest.raises(ValueError, match="t has 2147483648 with one copy for each of 2 scenarios"):
        schema(2**30).per_scenario()
