"""Conversion and encoding on Ray, on two hosts of which one is lost; a command as in a RayJob."""

import os
import subprocess
import sys
import time

import pytest
from llm_data import write_dataset as write_texts
from llm_data import write_model
from part_tables import differences, write_raw
from torchx.runner import get_runner

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.llm.store import VectorSettings
from msrec.launch.cluster.job_specs import convert_spec
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.cluster.submit import torchx_app
from msrec.launch.encoding.encode import encode
from msrec.launch.encoding.options import EncodeOptions

PORT = 6379
ADDRESS = f"10.77.0.11:{PORT}"
MSREC = [sys.executable, "-c", "from msrec.tools.cli.main import main; main()"]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]


def wait_for(condition, what, log, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}:\n{log.read_text()}"
        time.sleep(0.05)


def start_ray(nodes, tmp_path, environment, *, head_cpus=1):
    """Starts Ray on both hosts; returns the processes."""
    started = []
    roles = ["--head", f"--port={PORT}", "--include-dashboard=false"], [f"--address={ADDRESS}"]
    for host, role, cpus, end in zip(nodes.values(), roles, (head_cpus, 1), (11, 12), strict=True):
        log = tmp_path / f"ray-{end}"
        words = [*role, f"--num-cpus={cpus}", f"--node-ip-address=10.77.0.{end}"]
        started.append(host.start(*RAY, *words, log=log, env=environment))
        wait_for(lambda log=log: b"Ray runtime started" in log.read_bytes(), "Ray must start", log)
    return started


def test_a_lost_host_does_not_change_the_dataset(nodes, folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    raw, out, work, log = (tmp_path / name for name in ("raw", "out", "work", "log"))
    raw.mkdir()
    write_raw(raw)
    write_dataset(read_tables(raw), tmp_path / "whole", SplitChoice("user_last"))
    first, second = nodes.values()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    started = start_ray(nodes, tmp_path, environment)
    options = ["--engine", "ray", "--address", ADDRESS, "--part-rows", "50", "--work", str(work)]
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
    end(started)


def test_a_lost_host_does_not_change_the_vectors(nodes, folder, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    users = [f"u{number}" for number in range(4096)]  # 16 blocks
    turns = [(turn % 2, float(turn % 3 > 0), turn) for turn in range(3)]
    rows = [(user, user % 6, *turn) for user in range(len(users)) for turn in turns]
    dataset = write_texts(tmp_path / "data", rows, users=users)
    vectors = {"model": str(write_model(tmp_path / "model")), "dtype": "float32", "max_tokens": 600}
    options = EncodeOptions(("user",), device="cpu")
    encode(dataset, tmp_path / "whole", VectorSettings(**vectors), options)
    store, log = tmp_path / "store", tmp_path / "log"
    words = [f"dataset={dataset}", f"llm.store={store}", "meta.user=true", "llm.sources=[]"]
    config = tmp_path / "conf.yaml"
    config.write_text("{}")
    words += [f"llm.{name}={value}" for name, value in vectors.items()]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    started = start_ray(nodes, tmp_path, environment)
    command = ["encode", str(config), *words, "--engine", "ray", "--address", ADDRESS]
    first, second = nodes.values()
    encoding = first.start(*MSREC, *command, log=log, env=environment)
    parts = store / "user" / "parts"
    wait_for(lambda: len(list(parts.glob("*/done.json"))) > 3, "blocks must be done", log)
    second.kill()
    assert not (store / "user" / "manifest.json").exists()
    try:
        assert encoding.wait(120) == 0, log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(log.read_text())
    for name in ("vectors.npy", "keys.parquet"):
        whole, made = (tmp_path / place / "user" / name for place in ("whole", "store"))
        assert made.read_bytes() == whole.read_bytes()
    end(started)


def test_the_command_of_a_ray_job_makes_the_same_dataset(nodes, folder, tmp_path):
    """As in a pod of KubeRay: a token, no task on the head, and Ray's address in a variable."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    pytest.importorskip("kubernetes", reason="its client is not installed (the extra `kubernetes`)")
    raw, log = tmp_path / "raw of $x", tmp_path / "log"
    raw.mkdir()
    write_raw(raw)
    write_dataset(read_tables(raw), tmp_path / "whole", SplitChoice("user_last"))
    spec = convert_spec(raw, tmp_path / "app", ["--split=user_last", "--part-rows=500"])
    profile = Profile(scheduler="kuberay", image="registry/msrec:1", python=sys.executable)
    with get_runner() as runner:
        made = runner.dryrun(torchx_app(spec, Target("x", profile, "1x1")), "kuberay").request
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_TMPDIR": str(folder)}
    environment = os.environ | token | {"RAY_ADDRESS": ADDRESS}
    started = start_ray(nodes, tmp_path, environment, head_cpus=0)
    command = ["sh", "-c", made.resource["spec"]["entrypoint"]]  # Ray's jobs run in a shell too
    converting = nodes["node1"].start(*command, log=log, env=environment)
    assert converting.wait(120) == 0, log.read_text()
    assert differences(tmp_path / "app", tmp_path / "whole") == []
    end(started)


def end(processes):
    for process in processes:
        process.kill()
        process.wait()
