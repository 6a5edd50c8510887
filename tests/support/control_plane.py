"""An etcd, a Kubernetes API server and a scheduler of pods on loopback.

Their programs are in the folder $KUBEBUILDER_ASSETS.
"""

import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from ranks import free_port

ASSETS = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nowhere"))
PROGRAMS = ("etcd", "kube-apiserver", "kube-scheduler")
IS_THERE = all((ASSETS / program).exists() for program in PROGRAMS)
TIMEOUT_S = 60


@contextmanager
def control_plane(folder):
    """The kubeconfig of a new control plane, which ends with the block."""
    store, peers, port = (free_port() for _ in range(3))
    certificates, key, tokens = folder / "certificates", folder / "key", folder / "tokens.csv"
    tokens.write_text("a-token,admin,admin,system:masters\n")
    subprocess.run(["openssl", "genrsa", "-out", key], check=True, capture_output=True)
    server = f"https://127.0.0.1:{port}"
    authority = str(certificates / "apiserver.crt")  # the server signs its own certificate
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": server, "certificate-authority": authority}}
        ],
        "users": [{"name": "u", "user": {"token": "a-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    client, peer = f"http://127.0.0.1:{store}", f"http://127.0.0.1:{peers}"
    etcd = {
        "data-dir": folder / "etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    api = {
        "etcd-servers": client,
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "cert-dir": certificates,
        "token-auth-file": tokens,
        "authorization-mode": "AlwaysAllow",
        "service-account-issuer": "https://localhost",
        "service-account-signing-key-file": key,
        "service-account-key-file": key,
        "service-cluster-ip-range": "10.9.0.0/24",
        "disable-admission-plugins": "ServiceAccount",
    }
    scheduler = {"kubeconfig": file, "leader-elect": "false", "bind-address": "127.0.0.1"}
    scheduler |= {"secure-port": free_port()}
    with ExitStack() as stack:
        stack.enter_context(_running(folder, "etcd", etcd))
        stack.enter_context(_running(folder, "kube-apiserver", api))
        until(lambda: _answers(server, authority))
        stack.enter_context(_running(folder, "kube-scheduler", scheduler))
        yield file


def until(holds):
    """The first true answer of `holds`."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s"
        time.sleep(0.2)
    return answer


@contextmanager
def _running(folder, program, flags):
    flags = [f"--{name}={value}" for name, value in flags.items()]
    with (folder / f"{program}.log").open("w") as log:
        process = subprocess.Popen([ASSETS / program, *flags], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def _answers(server, authority):
    token = ["-H", "Authorization: Bearer a-token"]
    command = ["curl", "-sf", "--cacert", authority, *token, f"{server}/readyz"]
    return subprocess.run(command, capture_output=True).returncode == 0
