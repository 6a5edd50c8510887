"""Object store of this process: moto's server, with the access to it in the environment."""

import os
from contextlib import contextmanager
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

SECRET = "s3cr3t-0f-the-t3st"


class Bucket:
    """The bucket `apps`."""

    def __init__(self, client):
        self.client = client
        client.create_bucket(Bucket="apps")

    def upload(self, folder, prefix):
        """Copies a folder, and returns its URL."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.upload_file(str(file), "apps", f"{prefix}/{file.relative_to(folder)}")
        return f"s3://apps/{prefix}"

    def download(self, prefix, folder):
        """Copies what is below a prefix to a folder, and returns the folder."""
        for name in self.names(prefix):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file("apps", f"{prefix}/{name}", str(target))
        return folder

    def names(self, prefix):
        """Returns the names below a prefix, in their order."""
        found = self.client.list_objects_v2(Bucket="apps", Prefix=f"{prefix}/").get("Contents", [])
        return [each["Key"].removeprefix(f"{prefix}/") for each in found]

    def write(self, name, data=b""):
        self.client.put_object(Bucket="apps", Key=name, Body=data)

    def delete(self, name):
        self.client.delete_object(Bucket="apps", Key=name)

    @contextmanager
    def refusing(self):
        """Refuses all requests, because the key is not known."""
        self._check_keys_after(0)
        yield
        self._check_keys_after(1 << 60)

    def _check_keys_after(self, requests):
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        data, headers = str(requests).encode(), {"Content-Type": "text/plain"}
        urlopen(Request(url, data, headers)).close()


@contextmanager
def store():
    """Yields a bucket of a server that ends afterwards."""
    S3FileSystem.clear_instance_cache()  # it keeps the address of an earlier server
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    access = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in access.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # of an earlier server
        yield Bucket(boto3.client("s3"))
    server.stop()
