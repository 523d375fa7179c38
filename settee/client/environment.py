"""The environment that the client knows. It does without the worker's settings, which need packages of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Environment:
    """None: not set. Empty counts as not set, as templates leave variables behind empty."""

    endpoint_id: str | None = None
    #: Of RunPod's API, as the RunPod SDK reads it.
    endpoint_base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    encryption_key: str | None = field(default=None, repr=False)
    #: Of worker-comfyui, as the worker's: the address holds the bucket, or BUCKET_NAME does.
    bucket_endpoint_url: str | None = None
    bucket_access_key_id: str | None = None
    bucket_secret_access_key: str | None = field(default=None, repr=False)
    bucket_name: str | None = None
    #: None: read from the endpoint.
    bucket_region: str | None = None
    #: Address as endpoint/bucket/key.
    bucket_path_style: bool = True
    comfy_org_api_key: str | None = field(default=None, repr=False)

    #: All of it, for who has to know the terminal and the desktop.
    all: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls) -> Environment:
        """Of this process, now."""

        def value(name: str) -> str | None:
            return os.environ.get(name, "").strip() or None

        return cls(
            endpoint_id=value("RUNPOD_ENDPOINT_ID"),
            endpoint_base_url=value("RUNPOD_ENDPOINT_BASE_URL"),
            api_key=value("RUNPOD_API_KEY"),
            encryption_key=value("ENCRYPTION_KEY"),
            bucket_endpoint_url=value("BUCKET_ENDPOINT_URL"),
            bucket_access_key_id=value("BUCKET_ACCESS_KEY_ID"),
            bucket_secret_access_key=value("BUCKET_SECRET_ACCESS_KEY"),
            bucket_name=value("BUCKET_NAME"),
            bucket_region=value("BUCKET_REGION"),
            bucket_path_style=(value("BUCKET_PATH_STYLE") or "true").lower()
            not in ("false", "0", "no", "off", "f", "n"),
            comfy_org_api_key=value("COMFY_ORG_API_KEY"),
            all=os.environ,
        )
