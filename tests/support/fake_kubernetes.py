"""The few answers of a Kubernetes API with Volcano and KubeRay that msrec asks for, on loopback."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

VOLCANO = "/apis/batch.volcano.sh/v1alpha1/namespaces/rec/jobs"
KUBERAY = "/apis/ray.io/v1/namespaces/rec/rayjobs"
PODS = "/api/v1/namespaces/rec/pods"


class FakeKubernetes(ThreadingHTTPServer):
    """Keeps jobs; a test sets their status, their pods and logs. Only the queue `ads` exists."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.installed = {VOLCANO, KUBERAY}
        self.jobs = {}
        self.statuses = {}
        self.pods = []
        self.logs = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in self.server.installed:
            return self.answer(404, "404 page not found\n")
        queue = job["spec"].get("queue")
        if self.path == VOLCANO and queue != "ads":
            return self.answer(422, {"message": f"unable to find job queue: {queue}."})
        self.server.jobs[job["metadata"]["name"]] = job
        return self.answer(201, job)

    def do_GET(self):
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        if url.path == PODS:
            key, _, value = query["labelSelector"].partition("=")
            pods = [pod for pod in self.server.pods if pod["metadata"]["labels"].get(key) == value]
            return self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
        kind = next((kind for kind in (PODS, *self.server.installed) if kind in url.path), None)
        if kind is None:
            return self.answer(404, "404 page not found\n")
        name = url.path.removeprefix(f"{kind}/").partition("/")[0]
        if kind == PODS and name in self.server.logs:
            names = [each["name"] for each in self.pod(name)["spec"]["containers"]]
            if query.get("container", names[0]) not in names:
                return self.answer(400, {"message": f"{name} has no such container"})
            return self.answer(200, self.server.logs[name])
        if name not in self.server.jobs:
            return self.answer(404, {"message": f"{name} not found"})
        job = self.server.jobs[name]
        return self.answer(200, job | {"status": self.server.statuses.get(name, {})})

    def pod(self, name):
        """A pod that the test has made, or one of a single container."""
        known = {pod["metadata"]["name"]: pod for pod in self.server.pods}
        return known.get(name, {"spec": {"containers": [{"name": name}]}})

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
