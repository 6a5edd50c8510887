"""A conversion on a Ray cluster of two hosts, one of which is lost in the middle."""

import os
import subprocess
import sys
import time

import pytest
from part_tables import differences, write_raw

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice

PORT = 6379
MSREC = [sys.executable, "-c", "from msrec.tools.cli.main import main; main()"]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]


def wait_for(condition, what, log, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}:\n{log.read_text()}"
        time.sleep(0.05)


def test_a_lost_host_does_not_change_the_dataset(nodes, folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    raw, out, work, log = (tmp_path / name for name in ("raw", "out", "work", "log"))
    raw.mkdir()
    write_raw(raw)
    write_dataset(read_tables(raw), tmp_path / "whole", SplitChoice("user_last"))
    first, second = nodes.values()
    address = f"10.77.0.11:{PORT}"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    head = [f"--port={PORT}", "--head", "--node-ip-address=10.77.0.11", "--include-dashboard=false"]
    started = [first.start(*RAY, *head, log=log, env=environment)]
    wait_for(lambda: b"Ray runtime started" in log.read_bytes(), "the head must start", log)
    joined = tmp_path / "joined"
    member = [f"--address={address}", "--node-ip-address=10.77.0.12"]
    started.append(second.start(*RAY, *member, log=joined, env=environment))
    wait_for(lambda: b"Ray runtime started" in joined.read_bytes(), "a host must join", joined)
    options = ["--engine", "ray", "--address", address, "--part-rows", "50", "--work", str(work)]
    words = ["convert", "tables", str(raw), str(out), "--split", "user_last", *options]
    converting = first.start(*MSREC, *words, log=log, env=environment)
    wait_for(lambda: len(list(work.glob("encode/*/result.json"))) > 20, "parts must be done", log)
    second.kill()
    assert not out.exists()
    try:
        assert converting.wait(120) == 0, log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(log.read_text())
    assert differences(out, tmp_path / "whole") == []
    for process in started:
        process.kill()
        process.wait()
