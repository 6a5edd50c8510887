"""YAML from outside: bombs, depth, tags, repeated keys, cut files; the same for every file."""

import re
import time

import pytest
import yaml
from fuzz import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from msrec.data.io.paths import refuse_secrets
from msrec.data.io.yaml_files import MAX_DEPTH, parse_yaml, read_yaml, write_yaml
from msrec.data.llm.text.templates import load_template
from msrec.data.schema import load_schema
from msrec.launch.cluster.profiles import load_profile
from msrec.launch.config.run_config import RunConfig, load_config, save_config
from msrec.tools.experiment.sweep import load_sweep
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.tables import read_tables_file

LEVELS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
MERGED = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
ATTACKS = {
    "bomb of lists": ("\n".join(["a0: &a0 [x]", *LEVELS]), "have aliases of at most 262,144"),
    "bomb of merges": ("\n".join(["a0: &a0 {x: 1}", *MERGED]), "have aliases of at most 262,144"),
    "bomb of one text": (f"a: &a {'x' * 9999}\nb: [{', '.join(['*a'] * 999)}]", "have aliases of"),
    "itself": ("a: &a [*a]", "be a tree; [*]a is in itself in line 1, column 8"),
    "deep lists": ("a: " + "[" * 100_000, "have at most 32 levels of lists and mappings"),
    "deep mappings": ("{a: " * 100_000, "have at most 32 levels of lists and mappings"),
    "deep items": ("- " * 100_000, "have at most 32 levels of lists and mappings"),
    "python": ("a: !!python/object/apply:os.getpid []", "have plain values without tags"),
    "directives": ("%TAG !a! !b\n" * 100_000 + "---\na: 1", "have no directives"),
    "twice": ("a: 1\nb: 2\na: 3", "have each key of a mapping once; found 'a' again in line 3"),
    "twice inside": ("a: [{b: 1, 'b': 2}]", "have each key of a mapping once; found 'b' again"),
    "twice, true and yes": ("true: 1\nyes: 2", "have each key of a mapping once; found 'yes'"),
    "long number": ("a: " + "9" * 5000, "have numbers of at most 64 characters; it has 5,000"),
    "no date": ("a: 2020-13-01", "be YAML; month must be in 1..12"),
    "two documents": ("a: 1\n---\na: 1", "be YAML; but found another document in line 2"),
    "a cut list": ("a: [1, 2", "be YAML; "),
    "NUL": ("a: \0", "be YAML; unacceptable character #x0000"),
}


@pytest.mark.parametrize(("text", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_one_sentence_in_under_a_second(text, reason):
    began = time.process_time()
    with pytest.raises(ValueError, match=f"^the text must {reason}") as caught:
        parse_yaml(text, "the text")
    assert time.process_time() - began < 1
    assert len(str(caught.value)) < 300


READERS = {
    "config": load_config,
    "sweep": load_sweep,
    "schema": lambda path: load_schema(path.parent),
    "profiles": lambda path: load_profile("mine", path),
    "hardware": lambda path: load_hardware("mine", path),
    "tables": read_tables_file,
    "templates": lambda path: load_template("mine", path),
    "override": lambda path: load_config(None, [f"dataset={path.read_text()}"]),
}


@pytest.mark.parametrize("attack", ["bomb of lists", "deep lists", "twice", "NUL"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_yaml_file_is_read_by_the_one_reader(tmp_path, read, attack):
    text, reason = ATTACKS[attack]
    path = tmp_path / "dataset.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=reason):
        read(path)
    assert time.process_time() - began < 1


def test_aliases_and_merges_of_a_plain_file_are_kept():
    text = "base: &base {lr: 1, dim: 8}\nrun: {<<: *base, lr: 2}\nagain: *base"
    base = {"lr": 1, "dim": 8}
    assert parse_yaml(text, "x") == {"base": base, "run": {"lr": 2, "dim": 8}, "again": base}


def test_times_and_leading_zeros_are_texts_and_other_numbers_are_numbers():
    """YAML 1.1 reads 1:30:00 as 5400, in base 60, and 0022 as 18, in base 8."""
    text = "[1:30:00, 30:00, -1:30, 1:30.5, 0022, 007, -01, 0, 0.5, 0x1F, 1_000, -3, 1e-3, 1.5e-3]"
    texts = ["1:30:00", "30:00", "-1:30", "1:30.5", "0022", "007", "-01"]
    assert parse_yaml(text, "x") == [*texts, 0, 0.5, 31, 1000, -3, "1e-3", 1.5e-3]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"a\.yaml must be text in UTF-8; byte 9 of it is not"):
        read_yaml(tmp_path / "a.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(tmp_path / "a.yaml") == {"name": "x"}


def test_a_saved_config_that_was_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    config = RunConfig(dataset="data", trainer={"prefetch": 16})
    save_config(config, path)
    whole = path.read_bytes()
    assert load_config(path) == config
    assert len(whole) > 700
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"config\.yaml must|config\.yaml: dataset"):
            load_config(path)


def test_a_config_is_whole_at_every_moment_of_its_writing(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    save_config(RunConfig(dataset="old"), path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_config(RunConfig(dataset="new"), path)
    assert str(load_config(path).dataset) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_secrets_are_searched_once_per_value_and_at_any_depth():
    bomb = ["x"]
    for _ in range(100):
        bomb = [bomb] * 10
    deep = "s3://KEY:SECRET@bucket/x"
    for _ in range(10_000):
        deep = {"a": deep}
    began = time.process_time()
    refuse_secrets("the config", bomb)
    for text in ("://a", "a", "aa://b/", "aa://a:1/"):
        refuse_secrets("the config", text * 50_000)
    with pytest.raises(ValueError, match=r"a must be a URL without credentials.*\*\*\*@bucket"):
        refuse_secrets("the config", deep)
    with pytest.raises(ValueError, match=r"a key must be a URL without.*\*\*\*@bucket"):
        refuse_secrets("the config", {"s3://KEY:SECRET@bucket/x": 1})
    assert time.process_time() - began < 1


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False)),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
TREES = st.recursive(
    SCALARS,
    lambda tree: st.lists(tree, max_size=4) | st.dictionaries(SCALARS, tree, max_size=4),
    max_leaves=20,
)


@settings(max_examples=examples(150), deadline=None)
@given(TREES)
def test_plain_values_are_read_as_they_were_written(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("yaml") / "tree.yaml"
    write_yaml(path, tree)
    assert read_yaml(path) == tree


@settings(max_examples=examples(300), deadline=None)
@given(st.text(alphabet="ab01:-[]{}?&*!%<>|#'\", \n\t\\.~=eE_+@`", max_size=60))
def test_any_text_is_a_value_of_the_yaml_library_or_one_sentence(text):
    assume(not re.search(r"\d:\d|0\d", text))  # times and leading zeros are texts here
    value, problem = _value_or_problem(text)
    if problem is None:
        same = yaml.load(text, yaml.CSafeLoader)
        assert repr(value) == repr(same)  # repr, because NaN != NaN
    else:
        assert problem.startswith("the text must ")


def _value_or_problem(text):
    try:
        return parse_yaml(text, "the text"), None
    except ValueError as error:
        return None, str(error)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(1, 3 * MAX_DEPTH), st.sampled_from(["[", "{a: "]))
def test_depth_is_limited_exactly(depth, opening):
    text = opening * depth + "1" + {"[": "]", "{a: ": "}"}[opening] * depth
    if depth <= MAX_DEPTH:
        assert parse_yaml(text, "x") == yaml.safe_load(text)
    else:
        with pytest.raises(ValueError, match="x must have at most 32 levels"):
            parse_yaml(text, "x")
