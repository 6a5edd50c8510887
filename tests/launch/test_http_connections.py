"""Connections of the HTTP server: slow clients, contradictory lengths, limits, the end."""

import asyncio
import contextlib
import json
import socket
import time

import httpx
import pytest
from fastapi import FastAPI, Request

from msrec.launch.serving.http import connections
from msrec.launch.serving.http.request_body import BodyReader
from msrec.launch.serving.http.serve import ServerOptions, draining_server, listening_socket

SMUGGLED = b"GET /secret HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"POST /score HTTP/1.1\r\nHost: a\r\n"


class Service:
    is_ready = True


@pytest.fixture
def paths():
    """Paths that were served."""
    return []


@contextlib.asynccontextmanager
async def running(paths, **options):
    """Port and server of an app that answers with the number of bytes of the body."""
    app, bodies = FastAPI(openapi_url=None), BodyReader(1000)
    app.state.service = Service()

    @app.post("/score")
    @app.get("/{path}")
    async def answer(request: Request) -> dict[str, int]:
        paths.append(request.url.path)
        return {"bytes": len(await bodies.read(request))}

    @app.get("/large/{size}")
    async def large(size: int) -> str:
        return "x" * size

    listener = socket.create_server(("127.0.0.1", 0))
    options = {"read_s": 0.5, "drain_s": 0.0, "stop_s": 5} | options
    server = draining_server(app, ServerOptions(**options))
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        await task


async def answer_to(port, data):
    """Everything that the server sends until it closes the connection, and the seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.monotonic()
    writer.write(data)
    text = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := await reader.read(1 << 16):
            text += part
    writer.close()
    return bytes(text), time.monotonic() - started


@pytest.mark.parametrize(
    ("lengths", "status"),
    [
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", 411),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", 411),
        (b"Transfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding : chunked\r\n", 400),
        (b"transfer-encoding: xchunked\r\nContent-Length: 5\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 0\r\n", 400),
        (b"Content-Length: 5, 0\r\n", 400),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 5x\r\n", 400),
        (b"Content-Length: 5\r\n", 200),
    ],
)
def test_a_second_request_in_the_same_packet_is_not_served(paths, lengths, status):
    async def requests():
        async with running(paths) as (port, _):
            return await answer_to(port, HEAD + lengths + b"\r\n0\r\n\r\n" + SMUGGLED)

    text, _ = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 %d " % status)
    assert text.count(b"\r\n\r\n") == 1
    assert "/secret" not in paths


@pytest.mark.parametrize(
    "data",
    [b"", b"POST /sco", HEAD, HEAD + b"Content-Length: 10\r\n\r\n123"],
    ids=["nothing", "line", "headers", "body"],
)
def test_a_request_that_does_not_arrive_is_ended(paths, data):
    async def requests():
        async with running(paths) as (port, _):
            return await answer_to(port, data)

    text, seconds = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 408 Request Timeout")
    assert 0.4 < seconds < 3


@pytest.mark.parametrize("start", [HEAD, HEAD + b"Content-Length: 900\r\n\r\n"])
def test_a_client_that_sends_a_byte_now_and_then_is_disconnected(paths, start):
    async def requests():
        async with running(paths) as (port, _):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            started = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for byte in start + b"a" * 800:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.02)
            writer.close()
            return time.monotonic() - started

    assert 0.4 < asyncio.run(requests()) < 5


def test_a_used_connection_has_the_same_time_for_its_next_request(paths):
    async def requests():
        async with running(paths) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):  # longer than read_s in total
                writer.write(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.3)
            writer.write(b"G")
            started = time.monotonic()
            text = await reader.read()
            writer.close()
            return text, time.monotonic() - started

    text, seconds = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 408 ")
    assert 0.4 < seconds < 3


def test_a_client_that_does_not_read_is_disconnected(paths, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_S", 0.3)

    async def requests():
        async with running(paths) as (port, server):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /large/50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.sleep(0.2)
                assert len(server.server_state.connections) == 1
                await asyncio.sleep(1)
                return len(server.server_state.connections)

    assert asyncio.run(requests()) == 0


def test_a_large_body_is_refused_before_it_arrives(paths):
    async def requests():
        async with running(paths) as (port, _):
            head = HEAD + b"Content-Length: 1001\r\nConnection: close\r\n\r\n"
            return await answer_to(port, head)

    text, seconds = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 413 ")
    assert json.loads(text.split(b"\r\n\r\n")[1])["detail"].startswith("request must have at most")
    assert seconds < 0.4


def test_the_client_gets_413_although_it_still_sends(paths):
    async def requests():
        async with running(paths) as (port, _), httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/score"
            large = await client.post(url, content=b"x" * 3_000_000)
            return large, await client.post(url, content=b"x" * 1000)

    large, good = asyncio.run(requests())
    assert large.status_code == 413
    assert good.json() == {"bytes": 1000}


@pytest.mark.parametrize("data", [b"POST", HEAD + b"Content-Length: 10\r\n\r\n123"])
def test_an_unfinished_request_does_not_keep_a_server_from_stopping(paths, data):
    async def requests():
        async with running(paths, read_s=60) as (port, server):
            waiting = asyncio.create_task(answer_to(port, data))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            server.should_exit = True
            text, _ = await waiting
        return text, time.monotonic() - started

    text, seconds = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in text
    assert seconds < 2


def test_the_slowest_connections_make_room(paths, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)

    async def requests():
        async with (
            running(paths, read_s=60) as (port, server),
            contextlib.AsyncExitStack() as stack,
        ):
            for _ in range(30):
                client = socket.create_connection(("127.0.0.1", port))
                stack.callback(client.close)
                await asyncio.sleep(0.01)
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{port}/a")
            return answer, len(server.server_state.connections)

    answer, number = asyncio.run(requests())
    assert answer.status_code == 200
    assert number <= 11


def test_headers_have_a_limit(paths):
    async def requests():
        async with running(paths) as (port, _):
            return await answer_to(port, HEAD + b"a: b\r\n" * 40_000 + b"\r\n")

    text, _ = asyncio.run(requests())
    assert text.startswith(b"HTTP/1.1 400 ") or not text  # reset while it still sends
    assert paths == []


def test_an_answer_does_not_wait_for_acknowledgements():
    with listening_socket(ServerOptions(port=0)) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
