"""Text files: odd lines are read or refused in one sentence, and never change other lines."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources import json_lines
from msrec.data.convert.sources.json_lines import parse_json
from msrec.data.convert.sources.text_reader import TextReader

COLUMNS = {"n": int | None, "text": str | None, "tags": list[str] | None}


def json_frame(path, content, policy="fail", columns=COLUMNS):
    path.write_bytes(content)
    row_filter = RowFilter(policy)
    return pl.concat(TextReader(row_filter).json_lines(path, columns)), row_filter


def csv_frame(path, content, policy="fail", columns=None):
    path.write_bytes(content)
    row_filter = RowFilter(policy)
    columns = columns or {"n": int, "text": str | None}
    return pl.concat(TextReader(row_filter).csv(path, columns)), row_filter


@pytest.mark.parametrize("policy", ["fail", "skip"])
@pytest.mark.parametrize(
    "other",
    ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, '"\\ud800"', '"\\udc00"', '"\xff"'],
)
def test_odd_values_under_keys_that_nobody_reads_are_no_fault(tmp_path, policy, other):
    line = f'{{"n": 1, "text": "a", "tags": ["b"], "z": {other}}}'.encode("latin-1")
    frame, row_filter = json_frame(tmp_path / "a.json", line + b'\n{"n": 2}\n', policy)
    assert frame.rows() == [(0, 1, "a", ["b"]), (1, 2, None, None)]
    assert row_filter.excluded == row_filter.replaced == {}


def test_nan_is_no_number_and_its_row_is_named(tmp_path):
    content = b'{"n": 1}\n\n{"n": NaN}\n{"n": 3}'
    with pytest.raises(ValueError, match=r"a.json: column 'n' must be a whole .* 'NaN' in row 1 "):
        json_frame(tmp_path / "a.json", content)
    frame, row_filter = json_frame(tmp_path / "a.json", content, "skip")
    assert frame["row"].to_list() == [0, 2]
    assert sum(row_filter.excluded.values()) == 1


REPEATED = [
    '{"n": 1, "n": 2}',
    '{"n": 2, "text": "a", "n": 2}',
    '{"n": null, "n": 2}',
    '{"n":1,"tags":["a"],"tags" :null}',
    '{"n": 1, "\\u006e": 2}',
    '{"text": "a", "n": 1, "z": {"n": 1}, "text": "b"}',
    '{"text": "a", "n": NaN, "text": "b"}',
]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("line", REPEATED)
def test_a_key_that_is_there_twice_makes_the_line_bad(tmp_path, line, pack):
    content = pack(f'{{"n": 7}}\n{{"tags": []}}\n{line}\n{{"n": 8, "text": "n"}}\n'.encode())
    with pytest.raises(ValueError, match=r"a.json: each line .* row 2 has '\w+' twice"):
        json_frame(tmp_path / "a.json", content)
    frame, row_filter = json_frame(tmp_path / "a.json", content, "skip")
    assert frame["row"].to_list() == [0, 1, 3]
    assert list(row_filter.excluded.values()) == [1]


@pytest.mark.parametrize(
    "line",
    [
        '{"n": 1, "z": {"n": 2, "text": {"n": 3}}}',
        '{"z": 1, "n": 1, "z": 2}',
        '{"n": 1, "text": "\\"n\\": 2"}',
        '{"z": [{"n": 1}, {"n": 2}], "\\u006e": 1}',
    ],
)
def test_a_key_that_is_there_once_may_be_elsewhere_too(tmp_path, line):
    frame, row_filter = json_frame(tmp_path / "a.json", f"{line}\n{{}}\n".encode())
    assert frame["n"].to_list() == [1, None]
    assert row_filter.excluded == {}


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["n", "z", "text"]), st.sampled_from(["1", "null"]))),
        min_size=1,
        max_size=5,
    ).filter(lambda rows: all(rows))
)
@settings(max_examples=examples(60), deadline=None)
def test_repeated_keys_are_found_as_python_finds_them(rows):
    lines = ["{" + ", ".join(f'"{key}": {value}' for key, value in row) + "}" for row in rows]
    frame, problems = parse_json("\n".join(lines).encode(), ["n", "text"], [], 0)
    good = []
    for number, row in enumerate(rows):
        names = [key for key, _ in row if key != "z"]
        if len({*names}) == len(names):
            values = {key: None if value == "null" else value for key, value in row}
            good.append((values.get("n"), values.get("text"), number))
    assert frame.select("n", "text", "row").rows() == good
    assert len(problems) == len(rows) - len(good)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b'"a\\ud83dz"', "a\ufffdz"),
        (b'"\\udc00"', "\ufffd"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud83d"', "\\ud83d"),
        (b'"a\xffz"', "a\ufffdz"),
    ],
)
def test_what_is_no_character_becomes_the_replacement_character_and_is_counted(
    tmp_path, written, read
):
    frame, row_filter = json_frame(tmp_path / "a.json", b'{"text": ' + written + b"}\n")
    assert frame["text"].to_list() == [read]
    assert list(row_filter.replaced.values()) == [1] * ("\ufffd" in read)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, pack):
    frame, _ = json_frame(tmp_path / "a.json", pack(b'\xef\xbb\xbf{"n": 1}\n{"n": 2}'))
    assert frame["n"].to_list() == [1, 2]
    frame, _ = csv_frame(tmp_path / "a.csv", pack(b"\xef\xbb\xbfn,text\n1,a\n"))
    assert frame.rows() == [(0, 1, "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n,text\n1,a\n".encode("utf-16"), "must be UTF-8 text; it begins like UTF-16"),
        ("n,text\n1,a\n".encode("utf-16-le"), "must be UTF-8 text; it has a zero byte"),
        (b'PAR1\x15\x00"\x15\n', "must be UTF-8 text; it has a zero byte in the beginning, as bin"),
        (b"n,text\r1,a\r", "must end its lines with a line feed"),
        (b"n,text,n\n1,a,2\n", "must have the column 'n' once; found n, text, n"),
        (b'"' + b"n" * 200_000 + b'",text\n1,a\n', "must be CSV; field larger than field limit"),
    ],
)
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_file_that_is_no_csv_is_refused_in_a_sentence(tmp_path, content, message, policy):
    with pytest.raises(ValueError, match=f"a.csv {message}") as caught:
        csv_frame(tmp_path / "a.csv", content, policy)
    assert "\n" not in str(caught.value)


def test_columns_that_nobody_reads_may_have_one_name(tmp_path):
    frame, _ = csv_frame(tmp_path / "a.csv", b"date,n,date,text,\n1,2,3,a,\n")
    assert frame.rows() == [(0, 2, "a")]


texts = st.text(st.characters(codec="utf-8"))
plain = (
    st.integers(-(2**53), 2**53) | st.integers(-999, 999).map(lambda n: n / 8) | st.none() | texts
)
anything = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.none() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {},
    optional={"n": plain, "text": plain, "tags": st.lists(plain) | plain, "other": anything},
)


@settings(max_examples=examples(200), deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=6))
def test_lines_are_read_alike_together_and_one_by_one(rows):
    """Polars reads a block at once; the slow path reads lines that polars refuses."""
    lines = [json.dumps(row).encode() for row in rows]
    keys, lists = list(COLUMNS), ["tags"]
    frame, problems = parse_json(b"\n".join(lines), keys, lists, 0)
    bad = {int(problem.split()[1]) for problem in problems}
    assert len(problems) == len(bad) == len(rows) - frame.height
    for number, row in enumerate(rows):
        is_list = isinstance(row.get("tags"), list | None)
        assert (number in bad) is not is_list
        alone, _ = parse_json(lines[number], keys, lists, number)
        assert alone.equals(frame.filter(pl.col("row") == number))
        slow = json_lines._parse_line(lines[number], keys, lists)
        assert isinstance(slow, str) or slow == list(alone.row(0)[:-1])
        if is_list and isinstance(row.get("text"), str | None):
            assert alone["text"].to_list() == [row.get("text")]


@settings(max_examples=examples(80), deadline=None)
@given(
    content=st.lists(
        st.sampled_from(
            [b"n,text\n", b'"', b",", b"\n", b"\r\n", b"\r", b"1", b"a", b"\0", b"\xff"]
        )
        | st.binary(max_size=4),
        max_size=30,
    ).map(b"".join),
    has_header=st.booleans(),
    policy=st.sampled_from(["fail", "skip"]),
)
def test_no_bytes_end_a_csv_file_in_a_stack(tmp_path_factory, content, has_header, policy):
    path = Path(tmp_path_factory.getbasetemp()) / "fuzzed.csv"
    error = ""
    try:
        frame, _ = csv_frame(path, b"n,text\n" * has_header + content, policy)
    except ValueError as caught:
        error = str(caught)
    assert error == "" or error.startswith(str(path))
    assert "\n" not in error
    assert error or frame["row"].is_sorted()
