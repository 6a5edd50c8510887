"""Bodies of requests: any JSON is parsed as the standard library does, or refused with a reason."""

import json
import math

import pytest
from fastapi import HTTPException
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from msrec.launch.serving.http import request_body
from msrec.launch.serving.http.request_body import parse_body

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
NAMES = st.text(max_size=4)
JSON = st.recursive(
    SCALARS, lambda s: st.lists(s, max_size=3) | st.dictionaries(NAMES, s, max_size=3), max_leaves=5
)
ROWS = st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=4)
MANY = settings(max_examples=examples(50), deadline=None)


def parsed(body, max_rows):
    """Content of a body, or the status and the reason of its refusal."""
    try:
        return parse_body(body, max_rows), 200, "request"
    except HTTPException as error:
        return None, error.status_code, error.detail


def equal(first, second):
    return json.dumps(first) == json.dumps(second)


@MANY
@given(ROWS, st.none() | st.lists(JSON, max_size=5), st.sampled_from([None, 0, 1]), st.booleans())
def test_rows_and_events_are_those_of_the_standard_library(rows, events, indent, is_ascii):
    text = json.dumps({"rows": rows, "history": events}, indent=indent, ensure_ascii=is_ascii)
    content = parse_body(text.encode(), 8)
    assert equal(content.rows, rows)
    assert equal(content.events, events)


@MANY
@given(ROWS, st.integers(min_value=1, max_value=40))
def test_a_window_that_is_smaller_than_the_body_changes_nothing(rows, spare):
    longest = max((len(json.dumps(row)) for row in rows), default=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_body, "WINDOW", max(longest, 6) + spare)
        assert equal(parse_body(json.dumps({"rows": rows}).encode(), 8).rows, rows)


@MANY
@given(JSON | st.fixed_dictionaries({"rows": JSON}, optional={"history": JSON, "x": JSON}))
def test_any_json_is_a_request_or_refused(content):
    body = json.dumps(content).encode()
    is_good = (
        isinstance(content, dict)
        and {"rows"} <= set(content) <= {"rows", "history"}
        and isinstance(content["rows"], list)
        and all(isinstance(row, dict) for row in content["rows"])
        and isinstance(content.get("history"), list | None)
    )
    assert parsed(body, 100)[1] == (200 if is_good else 422)


@MANY
@given(ROWS, st.data())
def test_damaged_json_is_refused_with_a_sentence(rows, data):
    text = json.dumps({"rows": rows})
    place = data.draw(st.integers(min_value=0, max_value=len(text) - 1))
    kind = data.draw(st.sampled_from(["cut", "drop", "insert"]))
    rest = {"cut": "", "drop": text[place + 1 :], "insert": data.draw(st.text()) + text[place:]}
    body = (text[:place] + rest[kind]).encode(errors="surrogatepass")
    content, status, reason = parsed(body, 8)
    assert status in (200, 400, 413, 422)
    assert reason.startswith("request")
    if content is not None:
        assert equal(content.rows, json.loads(body)["rows"])


@MANY
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body):
    with pytest.raises(HTTPException, match="request must"):
        parse_body(body, 8)


def row_of(text):
    return b'{"rows": [{}, ' + text + b"]}"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"\xff", 400, "must be JSON in UTF-8"),
        (b"", 400, "must be JSON; Expecting value at character 0"),
        (b'{"rows": []} x', 400, "expected the end at character 13"),
        (b'{"rows": [{}] "history": []}', 400, "expected ',' at character 14"),
        (b'{"rows": [{},]}', 400, "Expecting value at character 13"),
        (b'{"rows": [], "rows": []}', 422, "must have rows once"),
        (b'{"rows": [], "histroy": []}', 422, "may have history; found 'histroy'"),
        (b'{"rows": [], "history": 1}', 422, "history must be a list of events"),
        (row_of(b'{"a": 1, "a": 2}'), 400, "an object has the key 'a' twice at character 14"),
        (row_of(b'{"a": "\\ud800"}'), 400, "a lone surrogate"),
        (row_of(b"[" * 5_000), 400, "values are nested too deeply at character 14"),
        (row_of(b'{"a": ' * 5_000), 400, "values are nested too deeply at character 14"),
        (row_of(b"1" * 5_000), 400, "Exceeds the limit"),
        (row_of(b'"' + b"a" * 200_000 + b'"'), 413, "at most 131,072 characters"),
        (row_of(b"[1]"), 422, "row 1 must be an object; found [1]"),
        (b'{"rows": [' + b"{}," * 10 + b"{}]}", 413, "at most 10 rows; it has 11 or more"),
        (b'{"history": [' + b"1," * 10 + b"1]}", 413, "at most 10 events; it has 11 or more"),
    ],
)
def test_reason_of_a_refusal(body, status, message):
    with pytest.raises(HTTPException) as raised:
        parse_body(body, 10)
    assert raised.value.status_code == status
    assert message in raised.value.detail


def test_pairs_of_surrogates_and_numbers_that_are_not_finite_are_values():
    (row,) = parse_body(b'{"rows": [{"a": "\\ud83d\\ude00", "b": NaN, "c": -Infinity}]}', 1).rows
    assert row["a"] == "\N{GRINNING FACE}"
    assert math.isnan(row["b"])
    assert row["c"] == -math.inf
