"""Files to upload, the key of sealed jobs, and the uploads in parts that nobody has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from tests.support.s3 import S3Server

KEY = Fernet.generate_key().decode()
MIB = 1024 * 1024


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def uploads_in(s3: S3Server, bucket: str) -> list[Any]:
    return list(s3.admin.list_multipart_uploads(Bucket=bucket).get("Uploads", []))
