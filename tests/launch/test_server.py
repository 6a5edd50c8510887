"""The HTTP server: batching, a bounded queue, messages for bad rows, counts, a graceful end."""

import asyncio
import signal
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from tiny import tiny_dataset

from msrec.data.features.row_encoder import RowEncoder
from msrec.launch.serving.request_rows import RequestEncoder
from msrec.launch.serving.server import Draining, Limits, create_app


class Gated:
    """Scores rows by their price and item; calls wait until they may go on."""

    def __init__(self, raw):
        self.raw, self.manifest = raw, SimpleNamespace(run="runs/tiny")
        self.maker = RequestEncoder(raw.schema, 1.0, False, {}, {})
        self.gate, self.began, self.sizes = threading.Event(), threading.Event(), []
        self.fails = False

    def score(self, rows):
        self.sizes.append(len(rows))
        self.began.set()
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("no memory")
        items, genres = rows.ids[1], np.cumsum(rows.lengths[2])
        return (rows.dense[:, 0] + items + 100 * np.diff(genres, prepend=0)).astype(np.float32)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return RowEncoder(tiny_dataset(tmp_path_factory.mktemp("server") / "tiny"))


@pytest.fixture
def gated(raw):
    return Gated(raw)


@pytest.fixture
def open_(gated):
    """The same with nothing in its way."""
    gated.gate.set()
    return gated


ROWS = [
    {
        **{"user_key": f"u{n}", "item_key": f"i{n}", "scenario": "feed", "user_id": n},
        **{"item_id": n, "genres": list(range(1, 1 + n % 4)), "price": n / 7},
    }
    for n in range(40)
]


@asynccontextmanager
async def client_of(server):
    """An HTTP client of an app that has started; the app ends with it."""
    transport = httpx.ASGITransport(server)
    async with (
        server.router.lifespan_context(server),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client,
    ):
        yield client


def score(client, some):
    return client.post("/score", json={"rows": some})


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_that_wait_together_are_one_call_and_get_their_own_scores(gated):
    parts = [ROWS[at : at + 1 + at % 3] for at in range(1, 13)]

    async def work():
        server = create_app(gated, Limits(max_batch=64, max_wait_ms=0))
        async with client_of(server) as client:
            first = asyncio.create_task(score(client, ROWS[:1]))
            await until(gated.began.is_set)  # a call is under way: what comes now must wait
            others = [asyncio.create_task(score(client, part)) for part in parts]
            await until(lambda: server.state.batcher.waiting_rows == sum(map(len, parts)))
            gated.gate.set()
            answers = await asyncio.gather(first, *others)
            alone = [(await score(client, part)).json()["scores"] for part in [ROWS[:1], *parts]]
            return [answer.json()["scores"] for answer in answers], alone

    together, alone = asyncio.run(work())
    assert gated.sizes[:2] == [1, sum(map(len, parts))]
    for mine, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(mine, single, atol=1e-6)


def test_a_batch_has_at_most_so_many_rows_and_waits_for_others_only_so_long(open_):
    async def work():
        async with client_of(create_app(open_, Limits(max_batch=4, max_wait_ms=300))) as client:
            started = asyncio.get_running_loop().time()
            full = await asyncio.gather(*(score(client, ROWS[at : at + 2]) for at in range(4)))
            at_once = asyncio.get_running_loop().time() - started
            alone = await score(client, ROWS[:1])
            return at_once, asyncio.get_running_loop().time() - started - at_once, [*full, alone]

    at_once, waited, answers = asyncio.run(work())
    assert open_.sizes == [4, 4, 1]
    assert all(answer.status_code == 200 for answer in answers)
    assert at_once < 0.25 < waited


def test_a_full_queue_is_503_with_retry_after_and_then_there_is_room_again(gated):

    async def work():
        server = create_app(gated, Limits(max_batch=4, max_wait_ms=0, max_queue=5))
        async with client_of(server) as client:
            under_way = asyncio.create_task(score(client, ROWS[:5]))
            await until(gated.began.is_set)
            waiting = asyncio.create_task(score(client, ROWS[:4]))
            await until(lambda: server.state.batcher.waiting_rows == 4)
            refused = await score(client, ROWS[:2])
            gated.gate.set()
            good = await asyncio.gather(under_way, waiting)
            return refused, [*good, await score(client, ROWS[:5])], await score(client, ROWS[:6])

    refused, good, too_many = asyncio.run(work())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "at most 5 rows may wait; 4 do, and the request has 2" in refused.json()["detail"]
    assert [answer.status_code for answer in good] == [200, 200, 200]
    assert too_many.status_code == 413
    assert "at most 5 rows; it has 6" in too_many.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "request must be JSON; "),
        (b"[]", 422, 'request must be {"rows": [...]}'),
        (b'{"rows": [1]}', 422, "row 0 must be an object; found 1"),
        ({"price": None}, 422, "column 'price', row 1: a dense value must be finite; found None"),
        ({"scenario": 2}, 422, "column 'scenario' must be a string or an integer, of one kind"),
        ({"item_key": 1.5}, 422, "column 'item_key', row 1: must be a string; found 1.5"),
        ({"item_id": []}, 422, "column 'item_id', row 1: must be an integer; found []"),
        ({"item_id": 61}, 422, "column 'item_id', row 1: a table row must be in [0, 61); found 61"),
        ("price", 422, "row 1 must have the column 'price'; it has user_key"),
    ],
)
def test_a_bad_request_is_told_by_row_and_column(open_, body, status, said):
    async def work():
        async with client_of(create_app(open_)) as client:
            if isinstance(body, bytes):
                return await client.post("/score", content=body)
            bad = ROWS[0] | body if isinstance(body, dict) else dict(ROWS[0])
            if isinstance(body, str):
                del bad[body]
            return await score(client, [ROWS[0], bad])

    answer = asyncio.run(work())
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_metrics_count_requests_rows_and_batches(open_):
    async def work():
        async with client_of(create_app(open_, Limits(max_wait_ms=0))) as client:
            assert (await client.get("/health")).json() == {"status": "alive"}
            assert (await client.get("/ready")).status_code == 200
            for size in (1, 3):
                await score(client, ROWS[:size])
            await client.post("/score", content=b"{")
            return (await client.get("/metrics")).text

    lines = asyncio.run(work()).splitlines()
    for line in (
        'msrec_requests_total{status="200"} 2.0',
        'msrec_requests_total{status="400"} 1.0',
        "msrec_rows_total 4.0",
        "msrec_batch_rows_count 2.0",
        "msrec_batch_rows_sum 4.0",
        "msrec_request_seconds_count 2.0",
        "msrec_waiting_rows 0.0",
    ):
        assert line in lines


def test_requests_under_way_are_answered_when_the_server_ends(gated):

    async def work():
        server = create_app(gated, Limits(max_batch=1, max_wait_ms=0))
        async with client_of(server) as client:
            tasks = [asyncio.create_task(score(client, ROWS[at : at + 1])) for at in range(3)]
            await until(lambda: gated.began.is_set() and server.state.batcher.waiting_rows == 2)
            ending = asyncio.create_task(server.state.batcher.stop())
            await asyncio.sleep(0)
            late = await score(client, ROWS[:1])
            gated.gate.set()
            answers = await asyncio.gather(*tasks)
            await ending
            return late, answers

    late, answers = asyncio.run(work())
    assert late.status_code == 503
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_a_call_that_fails_is_500_for_its_requests_and_the_next_one_is_served(open_):
    open_.fails = True

    async def work():
        server = create_app(open_, Limits(max_wait_ms=0))
        transport = httpx.ASGITransport(server, raise_app_exceptions=False)
        async with (
            server.router.lifespan_context(server),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            failed = await score(client, ROWS[:1])
            open_.fails = False
            return failed, await score(client, ROWS[:1])

    failed, served = asyncio.run(work())
    assert (failed.status_code, served.status_code) == (500, 200)


def test_a_server_that_is_told_to_end_first_says_that_it_is_not_ready(open_):
    app = create_app(open_)
    app.state.is_ready = True
    server = Draining(app, drain_s=0.3)
    server.handle_exit(signal.SIGTERM, None)
    assert not app.state.is_ready
    time.sleep(0.05)
    assert not server.should_exit
    server.handle_exit(signal.SIGTERM, None)  # whoever asks twice does not wait
    time.sleep(0.1)
    assert server.should_exit
