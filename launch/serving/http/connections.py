"""Connections of the HTTP server, with time limits for clients and no room for a second request."""

import asyncio
import heapq
import json
import resource
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

WRITE_S = 10.0
"""Seconds in which a client must read an answer."""
LINGER_S = 2.0
"""Seconds in which the rest of a body is read and dropped after the answer, such as 413."""
MAX_CONNECTIONS = 4000
"""Open connections; beyond them, those that wait longest for their client are closed."""
SPARE_FILES = 100
"""Open files that are not connections."""
PIECE_BYTES = 1 << 14
"""Bytes of headers that are parsed at once, so that they cannot be larger."""

_Wait = Literal["request", "rest of a body", "reading of an answer"]


class _StrictConnection(h11.Connection):
    """Refuses bodies without a Content-Length.

    With both headers, a proxy in front may see another end of the request than we do. Chunks may
    also have one byte each, which takes seconds to parse.
    """

    is_without_length = False

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.is_without_length = any(name == b"transfer-encoding" for name, _ in event.headers)
            if self.is_without_length:
                raise h11.RemoteProtocolError("a body must have a Content-Length")
        return event


class GuardedProtocol(H11Protocol):
    """Closes connections whose clients send or read too slowly, and refuses pipelined requests.

    A subclass sets `read_s`, the seconds in which a client must send a whole request.

    A request that arrives before the last one was answered is not served: after contradictory
    lengths it may be one that a proxy in front has not seen.
    """

    read_s: float

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = self._strict = _StrictConnection(h11.SERVER, PIECE_BYTES)
        self._wait: _Wait | None = None
        self._wait_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to wait for a request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > max_connections():
            self._close_slowest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parses what has arrived."""
        is_body = self.conn.their_state is h11.SEND_BODY and not self.cycle.response_complete
        size = len(data) if is_body else PIECE_BYTES
        for start in range(0, len(data), size):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + size])
        self._watch()

    def on_response_complete(self) -> None:
        """Waits for the next request, unless the client has sent more than one."""
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Starts to wait for the client to read."""
        super().pause_writing()
        self._watch()

    def shutdown(self) -> None:
        """Ends the connection after the request under way, if that has arrived as a whole."""
        has_begun = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if self._wait == "request" and has_begun:
            self._refuse(503, "the server is stopping; try again later.")
        else:
            super().shutdown()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is not valid HTTP, and closes the connection."""
        if self._strict.is_without_length:
            self._refuse(411, "a request must have a Content-Length and no Transfer-Encoding.")
        else:
            self._refuse(400, "a request must be valid HTTP/1.1.")

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection."""
        super().timeout_keep_alive_handler()
        self._watch()

    def _refuse(self, status: int, detail: str) -> None:
        """Answers with an error, unless an answer has begun, and closes the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"detail": detail}).encode()
            headers = {"content-type": "application/json", "connection": "close"}
            headers["content-length"] = str(len(body))
            if status == 503:
                headers["retry-after"] = "1"
            reason = HTTPStatus(status).phrase
            answer = h11.Response(status_code=status, headers=list(headers.items()), reason=reason)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Starts a timer when a wait for the client begins, and cancels it when the wait ends."""
        wait = self._waits_for()
        if wait == self._wait:
            return
        self._wait, self._wait_since = wait, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait is not None:
            seconds = {
                "request": self.read_s,
                "rest of a body": LINGER_S,
                "reading of an answer": WRITE_S,
            }
            self._timer = self.loop.call_later(seconds[wait], self._expire)

    def _waits_for(self) -> _Wait | None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            return "reading of an answer"
        if self.timeout_keep_alive_task is None and self.conn.their_state is h11.IDLE:
            return "request"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest of a body" if self.cycle.response_complete else "request"
        return None

    def _expire(self) -> None:
        """Closes the connection if it still waits for its client."""
        wait = self._waits_for()
        if wait == "request":
            self._refuse(408, f"a request must arrive within {self.read_s:g} s.")
            self._watch()  # the client may not read this answer either
        elif wait is not None:
            self.transport.abort()
        else:
            self._watch()

    def _close_slowest(self) -> None:
        """Closes a tenth of the connections: those that wait longest for a request."""
        waiting = [
            connection
            for connection in self.connections
            if isinstance(connection, GuardedProtocol)
            and connection is not self
            and (
                connection.cycle is None
                or connection.cycle.response_complete
                or connection._wait is not None
            )
        ]
        slowest = heapq.nsmallest(
            len(self.connections) // 10 + 1, waiting, key=lambda connection: connection._wait_since
        )
        for connection in slowest:
            connection.transport.abort()


def max_connections() -> int:
    """Returns how many connections may be open at once."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(min(MAX_CONNECTIONS, files - SPARE_FILES), 1)


def allow_open_files() -> None:
    """Raises the limit of open files of this process to what the connections need."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if files != resource.RLIM_INFINITY and files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
