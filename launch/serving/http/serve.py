"""Runs the app of an export in this process, or in several worker processes."""

import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead

from msrec.launch.serving.http.batcher import Limits
from msrec.launch.serving.http.connections import GuardedProtocol, allow_open_files
from msrec.launch.serving.http.metrics import WORKERS_VARIABLE
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.scorer import Scorer

BACKLOG = 512
"""Connections that wait to be accepted; the event loop accepts so many at once."""
SWITCH_INTERVAL_S = 1e-4
YOUNG_S = 10.0
"""A worker that dies sooner after its start would die again, so the server ends."""
SPARE_S = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server.

    Attributes:
        host, port: address to listen on.
        workers: number of processes, each with the whole export in its memory.
        threads: threads of the program in each process.
        drain_s: seconds after a signal in which requests are accepted.
        stop_s: seconds after that in which requests under way are answered.
        read_s: seconds in which a client must send a whole request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 1
    drain_s: float = 2.0
    stop_s: float = 5.0
    read_s: float = 10.0


class DrainingServer(uvicorn.Server):
    """Server that accepts requests for some seconds after a signal, while /ready answers 503.

    Load balancers use these seconds to send their requests to other servers.
    """

    def __init__(self, app: FastAPI, drain_s: float, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, **options))
        self._service, self._drain_s = app.state.service, drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops the server after the delay; a second signal stops it at once."""
        delay_s, self._drain_s = self._drain_s, 0.0
        self._service.is_ready = False
        timer = threading.Timer(delay_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def serve(
    path: Path, options: ServerOptions, limits: Limits, on_loaded: Callable[[Scorer], None]
) -> None:
    """Answers requests until SIGTERM or SIGINT, see `ServerOptions`.

    Args:
        path: an export, or a link to it, which is followed when it is pointed to another one.
        options: of the server.
        limits: of batches and requests.
        on_loaded: called with the export before it is served; must not keep it, since another one
            may replace it.

    Raises:
        FileNotFoundError: there is no export.
        ValueError: it cannot be loaded, the address is not free, or a worker does not start.
    """
    if options.workers == 1:
        app = _new_app(path, limits, on_loaded)
        _serve_here(app, listening_socket(options), options)
        return
    on_loaded(Scorer(path.resolve()))
    listener = listening_socket(options)
    with tempfile.TemporaryDirectory(prefix="msrec-metrics-") as metrics:
        os.environ[WORKERS_VARIABLE] = metrics
        ended_by = _Workers(path, listener, options, limits).run()
    signal.raise_signal(ended_by)


def listening_socket(options: ServerOptions) -> socket.socket:
    """Returns a socket that listens on the address of a server.

    Raises:
        ValueError: the address is not free.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise ValueError(
            f"msrec serve must be able to listen on {options.host}:{options.port}; "
            f"{error.strerror}. Choose another address by --host or --port."
        ) from None
    # Connections inherit this. Otherwise the body of an answer waits up to 40 ms for the client to
    # acknowledge the headers. asyncio sets it only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _new_app(
    path: Path, limits: Limits, on_loaded: Callable[[Scorer], None] = lambda _: None
) -> FastAPI:
    scorer = Scorer(path.resolve())  # a link may be pointed elsewhere while the files are read
    on_loaded(scorer)
    return create_app(scorer, limits, path if path.is_symlink() else None)


def _serve_here(app: FastAPI, listener: socket.socket, options: ServerOptions) -> None:
    torch.set_num_threads(options.threads)
    # The scoring thread needs the interpreter for microseconds between calls that release it. By
    # default it would wait 5 ms each time while another thread parses a request.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    allow_open_files()
    draining_server(app, options).run([listener])


def draining_server(app: FastAPI, options: ServerOptions) -> DrainingServer:
    """Returns the server of an app, for a socket that is open already."""
    return DrainingServer(
        app,
        options.drain_s,
        http=type("Protocol", (GuardedProtocol,), {"read_s": options.read_s}),
        ws="none",
        backlog=BACKLOG,
        # Connections whose request is unfinished end at once; the rest waits for its scores.
        timeout_graceful_shutdown=math.ceil(options.stop_s),
        log_level="warning",
        access_log=False,
    )


def _work(path: Path, listener: socket.socket, options: ServerOptions, limits: Limits) -> None:
    """Serves in a worker process, which ends when its parent does."""
    os.setsid()  # Ctrl-C reaches the parent alone, which tells its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _serve_here(_new_app(path, limits), listener, options)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class _Workers:
    """Processes that serve the same socket; one that dies is replaced."""

    def __init__(
        self, path: Path, listener: socket.socket, options: ServerOptions, limits: Limits
    ) -> None:
        self._options = options
        self._signal: int | None = None
        context = multiprocessing.get_context("spawn")
        self._new = partial(context.Process, target=_work, args=(path, listener, options, limits))
        self._processes: dict[SpawnProcess, float] = {}

    def run(self) -> int:
        """Returns the signal that ended the server after all workers have ended."""
        before = {one: signal.signal(one, self._stop) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            for _ in range(self._options.workers):
                self._start()
            while self._signal is None:
                self._replace_dead()
        finally:
            self._end()
            for one, handler in before.items():
                signal.signal(one, handler)
        return self._signal

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        for process in self._processes:
            if process.is_alive():
                process.terminate()

    def _start(self) -> None:
        process = self._new()
        process.start()
        self._processes[process] = time.monotonic()

    def _replace_dead(self) -> None:
        wait([process.sentinel for process in self._processes], timeout=0.5)
        dead = [process for process in self._processes if not process.is_alive()]
        if self._signal is not None:
            return
        for process in dead:
            age_s = time.monotonic() - self._processes.pop(process)
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
            if age_s < YOUNG_S:
                raise ValueError(
                    f"a worker must serve; it ended with status {process.exitcode} after "
                    f"{age_s:.0f} s. Its message is above; try --workers 1."
                )
            _LOG.warning("a worker ended with status %s; starting another", process.exitcode)
            self._start()

    def _end(self) -> None:
        for process in self._processes:
            if process.is_alive() and self._signal is None:
                process.terminate()
        deadline = time.monotonic() + self._options.drain_s + self._options.stop_s + SPARE_S
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
