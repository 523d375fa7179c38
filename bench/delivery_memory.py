"""How much memory the delivery of one file takes, beside the plain way of doing the same.

Each line is a process of its own that has delivered a small file before; the figure is the peak of its resident
memory over what it was before the large one. The S3 server is a real one on loopback. Linux only (/proc).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.support import s3 as s3_server
from tests.support.measure_delivery import measured

MB = 1_000_000
#: What, its baseline, the file's size in MB, what the figure is a multiple of.
LINES = (
    ("base64", "base64-stdlib", 48),
    ("seal-result", "seal-fernet", 10),
    ("s3", "s3-boto3", 200),
    ("s3-fetch", "s3-boto3", 200),
    ("s3-sealed", "s3-boto3", 200),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        server, process = s3_server.start(Path(folder) / "server")
        try:
            bucket = server.make_bucket()
            for what, baseline, size in LINES:
                path = Path(folder) / f"{size}.bin"
                if not path.exists():
                    path.write_bytes(os.urandom(size * MB))
                ours, plain = (measured(name, path, server.endpoint_url, bucket) for name in (what, baseline))
                print(
                    f"delivery memory  {what:12} {size:4} MB  {ours / MB:7.1f} MB  {ours / size / MB:5.2f}× the file"
                    f"   ({baseline}: {plain / MB:.1f} MB, {plain / size / MB:.2f}×)"
                )
        finally:
            s3_server.stop(process)


if __name__ == "__main__":
    main()
