"""Delivers one file in a process of its own and prints by how many bytes that grew it, as JSON. Linux only.

    python -m tests.support.measure_delivery WHAT FILE ENDPOINT BUCKET

WHAT is base64, s3, s3-fetch, s3-sealed or seal-result: settee's; or, to compare with, base64-stdlib (read the file,
encode it, decode that), s3-boto3 (its upload_file), seal-fernet (Fernet.encrypt of the JSON).
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from settee.base.job import Artifact
from settee.base.sealing import Sealer, generate_key
from tests.support.delivering import bucket_settings, file_artifact, make_job, make_settings, run
from tests.support.memory import reset_peak, resident
from tests.support.s3 import S3Server

CHUNK = 65_536


def growth(work: Callable[[], object]) -> int:
    """By how much the peak while working lies over the resident memory before."""
    before = reset_peak()
    kept = work()
    grown = resident("VmHWM") - before
    del kept
    return grown


def fetch(artifact: Artifact) -> Iterator[bytes]:
    """As from /view: small chunks of a file that is not shared."""
    with Path(artifact.subfolder).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def measured(what: str, path: Path, endpoint: str = "", bucket: str = "") -> int:
    """Run this module in a Python of its own; the bytes by which it grew."""
    command = [sys.executable, "-m", "tests.support.measure_delivery", what, str(path), endpoint, bucket]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["growth"])


def task(what: str, path: Path, server: S3Server, bucket: str) -> Callable[[], object]:
    if what == "base64-stdlib":
        return lambda: base64.b64encode(path.read_bytes()).decode("utf-8")
    if what == "s3-boto3":
        client = server.client()
        return lambda: client.upload_file(str(path), bucket, "boto3")
    if what in ("seal-result", "seal-fernet"):
        return _sealing(what, path)
    artifact = file_artifact(path)
    if what == "s3-fetch":
        artifact = file_artifact(path, path=None, subfolder=str(path))
    settings = make_settings() if what == "base64" else bucket_settings(server, bucket)
    job = make_job("base64" if what == "base64" else "s3", sealed_by=generate_key() if what == "s3-sealed" else None)
    return lambda: run([artifact], job, settings, fetch=fetch)


def _sealing(what: str, path: Path) -> Callable[[], object]:
    from cryptography.fernet import Fernet

    value = {"images": [{"data": path.read_bytes().hex()}]}
    key = generate_key()
    if what == "seal-result":
        return lambda: Sealer(key).seal(value)
    return lambda: Fernet(key).encrypt(json.dumps(value).encode()).decode()


def main() -> None:
    what, file, endpoint, bucket = sys.argv[1:]
    server, path = S3Server(endpoint), Path(file)
    # Once with a small file: imports, connections and arenas are no part of what a file costs.
    small = path.with_name(f"{path.name}-small")
    small.write_bytes(path.read_bytes()[:1] * 3_000_000)
    task(what, small, server, bucket)()
    small.unlink()
    work = task(what, path, server, bucket)
    print(json.dumps({"growth": growth(work)}))


if __name__ == "__main__":
    main()
