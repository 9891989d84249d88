"""An S3 server on this machine, one for all tests."""

import itertools
import os

import pytest

NAMES = itertools.count()


@pytest.fixture(scope="session")
def server():
    """Host and port of an S3 server with an empty bucket, `records`."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"access_key": "anybody", "secret_key": "canary-secret"}
    admin = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True, **keys)
    admin.create_dir("records")
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def keys(monkeypatch):
    """Credentials, where a user has them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(server, keys):
    """The URL of an empty prefix."""
    prefix = f"{os.getpid()}/{next(NAMES)}"
    return f"s3://records/{prefix}?scheme=http&endpoint_override={server}"
