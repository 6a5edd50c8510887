"""HTTP proxy that delays requests, refuses some, and counts them: a distant object store."""

import http.client
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

BLOCK = 1 << 20
REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BETWEEN_HOSTS = ("connection", "keep-alive", "transfer-encoding", "expect")
"""Headers that a proxy does not pass on."""


class Counts(NamedTuple):
    """Requests so far, and those of them that were answered with status 503."""

    requests: int
    refused: int


class Proxy(NamedTuple):
    """Running proxy: its address, and its two counters."""

    url: str
    counters: Any

    def counts(self) -> Counts:
        """Returns the counts so far."""
        return Counts(*self.counters[:])


@contextmanager
def proxy(upstream: str, latency_s: float, refused: float) -> Iterator[Proxy]:
    """Runs a proxy in a process of its own while the body runs.

    Args:
        upstream: URL of the server, http://HOST:PORT.
        latency_s: seconds that each request waits before it is passed on.
        refused: share of the requests that are answered with status 503, evenly spread.

    Raises:
        RuntimeError: it did not start.
    """
    context = multiprocessing.get_context("spawn")
    counters, ours_theirs = context.Array("l", 2), context.Pipe(duplex=False)
    ours, theirs = ours_theirs
    args = (upstream, latency_s, refused, counters, theirs)
    process = context.Process(target=_serve, args=args, daemon=True)
    process.start()
    try:
        if not ours.poll(30):
            raise RuntimeError("the proxy must start within 30 s; it did not.")
        yield Proxy(f"http://127.0.0.1:{ours.recv()}", counters)
    finally:
        process.terminate()
        process.join()


def _serve(upstream: str, latency_s: float, refused: float, counters: Any, port: Any) -> None:
    class Handler(_Handler):
        server_address = urlsplit(upstream).hostname or "", urlsplit(upstream).port or 80
        delay_s, share, counts = latency_s, refused, counters

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.send(server.server_port)
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """Connection of a client, with one to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_address: tuple[str, int]
    delay_s: float
    share: float
    counts: Any

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(*self.server_address, blocksize=BLOCK)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def answer(self) -> None:
        """Passes a request on and the answer back, or refuses it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.delay_s)
        with self.counts.get_lock():
            self.counts[0] += 1
            number = self.counts[0]
            is_refused = int(number * self.share) > int((number - 1) * self.share)
            self.counts[1] += is_refused
        if is_refused:
            self.send_response(503)
            self.send_header("Content-Length", str(len(REFUSAL)))
            self.end_headers()
            self.wfile.write(REFUSAL)
            return
        kept = [(k, v) for k, v in self.headers.items() if k.lower() not in BETWEEN_HOSTS]
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in kept:
            self.upstream.putheader(name, value)
        self.upstream.endheaders(body or None)
        self._pass_back(self.upstream.getresponse())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - names of http.server

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        whole = b"" if answer.chunked else None
        for name, value in answer.getheaders():
            if name.lower() not in BETWEEN_HOSTS:
                self.send_header(name, value)
        if whole is not None:  # its length is not known before its end
            whole = answer.read()
            self.send_header("Content-Length", str(len(whole)))
        elif answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if whole is not None:
            self.wfile.write(whole)
        while block := answer.read(BLOCK):
            self.wfile.write(block)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - name of http.server
        """Prints nothing."""
