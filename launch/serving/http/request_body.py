"""Body of POST /score: read up to a limit, parsed row by row."""

import json
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, NamedTuple

from fastapi import HTTPException, Request

from msrec.data.io.json_files import unique_keys

RETRY_AFTER_S = 1
WHERE = "request"
"""Name of a request in errors about its rows."""
MAX_READ_BODIES, MAX_WAITING_BODIES = 64, 4
"""Largest bodies that are read at once, and that wait to be parsed at once."""
WINDOW = 1 << 17
"""Characters of the longest row or event.

The parser keeps the interpreter lock during a row, at most about 10 ms for one of this length.
"""
_SPACES = (" ", "\t", "\n", "\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class RequestContent(NamedTuple):
    """Raw rows of a request, and the events of the history that it carries, if it does."""

    rows: list[dict[str, Any]]
    events: list[Any] | None


def unavailable(reason: str) -> HTTPException:
    """Returns the error 503, which asks the client to try again."""
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    return HTTPException(503, f"{reason}; try again later.", retry)


class BodyReader:
    """Reads bodies of requests, of which only so many bytes are in memory at the same time.

    Args:
        max_bytes: bytes of the largest body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = self._waiting_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Returns a body.

        Raises:
            HTTPException: 413 if it is too large, 503 if too many other bodies are in memory.
            ClientDisconnect: the client has closed the connection.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        parts, num_bytes = list[bytes](), 0
        try:
            async for part in request.stream():
                parts.append(part)
                num_bytes += len(part)
                self._held_bytes += len(part)
                if num_bytes > self._max_bytes:
                    raise self._too_large()
                if self._held_bytes > MAX_READ_BODIES * self._max_bytes:
                    raise unavailable("too many requests arrive at the same time")
        finally:
            self._held_bytes -= num_bytes
        return b"".join(parts)

    @contextmanager
    def waiting(self, body: bytes) -> Iterator[None]:
        """Counts a body that waits to be parsed.

        Raises:
            HTTPException: 503 if too many bodies wait.
        """
        if self._waiting_bytes + len(body) > MAX_WAITING_BODIES * self._max_bytes:
            raise unavailable("too many requests wait")
        self._waiting_bytes += len(body)
        try:
            yield
        finally:
            self._waiting_bytes -= len(body)

    def _too_large(self) -> HTTPException:
        mib = self._max_bytes / 2**20
        return HTTPException(413, f"{WHERE} must have at most {mib:g} MiB; it has more.")


def parse_body(body: bytes, max_rows: int) -> RequestContent:
    """Parses {"rows": [ROW, ...], "history": [EVENT, ...]}, where history may be left out.

    Stops at the first row or event too many, so that a large body costs no more than a good one.

    Raises:
        HTTPException: 400 if the body is not JSON, 413 if it has more than `max_rows` rows or
            events, 422 if it is not such an object.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"{WHERE} must be JSON in UTF-8; {error}.") from None
    parser = _Parser(text)
    if not parser.skip("{"):
        parser.value()
        raise _not_a_request()
    lists: dict[str, list[Any]] = {}
    is_first = True
    while not parser.skip("}"):
        if not is_first:
            parser.require(",")
        is_first = False
        name = parser.value()
        if name not in ("rows", "history"):
            raise HTTPException(
                422, f"{WHERE} must have rows and may have history; found {reprlib.repr(name)}."
            )
        if name in lists:
            raise HTTPException(422, f"{WHERE} must have {name} once; found them twice.")
        parser.require(":")
        if name == "rows":
            lists[name] = _rows(parser, max_rows)
        elif (events := _events(parser, max_rows)) is not None:
            lists[name] = events
    parser.require_end()
    if "rows" not in lists:
        raise _not_a_request()
    return RequestContent(lists["rows"], lists.get("history"))


def _rows(parser: "_Parser", max_rows: int) -> list[dict[str, Any]]:
    if not parser.skip("["):
        parser.value()
        raise _not_a_request()
    rows = []
    for number, row in enumerate(parser.rest_of_list()):
        if number == max_rows:
            found = f"it has {number + 1} or more"
            raise HTTPException(413, f"{WHERE} must have at most {max_rows} rows; {found}.")
        if not isinstance(row, dict):
            found = reprlib.repr(row)
            raise HTTPException(422, f"{WHERE}: row {number} must be an object; found {found}.")
        rows.append(row)
    return rows


def _events(parser: "_Parser", max_events: int) -> list[Any] | None:
    if not parser.skip("["):
        if parser.value() is None:
            return None
        raise HTTPException(422, f"{WHERE}: history must be a list of events, newest last.")
    events = []
    for number, event in enumerate(parser.rest_of_list()):
        if number == max_events:
            found = f"it has {number + 1} or more"
            raise HTTPException(413, f"{WHERE} must have at most {max_events} events; {found}.")
        events.append(event)
    return events


def _not_a_request() -> HTTPException:
    return HTTPException(422, f'{WHERE} must be {{"rows": [...]}}, a list of raw rows.')


class _Parser:
    """Reads one JSON value after the other from a text.

    Looks only at a window of the text, so that each value takes little time.
    """

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._move_window()
        self._decode = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode

    def skip(self, character: str) -> bool:
        """Skips white space and then the character, if it is there."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        is_there = self._text.startswith(character, self._at)
        self._at += len(character) if is_there else 0
        return is_there

    def require(self, character: str) -> None:
        """Skips white space and the character, which must be there."""
        if not self.skip(character):
            raise self._error(f"expected {character!r}", self._at)

    def require_end(self) -> None:
        """Requires that only white space follows."""
        self.skip("")
        if self._at < len(self._text):
            raise self._error("expected the end", self._at)

    def rest_of_list(self) -> Iterator[Any]:
        """Yields the values of a list after its bracket."""
        if self.skip("]"):
            return
        yield self.value()
        while comma := _COMMA.match(self._text, self._at):
            self._at = comma.end()
            yield self.value()
        self.require("]")

    def value(self) -> Any:
        """Returns the next value."""
        if self._text.startswith(_SPACES, self._at):
            self.skip("")
        if self._at - self._start >= len(self._window):
            self._move_window()
        try:
            value, end = self._decode(self._window, self._at - self._start)
            is_cut = end == len(self._window) and self._start + end < len(self._text)
        except (ValueError, RecursionError):
            is_cut = True
        if is_cut:
            self._move_window()
            value, end = self._decode_first()
        self._at = self._start + end
        if self._may_have_surrogates:
            self._refuse_surrogates(value)
        return value

    def _move_window(self) -> None:
        self._start = self._at
        self._window = self._text[self._at : self._at + WINDOW]
        self._may_have_surrogates = _SURROGATE.search(self._window) is not None

    def _decode_first(self) -> tuple[Any, int]:
        """Returns the value at the start of the window, and its end."""
        is_last = self._start + len(self._window) == len(self._text)
        try:
            value, end = self._decode(self._window, 0)
            if end < len(self._window) or is_last:
                return value, end
        except JSONDecodeError as error:
            if is_last:
                raise self._error(error.msg, self._start + error.pos) from None
        except (ValueError, RecursionError) as error:
            reason = "values are nested too deeply" if isinstance(error, RecursionError) else error
            raise self._error(str(reason), self._start) from None
        raise HTTPException(
            413,
            f"{WHERE}: each row and event must be valid JSON of at most {WINDOW:,} characters; "
            f"the one at character {self._start} is not.",
        )

    def _refuse_surrogates(self, value: Any) -> None:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise self._error(
                "a string has half a character (a lone surrogate)", self._at
            ) from None

    def _error(self, reason: str, at: int) -> HTTPException:
        return HTTPException(400, f"{WHERE} must be JSON; {reason} at character {at}.")
