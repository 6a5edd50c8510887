"""A server that follows a link swaps exports under load; what it cannot load, it refuses."""

import contextlib
import json
import shutil
import socket
import threading
import time
import weakref
from http.client import HTTPConnection

import numpy as np
import pytest

from msrec.launch.serving.delta.apply import apply_delta, point_link, require_link
from msrec.launch.serving.export_folder import export_version
from msrec.launch.serving.http import follow
from msrec.launch.serving.http import server as server_module
from msrec.launch.serving.http.batcher import Limits
from msrec.launch.serving.http.serve import ServerOptions, draining_server
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.scorer import Scorer

pytestmark = pytest.mark.slow
ROWS = [
    {"user_key": f"u{n}", "item_key": 10 * n, "scenario": "feed", "age": n % 7} for n in range(12)
]
LIMITS = Limits(max_batch=len(ROWS), max_wait_ms=0)
"""One request per call, since scores in other batches may differ in the last bit."""


def expected(folder):
    scorer = Scorer(folder)
    return scorer.score(scorer.encoder.encode_json(ROWS, "rows"))[:, 0].tolist()


@pytest.fixture
def link(root, tmp_path, monkeypatch):
    """Link to the export of day 1."""
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    monkeypatch.setattr(server_module, "COLLECT_S", 0.1)
    (tmp_path / "current").symlink_to(root / "exports/1")
    return tmp_path / "current"


@contextlib.contextmanager
def served(app):
    """Port of an app that runs in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = draining_server(app, ServerOptions(drain_s=0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@contextlib.contextmanager
def clients(port, number=4):
    """Lists of (status, scores), one per thread that sends requests one after another."""
    stopped, answers = threading.Event(), [[] for _ in range(number)]

    def send(own):
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            while not stopped.is_set():
                connection.request("POST", "/score", json.dumps({"rows": ROWS}))
                response = connection.getresponse()
                own.append((response.status, json.load(response).get("scores")))

    threads = [threading.Thread(target=send, args=(own,)) for own in answers]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stopped.set()
        for thread in threads:
            thread.join(20)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer(port, path, body=None):
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET" if body is None else "POST", path, body)
        return connection.getresponse().read().decode()


def health(port):
    return json.loads(answer(port, "/health"))


def more(answers, count=20):
    """Waits until every client has `count` more answers."""
    wanted = [len(own) + count for own in answers]
    until(lambda: all(len(own) >= n for own, n in zip(answers, wanted, strict=True)))


def test_every_answer_under_load_is_of_the_old_or_the_new_export(root, link, tmp_path):
    old, new = expected(root / "exports/1"), expected(root / "exports/2")
    assert np.abs(np.subtract(old, new)).min() > 1e-4
    scorer = Scorer(link.resolve())
    reference = weakref.ref(scorer)
    app = create_app(scorer, LIMITS, link)
    del scorer
    with served(app) as port:
        assert health(port)["version"] == export_version(root / "exports/1")
        with clients(port) as answers:
            more(answers)
            made = apply_delta(link, root / "deltas/2", tmp_path / "2")
            point_link(link, tmp_path / "2")
            until(lambda: health(port)["version"] == made.result)
            more(answers)
        assert health(port) == {
            "status": "alive",
            "version": export_version(root / "exports/2"),
            "run": str(root / "runs/day2"),
            "checkpoint": Scorer(root / "exports/2").manifest.checkpoint,
        }
        assert 'msrec_exports_total{result="swapped"} 1.0' in answer(port, "/metrics").splitlines()
        until(lambda: reference() is None)
    for own in answers:
        assert {status for status, _ in own} == {200}
        seen = [scores for _, scores in own]
        first_new = seen.index(new)
        assert seen == [old] * first_new + [new] * (len(seen) - first_new)
        assert first_new >= 20


def test_an_export_that_cannot_be_loaded_is_refused_and_the_old_one_stays(root, link, tmp_path):
    broken = shutil.copytree(root / "exports/2", tmp_path / "broken")
    (broken / "tables/user_id.npy").write_bytes(b"x")
    old = expected(root / "exports/1")
    with served(create_app(Scorer(link.resolve()), LIMITS, link)) as port, clients(port) as answers:
        point_link(link, broken)
        until(lambda: "refused" in health(port))
        assert "user_id.npy must have the CRC-32" in health(port)["refused"]
        assert health(port)["version"] == export_version(root / "exports/1")
        more(answers, 5)
        assert {status for own in answers for status, _ in own} == {200}
        assert all(scores == old for own in answers for _, scores in own)
        link.unlink()  # there is no export for a moment
        time.sleep(0.1)
        link.symlink_to(root / "exports/3")
        until(lambda: health(port)["version"] == export_version(root / "exports/3"))
        assert "refused" not in health(port)
        lines = answer(port, "/metrics").splitlines()
        assert 'msrec_exports_total{result="refused"} 1.0' in lines
        assert 'msrec_exports_total{result="swapped"} 1.0' in lines


def test_only_a_link_can_be_pointed_elsewhere(root, tmp_path):
    with pytest.raises(ValueError, match="must be a link to an export"):
        require_link(root / "exports/1")
    assert list(tmp_path.iterdir()) == []
