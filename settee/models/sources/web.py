"""Models at http(s) addresses. Nobody is asked here: the download's first request tells size and ETag."""

from __future__ import annotations

from urllib.parse import urlsplit

from settee.errors import DownloadFailed
from settee.models.address import Address
from settee.models.entry import ModelEntry, WebFile
from settee.net.http import split_login
from settee.settings import Settings


def address(entry: ModelEntry, file: WebFile, settings: Settings) -> Address:
    """The URL without its credentials, which become a header for its host alone.

    A job's URL is held to public hosts, as a job's input files are (RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS).
    """
    try:
        parts = urlsplit(file.url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme.lower() not in ("http", "https"):
        raise DownloadFailed(f"{entry.position or entry.path}: this is not an http(s) address", retryable=False)
    url, headers = split_login(file.url)
    if entry.token is not None:
        headers = {"Authorization": f"Bearer {entry.token.get_secret_value()}"}
    return Address(
        url=url,
        where=file.where,
        headers=headers,
        public_only=entry.from_job and not settings.runpod_allow_private_download_urls,
    )
