"""An `msrec serve` process under load: clients that each send requests one after another."""

import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from msrec.tools.bench.harness.processes import free_port

MAX_QUEUE_ROWS = 4096
START_TIMEOUT_S = 120
TIMEOUT_S = 30
RETRY_S = 0.05


@contextmanager
def running_server(export: Path, *options: str) -> Iterator[int]:
    """Starts `msrec serve` in another process and yields its port once it is ready.

    Args:
        export: the export to serve.
        options: more options of `msrec serve`.

    Raises:
        ValueError: the server did not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "msrec", "serve", str(export)]
    command += ["--port", str(port), "--max-queue", str(MAX_QUEUE_ROWS), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the server of {export} must start; it did not. Run it by hand.")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def apply_load(port: int, clients: int, lines: Sequence[Any], seconds: float) -> dict[str, Any]:
    """Sends requests from several clients at once and returns speed and latency.

    Args:
        port: port of the server on this machine.
        clients: number of clients; each sends its next request as soon as it has an answer.
        lines: raw rows of every request.
        seconds: how long.
    """
    body = json.dumps({"rows": lines})
    before = _batches(port)
    deadline = time.perf_counter() + seconds
    with ThreadPoolExecutor(clients) as threads:
        futures = [threads.submit(_send_requests, port, body, deadline) for _ in range(clients)]
    answers = [future.result() for future in futures]
    batches, rows = (new - old for new, old in zip(_batches(port), before, strict=True))
    latencies = [latency for of_client, _ in answers for latency in of_client]
    return {
        "clients": clients,
        "rows": len(lines),
        "rows_per_s": len(latencies) * len(lines) / seconds,
        "requests_per_s": len(latencies) / seconds,
        "rows_per_call": rows / max(batches, 1),
        "refused": sum(refused for _, refused in answers),
        **latency_quantiles(latencies),
    }


def latency_quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile in ms; NaN if there are no values."""
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) if len(seconds) else (np.nan, np.nan)
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


def _send_requests(port: int, body: str, deadline: float) -> tuple[list[float], int]:
    """Returns the latency of each scored request in seconds, and the number of refused ones."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    latencies_s, refused = list[float](), 0
    with contextlib.closing(connection):
        while (started := time.perf_counter()) < deadline:
            connection.request("POST", "/score", body)
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                latencies_s.append(time.perf_counter() - started)
            else:
                assert response.status == 503, response.status
                refused += 1
                time.sleep(RETRY_S)
    return latencies_s, refused


def _is_ready(port: int) -> bool:
    try:
        return _answer(port, "/ready")[0] == 200
    except OSError:
        return False


def _batches(port: int) -> tuple[float, float]:
    """Returns how often the server ran its program so far, and on how many rows."""
    lines = _answer(port, "/metrics")[1].splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return float(values["msrec_batch_rows_count"]), float(values["msrec_batch_rows_sum"])


def _answer(port: int, path: str) -> tuple[int, str]:
    """Returns the status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
