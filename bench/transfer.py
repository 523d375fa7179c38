"""One file of 1 GiB from a real S3 server and from a Hub to a RAM disk: settee's transfer against curl and libraries.

All in one run, taking turns, each in a process of its own that is timed from its first request to the file in place;
CPU is that process's, without its imports. curl checks nothing; neither do boto3, the `aws` command and
huggingface_hub, but for the size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.support import s3

SIZE = int(os.environ.get("BENCH_TRANSFER_MIB", "1024")) * 1024 * 1024
RUNS = int(os.environ.get("BENCH_TRANSFER_RUNS", "5"))


def write_model(path: Path) -> str:
    """Bytes of which no two MiB are the same; returns their sha256."""
    digest = hashlib.sha256()
    block = os.urandom(1024 * 1024)
    with path.open("wb") as file:
        for number in range(SIZE // len(block)):
            piece = number.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def measured(work: Any) -> dict[str, float]:
    """Seconds, CPU and peak memory of ``work()`` in this process."""
    from resource import RUSAGE_SELF, getrusage

    from tests.support.memory import reset_peak, resident

    reset_peak()
    before, began = getrusage(RUSAGE_SELF), time.perf_counter()
    work()
    took, after = time.perf_counter() - began, getrusage(RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": took, "cpu": cpu, "mib": resident("VmHWM") / 1048576}


def settee(given: dict[str, Any]) -> dict[str, float]:
    import certifi  # noqa: F401 - what a worker has imported long before
    import requests  # noqa: F401
    import xxhash  # noqa: F401

    from settee.models.transfer.address import Address
    from settee.models.transfer.download import download
    from settee.models.transfer.scheduler import Scheduler

    address = Address(given["url"], "the model", size=SIZE, validator="known", sha256=given.get("sha256"))
    return measured(
        lambda: download(
            address,
            Path(given["target"]),
            lane=Scheduler(8).lane(),
            deadline=time.monotonic() + 600,
            on_progress=lambda done, total: None,
        )
    )


def boto(given: dict[str, Any]) -> dict[str, float]:
    client = s3.S3Server(given["endpoint"]).client()
    return measured(lambda: client.download_file(given["bucket"], given["key"], given["target"]))


def hub(given: dict[str, Any]) -> dict[str, float]:
    os.environ.update(HF_ENDPOINT=given["endpoint"], HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1")
    from huggingface_hub import hf_hub_download

    folder = f"{given['target']}.d"
    try:
        return measured(lambda: hf_hub_download("org/model", "model.bin", local_dir=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settee_hub(given: dict[str, Any]) -> dict[str, float]:
    """The Hub asked for address and hash as a worker does, then the file, verified."""
    import huggingface_hub.file_download  # noqa: F401 - as above, as in the other run

    from settee.base.settings import load
    from settee.models.entry import HubFile, ModelEntry
    from settee.models.sources import addresses
    from settee.models.transfer.download import download
    from settee.models.transfer.scheduler import Scheduler

    entry = ModelEntry(HubFile("org/model", "model.bin"), "checkpoints", "model.bin")
    settings = load(hf_endpoint=given["endpoint"])

    def work() -> None:
        stop = threading.Event()
        address = next(iter(addresses(entry, settings))).ask(stop=stop)
        fetched = download(
            address,
            Path(given["target"]),
            lane=Scheduler(8).lane(stop),
            deadline=time.monotonic() + 600,
            on_progress=lambda done, total: None,
        )
        assert fetched.sha256 is not None

    return measured(work)


def curl(given: dict[str, Any]) -> dict[str, float]:
    from resource import RUSAGE_CHILDREN, getrusage

    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    if given.get("verified"):
        # Neither part of it can be had for less here: what is saved on their sum is what overlaps.
        script = 'curl -sfL -o "$2" "$1" && openssl dgst -sha256 "$2"'
        subprocess.run(
            ["bash", "-c", script, "bash", given["url"], given["target"]], check=True, stdout=subprocess.DEVNULL
        )
    else:
        subprocess.run(["curl", "-sfL", "-o", given["target"], given["url"]], check=True)
    took, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": took, "cpu": cpu, "mib": after.ru_maxrss / 1024}


WAYS = {"settee": settee, "boto": boto, "hub": hub, "settee_hub": settee_hub, "curl": curl}


def run(way: str, given: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.transfer", way, json.dumps(given)]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        Path(given["target"]).unlink(missing_ok=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(title: str, ways: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Each way in turn, RUNS times; ratios to the first one's of the same round, medians."""
    rounds = [[run(way, given) for _, way, given in ways] for _ in range(RUNS)]
    print(f"\n{title}, medians of {RUNS}")
    for index, (name, _, _) in enumerate(ways):
        took, cpu, mib = (statistics.median(r[index][key] for r in rounds) for key in ("s", "cpu", "mib"))
        times = statistics.median(r[index]["s"] / r[0]["s"] for r in rounds)
        work = statistics.median(r[index]["cpu"] / r[0]["cpu"] for r in rounds)
        print(f"  {name:34} {took:6.2f} s  {times:5.2f}   CPU {cpu:5.2f} s  {work:5.2f}   peak {mib:4.0f} MiB")


def hashing(path: Path) -> None:
    """What the hashes of these bytes cost by themselves."""
    from settee.models.folder.checks import hash_file

    for name, sha256 in (("xxh3", False), ("xxh3 and sha256", True)):
        began = time.process_time()
        hash_file(path, sha256=sha256)
        print(f"  reading and hashing alone, {name:16} CPU {time.process_time() - began:5.2f} s")


def from_s3(disk: Path, model: Path, sha256: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    server, process = s3.start(folder / "server")
    try:
        bucket = server.make_bucket()
        server.admin.upload_file(str(model), bucket, "model.bin")
        parameters = {"Bucket": bucket, "Key": "model.bin"}
        url = server.admin.generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600)
        web = {"url": url, "target": str(disk / "fetched.bin")}
        key = {"endpoint": server.endpoint_url, "bucket": bucket, "key": "model.bin", "target": web["target"]}
        compare(
            f"{SIZE >> 20} MiB from SeaweedFS on loopback",
            [
                ("curl, unchecked", "curl", web),
                ("settee (xxh3)", "settee", web),
                ("settee (xxh3, sha256 verified)", "settee", {**web, "sha256": sha256}),
                ("boto3 download_file, unchecked", "boto", key),
            ],
        )
    finally:
        server.admin.close()
        s3.stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def from_hub(disk: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.support.hub", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            endpoint = json.loads(process.stdout.readline())["endpoint"]
            given = {"endpoint": endpoint, "target": str(disk / "fetched.bin")}
            web = {**given, "url": f"{endpoint}/org/model/resolve/main/model.bin"}
            compare(
                f"{SIZE >> 20} MiB from a Hub on loopback",
                [
                    ("hf_hub_download, size checked", "hub", given),
                    ("settee (xxh3, sha256 verified)", "settee_hub", given),
                    ("curl -L, unchecked", "curl", web),
                    ("curl -L, then openssl sha256", "curl", {**web, "verified": True}),
                ],
            )
        finally:
            process.terminate()


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(WAYS[sys.argv[1]](json.loads(sys.argv[2]))))
        return
    shm = Path("/dev/shm")
    disk = Path(tempfile.mkdtemp(prefix="bench-transfer-", dir=shm if shm.is_dir() else None))
    try:
        model = disk / "repos" / "org" / "model" / "model.bin"
        model.parent.mkdir(parents=True)
        sha256 = write_model(model)
        hashing(model)
        from_s3(disk, model, sha256)
        from_hub(disk, disk / "repos")
    finally:
        shutil.rmtree(disk, ignore_errors=True)


if __name__ == "__main__":
    main()
