"""`msrec bench objects`: an object store with latency and refused requests, against one without."""

import filecmp
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple
from unittest.mock import patch

import typer
from s3fs import S3FileSystem

from msrec.data.io.local_copies import local_copy
from msrec.data.io.paths import to_path
from msrec.data.io.remote_folders import delete_files, remote_files, replace_remote_folder
from msrec.data.loading.loader import open_loader
from msrec.tools.bench.harness.measure import now
from msrec.tools.bench.harness.report import console, prepare, text_table
from msrec.tools.bench.harness.shapes import dataset_or_random
from msrec.tools.bench.objects.proxy import Proxy, proxy

BATCH, BATCHES = 4096, 400
MARKER = "done.json"
Work = Callable[[], float]
"""Function that moves bytes and returns their number in millions."""


class Round(NamedTuple):
    """Cost of one piece of work through one proxy.

    Units:
        mb: millions of bytes.
        wall_s, cpu_s: seconds; processor time of this process.
    """

    mb: float
    wall_s: float
    cpu_s: float
    requests: int
    refused: int


Rounds = dict[tuple[str, str], list[Round]]
"""Name of the work and of the proxy -> its rounds."""


def bench_objects(
    url: Annotated[
        str | None,
        typer.Option(
            help="s3 URL of a folder that does not exist, in the store of AWS_ENDPOINT_URL, "
            "which must be http://HOST:PORT",
            show_default="a server of moto's, started for the bench",
        ),
    ] = None,
    files: Annotated[int, typer.Option(min=1, help="number of files to send and to copy")] = 8,
    mib: Annotated[float, typer.Option(min=0, help="size of a file in MiB")] = 32.0,
    latency_ms: Annotated[float, typer.Option(min=0, help="wait of each request in ms")] = 50.0,
    refused: Annotated[
        float, typer.Option(min=0, max=0.5, help="share of the requests answered with status 503")
    ] = 0.05,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; the medians are printed")] = 3,
) -> None:
    """Sending and reading in an object store with latency, against one without.

    A proxy stands before the store. It delays every request, or also answers some of them with
    status 503, which the libraries must try again. Files are sent and copied as runs and exports
    are; a dataset is read by row groups, as by a training.

    Raises:
        ValueError: there is no such store, or what was read differs from what was sent.
    """
    prepare()
    kinds = {"no latency": (0.0, 0.0), f"{latency_ms:g} ms": (latency_ms / 1e3, 0.0)}
    kinds[f"{latency_ms:g} ms, {refused:.0%} refused"] = (latency_ms / 1e3, refused)
    with ExitStack() as stack:
        upstream = _server(stack) if url is None else os.environ.get("AWS_ENDPOINT_URL", "")
        root = (url or "s3://bench/objects").rstrip("/")
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(patch.dict(os.environ, MSREC_CACHE=str(scratch / "cache")))
        source = _random_files(scratch / "files", files, mib)
        dataset = stack.enter_context(dataset_or_random(None, BATCHES, BATCH))
        if remote_files(to_path(root)):
            raise ValueError(f"{root} must not exist yet, so that nothing is lost; it does.")
        replace_remote_folder(dataset, to_path(root) / "data", "dataset.yaml")
        works = _works(source, dataset, root, scratch / "cache")
        proxies = {k: stack.enter_context(proxy(upstream, *v)) for k, v in kinds.items()}
        rounds: Rounds = {(work, kind): [] for work in works for kind in kinds}
        for work in works.values():  # imports and compiles; not counted
            _measured(work, proxies["no latency"])
        for number in range(repeats):  # each begins with another proxy
            first = number % len(kinds)
            for kind in [*kinds][first:] + [*kinds][:first]:
                for name, work in works.items():
                    rounds[name, kind].append(_measured(work, proxies[kind]))
        os.environ["AWS_ENDPOINT_URL"] = upstream
        S3FileSystem.clear_instance_cache()
        delete_files(to_path(root), remote_files(to_path(root)))
    console.print(text_table(f"an object store through a proxy, {repeats} rounds", _rows(rounds)))


def _server(stack: ExitStack) -> str:
    """Starts moto's S3 server with a bucket; returns its URL, which the environment gets too.

    Raises:
        ModuleNotFoundError: moto is not installed.
    """
    if find_spec("moto") is None:
        raise ModuleNotFoundError(
            "msrec bench objects must have a store: pip install 'moto[server]', or give --url and "
            "AWS_ENDPOINT_URL."
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(words, stdout=quiet, stderr=quiet)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    url = f"http://127.0.0.1:{port}"
    access = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    stack.enter_context(patch.dict(os.environ, access))
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        raise RuntimeError("moto's server must start within 60 s; it did not.")
    S3FileSystem.clear_instance_cache()  # of another server
    S3FileSystem().mkdir("bench")
    return url


def _random_files(folder: Path, files: int, mib: float) -> Path:
    """Writes files that do not compress, and a marker."""
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:04d}.bin").write_bytes(os.urandom(int(mib * 2**20)))
    (folder / MARKER).write_text("{}")
    return folder


def _works(source: Path, dataset: Path, root: str, cache: Path) -> dict[str, Work]:
    """Returns the work to measure, by name."""

    def send() -> float:
        replace_remote_folder(source, to_path(f"{root}/files"), MARKER)
        return _mb(source)

    def copy() -> float:
        shutil.rmtree(cache, ignore_errors=True)
        found = local_copy(to_path(f"{root}/files"), MARKER)
        different = filecmp.cmpfiles(source, found, os.listdir(source), shallow=False)[1:]
        if any(different):
            raise ValueError(f"copies must be what was sent; {different} differ.")
        return _mb(source)

    def read() -> float:
        loader = open_loader(f"{root}/data", "train", BATCH)
        rows = sum(len(batch.row_id) for batch in loader.batches())
        if rows != loader.reader.num_rows:
            raise ValueError(f"an epoch must have {loader.reader.num_rows} rows; it had {rows}.")
        return _mb(dataset / "train")

    return {"send files": send, "copy files": copy, "read an epoch": read}


def _mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def _measured(work: Work, one: Proxy) -> Round:
    """Does work through a proxy, with connections of its own."""
    os.environ["AWS_ENDPOINT_URL"] = one.url
    S3FileSystem.clear_instance_cache()
    before, start = one.counts(), now()
    mb = work()
    cost, after = now() - start, one.counts()
    requests, refused = (b - a for a, b in zip(before, after, strict=True))
    return Round(mb, cost.clock, cost.processor, requests, refused)


def _rows(rounds: Rounds) -> list[dict[str, str]]:
    """Returns the lines of the table; waiting is the share that latency and refusals add."""
    lines, base = [], 0.0
    for (work, kind), found in rounds.items():
        wall_s, cpu_s = (median(getattr(r, name) for r in found) for name in ("wall_s", "cpu_s"))
        base = wall_s if kind == "no latency" else base
        lines.append(
            {
                "": work,
                "store": kind,
                "MB": f"{found[0].mb:,.0f}",
                "MB/s": f"{found[0].mb / wall_s:,.1f}",
                "wall s": f"{wall_s:.2f}",
                "CPU s": f"{cpu_s:.2f}",
                "requests": f"{median(r.requests for r in found):.0f}",
                "refused": f"{median(r.refused for r in found):.0f}",
                "waiting": f"{1 - base / wall_s:.0%}",
            }
        )
    return lines
