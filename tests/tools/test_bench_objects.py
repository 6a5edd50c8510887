"""msrec bench objects: the proxy delays, refuses and counts, and the bench sees it."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from msrec.tools.bench.objects import command
from msrec.tools.bench.objects.proxy import proxy

pytestmark = pytest.mark.slow


class Echo(BaseHTTPRequestHandler):
    """Answers with the body, the host and the path of a request."""

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = f"{self.headers['Host']} {self.path} ".encode() + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_a_proxy_passes_delays_refuses_and_counts():
    server = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with proxy(f"http://127.0.0.1:{server.server_port}", 0.05, 0.25) as one:
        client = http.client.HTTPConnection(one.url.removeprefix("http://"))
        start, answers = time.monotonic(), []
        for number in range(8):
            client.request("PUT", f"/a%20b?x={number}", b"body" * number, {"Host": "mine"})
            answer = client.getresponse()
            answers.append((answer.status, answer.read()))
        client.close()
        assert time.monotonic() - start >= 8 * 0.05
        assert one.counts() == (8, 2)
    server.shutdown()
    server.server_close()
    assert [status for status, _ in answers] == [200, 200, 200, 503] * 2
    assert answers[2][1] == b"mine /a%20b?x=2 bodybody"


def test_the_bench_counts_the_refused_requests_that_were_tried_again(capsys, monkeypatch):
    monkeypatch.setattr(command, "BATCHES", 4)
    command.bench_objects(None, files=3, mib=0.1, latency_ms=1, refused=0.2, repeats=1)
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    refused = {(line[1].strip(), line[2].strip()): int(line[8]) for line in lines}
    works = ("send files", "copy files", "read an epoch")
    assert {work for work, _ in refused} == set(works)
    assert all(refused[work, "no latency"] == refused[work, "1 ms"] == 0 for work in works)
    assert sum(refused[work, "1 ms, 20% refused"] for work in works) >= 5
