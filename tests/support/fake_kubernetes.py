"""The few answers of a Kubernetes API with Volcano that msrec asks for, over HTTP on loopback."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JOBS = "/apis/batch.volcano.sh/v1alpha1/namespaces/rec/jobs"
PODS = "/api/v1/namespaces/rec/pods"


class FakeKubernetes(ThreadingHTTPServer):
    """Keeps jobs; a test sets their status and their pods' logs. Only the queue `ads` exists."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs = {}
        self.statuses = {}
        self.logs = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        queue = job["spec"]["queue"]
        if queue != "ads":
            return self.answer(422, {"message": f"unable to find job queue: {queue}."})
        self.server.jobs[job["metadata"]["name"]] = job
        return self.answer(201, job)

    def do_GET(self):
        path, _, query = self.path.partition("?")
        folder, _, rest = path.removeprefix(f"{JOBS}/").removeprefix(f"{PODS}/").partition("/")
        if path.startswith(PODS) and folder in self.server.logs:
            return self.answer(200, self.server.logs[folder])
        if folder not in self.server.jobs:
            return self.answer(404, {"message": f"{folder} not found"})
        job = self.server.jobs[folder]
        return self.answer(200, job | {"status": self.server.statuses.get(folder, {})})

    def do_DELETE(self):
        return self.answer(200, self.server.jobs.pop(self.path.split("/")[-1]))

    def answer(self, code, body):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        kind = "text/plain" if isinstance(body, str) else "application/json"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def fake_kubernetes():
    """A server for as long as the block lasts."""
    with FakeKubernetes() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
