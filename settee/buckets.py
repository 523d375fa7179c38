"""What the address of an S3 endpoint says of its bucket and region, for the worker and the client alike."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def plain_endpoint(url: str, bucket: str | None) -> str:
    """The endpoint without the bucket, when it begins with that bucket's name: it would be addressed twice."""
    url = url.rstrip("/")
    if bucket:
        scheme, _, rest = url.partition("://")
        if rest.lower().startswith(f"{bucket.lower()}.") and "." in rest[len(bucket) + 1 :]:
            return f"{scheme}://{rest[len(bucket) + 1 :]}"
    return url


_REGIONS = (
    r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.",  # Amazon, Backblaze, Wasabi
    r"(?:^|\.)([a-z]+\d+)\.digitaloceanspaces\.com$",
    r"^s3\.([a-z]{2}-[a-z]{3})\.scw\.cloud$",
    r"^s3api-([a-z]+-[a-z]+-\d+)\.runpod\.io$",
)


def region_of(endpoint_url: str) -> str:
    """The region that the common providers' addresses name; "auto" for R2, us-east-1 where none is named."""
    host = urlsplit(endpoint_url).hostname or ""
    if host.endswith(".r2.cloudflarestorage.com"):
        return "auto"
    for pattern in _REGIONS:
        if found := re.search(pattern, host):
            # RunPod writes its data centers, which are its regions, in capitals.
            return found[1].upper() if host.endswith(".runpod.io") else found[1]
    return "us-east-1"


def bucket_problem(name: str) -> str | None:
    """Why no bucket can have this name. Generous: old buckets have capitals, some servers have underscores."""
    return None if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name) else "is not a bucket's name"
