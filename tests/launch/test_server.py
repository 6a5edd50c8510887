"""HTTP server: batching, bounded queue, messages for bad rows, metrics, graceful stop."""

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
from msrec.launch.serving.http.batcher import Limits
from msrec.launch.serving.http.serve import DrainingServer
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.request_rows import RequestEncoder

pytestmark = pytest.mark.slow


class GatedScorer:
    """Scores rows by their price, item and genres; each call waits until the gate is open."""

    def __init__(self, row_encoder):
        self.encoder = RequestEncoder(row_encoder, 1.0, False, {}, [])
        self.version = "00000000"
        self.manifest = SimpleNamespace(
            run="runs/tiny", checkpoint="step-00000001", labels=["label"], combined=None
        )
        self.gate, self.began, self.sizes = threading.Event(), threading.Event(), []
        self.fails = False

    def score(self, rows):
        self.sizes.append(len(rows))
        self.began.set()
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("no memory")
        items, genres = rows.ids[1], np.cumsum(rows.lengths[2])
        scores = rows.dense[:, 0] + items + 100 * np.diff(genres, prepend=0)
        return scores.astype(np.float32)[:, np.newaxis]


@pytest.fixture(scope="module")
def row_encoder(tmp_path_factory):
    return RowEncoder(tiny_dataset(tmp_path_factory.mktemp("server") / "tiny"))


@pytest.fixture
def gated(row_encoder):
    return GatedScorer(row_encoder)


@pytest.fixture
def ungated(gated):
    """Scorer whose gate is open."""
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
async def client_of(app, **options):
    """HTTP client of an app that runs as long as the client is open."""
    transport = httpx.ASGITransport(app, **options)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client,
    ):
        yield client


def score(client, rows):
    return client.post("/score", json={"rows": rows})


def waiting_rows(app):
    return app.state.service.batcher.waiting_rows


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_waiting_requests_are_one_batch_and_get_their_own_scores(gated):
    parts = [ROWS[start : start + 1 + start % 3] for start in range(1, 13)]

    async def requests():
        app = create_app(gated, Limits(max_batch=64, max_wait_ms=0))
        async with client_of(app) as client:
            first = asyncio.create_task(score(client, ROWS[:1]))
            await until(gated.began.is_set)  # requests that arrive now must wait
            others = [asyncio.create_task(score(client, part)) for part in parts]
            await until(lambda: waiting_rows(app) == sum(map(len, parts)))
            gated.gate.set()
            answers = await asyncio.gather(first, *others)
            alone = [(await score(client, part)).json()["scores"] for part in [ROWS[:1], *parts]]
            return [answer.json()["scores"] for answer in answers], alone

    together, alone = asyncio.run(requests())
    assert gated.sizes[:2] == [1, sum(map(len, parts))]
    for scores, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_waiting_requests_are_scored_by_the_export_that_encoded_them(row_encoder, gated):
    other = GatedScorer(row_encoder)
    other.gate.set()

    async def requests():
        app = create_app(gated, Limits(max_batch=64, max_wait_ms=0))
        async with client_of(app) as client:
            tasks = [asyncio.create_task(score(client, ROWS[:1]))]
            await until(gated.began.is_set)
            tasks.append(asyncio.create_task(score(client, ROWS[:2])))
            await until(lambda: waiting_rows(app) == 2)
            app.state.service._swap(other)
            tasks.append(asyncio.create_task(score(client, ROWS[:3])))
            await until(lambda: waiting_rows(app) == 5)
            gated.gate.set()
            return [answer.status_code for answer in await asyncio.gather(*tasks)]

    assert asyncio.run(requests()) == [200, 200, 200]
    assert (gated.sizes, other.sizes) == ([1, 2], [3])


def test_batch_has_a_limit_of_rows_and_of_waiting(ungated):
    async def requests():
        async with client_of(create_app(ungated, Limits(max_batch=4, max_wait_ms=300))) as client:
            started = asyncio.get_running_loop().time()
            full = await asyncio.gather(*(score(client, ROWS[n : n + 2]) for n in range(4)))
            at_once = asyncio.get_running_loop().time() - started
            alone = await score(client, ROWS[:1])
            return at_once, asyncio.get_running_loop().time() - started - at_once, [*full, alone]

    at_once, waited, answers = asyncio.run(requests())
    assert ungated.sizes == [4, 4, 1]
    assert all(answer.status_code == 200 for answer in answers)
    assert at_once < 0.25 < waited


def test_full_queue_is_503_with_retry_after_until_there_is_room(gated):
    async def requests():
        app = create_app(gated, Limits(max_batch=4, max_wait_ms=0, max_queue=5))
        async with client_of(app) as client:
            scoring = asyncio.create_task(score(client, ROWS[:5]))
            await until(gated.began.is_set)
            waiting = asyncio.create_task(score(client, ROWS[:4]))
            await until(lambda: waiting_rows(app) == 4)
            refused = await score(client, ROWS[:2])
            gated.gate.set()
            good = await asyncio.gather(scoring, waiting)
            return refused, [*good, await score(client, ROWS[:5])], await score(client, ROWS[:6])

    refused, good, too_many = asyncio.run(requests())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "at most 5 rows may wait; 4 do, and the request has 2" in refused.json()["detail"]
    assert [answer.status_code for answer in good] == [200, 200, 200]
    assert too_many.status_code == 413
    assert "at most 5 rows; it has 6" in too_many.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "request must be JSON; "),
        (b"[]", 422, 'request must be {"rows": [...]}'),
        (b'{"rows": [1]}', 422, "row 0 must be an object; found 1"),
        ({"price": None}, 422, "column 'price', row 1: a dense value must be finite; found None"),
        ({"scenario": 9}, 422, "column 'scenario', row 1: the scenario must be one of "),
        ({"item_key": 1.5}, 422, "column 'item_key', row 1: must be a string; found 1.5"),
        ({"item_id": []}, 422, "column 'item_id', row 1: must be an integer; found []"),
        ({"item_id": 61}, 422, "column 'item_id', row 1: a table row must be in [0, 61); found 61"),
        ("price", 422, "row 1 must have the column 'price'; it has user_key"),
    ],
)
def test_answer_to_a_bad_request_names_row_and_column(ungated, body, status, message):
    async def requests():
        async with client_of(create_app(ungated)) as client:
            if isinstance(body, bytes):
                return await client.post("/score", content=body)
            bad = ROWS[0] | body if isinstance(body, dict) else dict(ROWS[0])
            if isinstance(body, str):
                del bad[body]
            return await score(client, [ROWS[0], bad])

    answer = asyncio.run(requests())
    assert answer.status_code == status
    assert message in answer.json()["detail"]


LISTS = b'{"a": [' + b"[]," * 40_000 + b"1]}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"rows": [' + b"{}," * 1_000_000 + b"{}]}", 413),
        (b'{"rows": [], "history": [' + b"{}," * 1_000_000 + b"{}]}", 413),
        (b'{"rows": [' + b",".join([LISTS] * 30) + b"]}", 422),
        (b"{}" * 50_000_000, 413),
    ],
    ids=["rows", "events", "lists", "100 MB"],
)
def test_a_large_request_does_not_block_the_event_loop(ungated, body, status):
    gaps = []

    async def beat():
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - started)

    async def requests():
        async with client_of(create_app(ungated)) as client:
            beating = asyncio.create_task(beat())
            answers = [await client.post("/score", content=body) for _ in range(3)]
            await asyncio.sleep(0.01)
            beating.cancel()
            return answers

    assert [answer.status_code for answer in asyncio.run(requests())] == [status] * 3
    assert np.quantile(gaps, 0.99) < 0.1


def test_metrics_count_requests_rows_and_batches(ungated):
    async def requests():
        async with client_of(create_app(ungated, Limits(max_wait_ms=0))) as client:
            assert (await client.get("/health")).json() == {
                "status": "alive",
                "version": "00000000",
                "run": "runs/tiny",
                "checkpoint": "step-00000001",
            }
            assert (await client.get("/ready")).status_code == 200
            for size in (1, 3):
                await score(client, ROWS[:size])
            await client.post("/score", content=b"{")
            return (await client.get("/metrics")).text

    lines = asyncio.run(requests()).splitlines()
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


def test_waiting_requests_are_answered_when_the_server_stops(gated):
    async def requests():
        app = create_app(gated, Limits(max_batch=1, max_wait_ms=0))
        async with client_of(app) as client:
            tasks = [asyncio.create_task(score(client, ROWS[n : n + 1])) for n in range(3)]
            await until(lambda: gated.began.is_set() and waiting_rows(app) == 2)
            ending = asyncio.create_task(app.state.service.batcher.stop())
            await asyncio.sleep(0)
            late = await score(client, ROWS[:1])
            gated.gate.set()
            answers = await asyncio.gather(*tasks)
            await ending
            return late, answers

    late, answers = asyncio.run(requests())
    assert late.status_code == 503
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_failed_batch_is_500_for_its_requests_and_the_next_one_is_served(ungated):
    ungated.fails = True

    async def requests():
        app = create_app(ungated, Limits(max_wait_ms=0))
        async with client_of(app, raise_app_exceptions=False) as client:
            failed = await score(client, ROWS[:1])
            ungated.fails = False
            return failed, await score(client, ROWS[:1])

    failed, served = asyncio.run(requests())
    assert (failed.status_code, served.status_code) == (500, 200)


def test_server_is_not_ready_for_some_time_before_it_stops(ungated):
    app = create_app(ungated)
    app.state.service.is_ready = True
    server = DrainingServer(app, drain_s=0.3)
    server.handle_exit(signal.SIGTERM, None)
    assert not app.state.service.is_ready
    time.sleep(0.05)
    assert not server.should_exit
    server.handle_exit(signal.SIGTERM, None)  # a second signal does not wait
    time.sleep(0.1)
    assert server.should_exit
