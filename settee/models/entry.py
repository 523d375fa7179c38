"""One requested model: its source, and its place below the models folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face model repository, or several."""

    repo: str
    #: With a ``*`` every file whose path fits, or one of such patterns between ``|``.
    filename: str
    #: A branch, tag or commit.
    revision: str = "main"

    @property
    def where(self) -> str:
        """Return the form that errors and log lines may show."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{at}:{self.filename}"


@dataclass(frozen=True)
class S3Object:
    """An object at the S3 endpoint that the worker's settings name (or, for a job, its own s3Config)."""

    bucket: str
    key: str
    #: The endpoint of a job's own s3Config: a bucket of the same name elsewhere is another one. None is the worker's.
    endpoint: str | None = None
    #: The ETag of the wanted content, where S3 was asked for it: after another upload it is another file.
    version: str | None = None
    #: The job's s3Config (a Bucket), whose endpoint that is. Pydantic resolves this when a request is parsed.
    config: Any = field(default=None, repr=False, compare=False)

    @property
    def where(self) -> str:
        """Return the form that errors and log lines may show."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class WebFile:
    """A file at an http(s) address, whose query may be a signature."""

    url: str = field(repr=False)

    @property
    def where(self) -> str:
        """Return the address without its query and credentials."""
        scheme, _, rest = self.url.partition("://")
        host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


Source = HubFile | S3Object | WebFile


def identity(source: Source) -> str:
    """Return which file of which revision this is, for records. Of credentials and a query only a hash is kept."""
    if isinstance(source, HubFile):
        return f"hf:{source.repo}@{source.revision}:{source.filename}"
    if isinstance(source, S3Object):
        # An endpoint's address may hold credentials.
        host = urlsplit(source.endpoint).netloc.rpartition("@")[2].lower() if source.endpoint else ""
        return f"{source.where}{f'@{host}' if source.endpoint else ''}{f'#{source.version}' if source.version else ''}"
    parts = urlsplit(source.url)
    private = f"{parts.netloc.rpartition('@')[0]}?{parts.query}"
    mark = "" if private == "?" else f"?{hashlib.sha256(private.encode()).hexdigest()[:32]}"
    return f"{source.where}{mark}"


@dataclass(frozen=True)
class ModelEntry:
    """One entry of MODELS, MODELS_FILE or a job's `models`."""

    source: Source
    #: Folder below the models folder: "checkpoints", "loras/styles". Checked: relative, no "..".
    target: str
    #: Plain file name there.
    name: str
    #: Hex, lower case; None when not given.
    sha256: str | None = None
    #: Bytes; None when not given.
    size: int | None = None
    #: A worker without it should not start (place all: exit code).
    required: bool = True
    #: Fetched when a workflow first names it.
    lazy: bool = False
    #: Read into the page cache while ComfyUI starts.
    preload: bool = False
    #: Sent to the host of the source alone; None takes HF_TOKEN for the Hub, nothing for a URL.
    token: SecretStr | None = field(default=None, repr=False)
    #: Where it was written, for errors: "MODELS entry 3", "models[0]".
    position: str = ""
    #: A job brought it: such a file may be evicted, and only public addresses are reached for it.
    from_job: bool = False
    #: That job came sealed: the file is wiped when the job ends, and after a crash at the next start.
    sealed: bool = False

    @property
    def is_repository(self) -> bool:
        """Return True if it means many files (settee.models.placing), and its path is their folder."""
        return isinstance(self.source, HubFile) and "*" in self.source.filename

    @property
    def path(self) -> PurePosixPath:
        """Return the place below the models folder: ``checkpoints/sd15.safetensors``."""
        return PurePosixPath(self.target) / self.name
