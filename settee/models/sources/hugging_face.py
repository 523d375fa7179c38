"""Files of the Hugging Face Hub: where they are and what they should be, asked through huggingface_hub.

Token and endpoint are passed to the library at every call, so that it looks for neither. It returns size and ETag,
which for an LFS file is its sha256. A large file's address is a signed link to another host, which gets no token; a
small one's is the Hub itself, at the commit that was asked about.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from settee import __version__
from settee.base.errors import ConfigError, DownloadFailed, ModelMissing, SetteeError
from settee.base.settings import Settings
from settee.comfyui.problems import near_matches
from settee.models.entry import HubFile, ModelEntry
from settee.models.transfer.address import Address
from settee.net.retry import is_transient, retry_after_s

if TYPE_CHECKING:
    from types import ModuleType

_TIMEOUT_S = 10.0
#: For the User-Agent.
_NAMED = {"library_name": "settee", "library_version": __version__}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Hub:
    """Asks the Hub about a file, or the files of its revision.

    Raises ModelMissing when there is no such repository, revision or file, else DownloadFailed with what to do.
    """

    def __init__(self, entry: ModelEntry, file: HubFile, settings: Settings) -> None:
        self.file = file
        self.endpoint = settings.hf_endpoint.rstrip("/")
        token = entry.token or settings.hf_token
        #: False tells huggingface_hub to send none; None would have it look for one.
        self.token: str | bool = (token.get_secret_value().strip() if token else "") or False
        #: The token's name for errors.
        self.token_name = "the token of this entry" if entry.token else "HF_TOKEN"

    def address(self, commit: str | None = None) -> Address:
        """Return where the file is, at its revision or a commit of it."""
        from settee.net.http import origin  # urllib3, which a warm start does not need

        hub, revision = _library(), commit or self.file.revision
        try:
            url = hub.hf_hub_url(self.file.repo, self.file.filename, revision=revision, endpoint=self.endpoint)
            found = hub.get_hf_file_metadata(
                url, token=self.token, timeout=_TIMEOUT_S, endpoint=self.endpoint, **_NAMED
            )
        except _failures() as error:
            raise self.explained(error, revision) from error
        if not found.commit_hash or not found.etag:
            raise self._failed("this address does not answer as a Hub does: look at HF_ENDPOINT")
        commit = str(found.commit_hash)
        # From here on the commit's own address, wherever the branch points meanwhile.
        own = hub.hf_hub_url(self.file.repo, self.file.filename, revision=commit, endpoint=self.endpoint)
        location = urljoin(url, found.location)
        elsewhere = origin(location) != origin(self.endpoint)
        return Address(
            url=location if elsewhere else own,
            where=self.file.where,
            headers={} if elsewhere or not self.token else {"Authorization": f"Bearer {self.token}"},
            size=found.size,
            sha256=found.etag if _SHA256.fullmatch(found.etag) else None,
            validator=found.etag,
            renew=lambda: self.address(commit),
            # Taken when the Hub refuses plain HTTP: of more than 50 GB it does (MAX_HTTP_DOWNLOAD_SIZE in the library).
            by_library=(lambda folder: self.fetch(commit, folder)) if found.xet_file_data else None,
        )

    def files(self) -> tuple[str, list[list[Any]]]:
        """Return the commit of the revision, and (path, size, sha256 of an LFS file) of each of its files."""
        try:
            found = self._info(self.file.revision, files_metadata=True)
        except _failures() as error:
            raise self.explained(error, self.file.revision) from error
        if not found.sha:
            raise self._failed("this address does not answer as a Hub does: look at HF_ENDPOINT")
        files = [[str(one.rfilename), one.size, getattr(one.lfs, "sha256", None)] for one in found.siblings or ()]
        return found.sha, files

    def _info(self, revision: str, **options: bool) -> Any:
        api = _library().HfApi(endpoint=self.endpoint, token=self.token, **_NAMED)
        return api.model_info(self.file.repo, revision=revision, timeout=_TIMEOUT_S, **options)

    def fetch(self, commit: str, folder: Path) -> Path:
        """Have huggingface_hub download the file below ``folder``; return its path."""
        hub = _library()
        from huggingface_hub.errors import XetDownloadError

        failures: tuple[type[Exception], ...] = (*_failures(), XetDownloadError, RuntimeError)
        try:
            path: str = hub.hf_hub_download(
                self.file.repo,
                self.file.filename,
                revision=commit,
                endpoint=self.endpoint,
                token=self.token,
                local_dir=folder,
                # It looks there for a copy, and writes nothing.
                cache_dir=folder / ".cache" / "huggingface" / "hub",
                etag_timeout=_TIMEOUT_S,
                **_NAMED,
            )
        except failures as error:
            raise self.explained(error, commit) from error
        return Path(path)

    # --- errors ------------------------------------------------------------------------------------

    def explained(self, error: Exception, revision: str) -> SetteeError:
        """Return our error for the library's, whose own text may hold signed addresses."""
        import huggingface_hub.errors as kinds

        repo, status = self.file.repo, int(getattr(_response(error), "status_code", 0) or 0)
        words = str(_response(error).headers.get("X-Error-Message", "")) if status else ""
        if isinstance(error, kinds.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            # "Not in the cache either": hf_hub_download's error when a Hub did not answer.
            return self.explained(error.__cause__, revision)
        if isinstance(error, kinds.GatedRepoError):
            account = f"with the account of {self.token_name}" if self.token else "and set HF_TOKEN to that account's"
            page = f"{self.endpoint}/{repo}"
            return self._failed(f"{repo} is gated: accept its licence at {page} {account}", code="gated")
        if isinstance(error, kinds.EntryNotFoundError):
            near = self._near(revision)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            return self._missing(f"{repo} has no file {self.file.filename!r} at {revision}{hint}", "file", near=near)
        if isinstance(error, kinds.RevisionNotFoundError):
            return self._missing(
                f"{repo} has no revision {revision!r}: give a branch, a tag or a full commit hash", "revision"
            )
        if status == 401 and self.token and "Invalid credentials" in words:
            return self._failed(f"the Hub does not accept {self.token_name}: has it expired, or been revoked?", "token")
        if status == 401 or isinstance(error, kinds.RepositoryNotFoundError):
            return self._missing(
                f"the account of {self.token_name} sees no such repository: look at the name, or give it access"
                if self.token
                else "no such public repository: check the name, or set HF_TOKEN if it is private",
                "repository",
            )
        if isinstance(error, kinds.HFValidationError):
            return self._missing(f"{repo!r} is not a repository's name", "repository")
        if status == 403:
            forbidden = f"the Hub forbids it: has {self.token_name} the right to read repositories?"
            return self._failed("the Hub has disabled this repository" if "disabled" in words else forbidden)
        if is_transient(status):
            asked_s = retry_after_s(_response(error).headers.get("Retry-After"))
            wait = f": it wants you to wait {asked_s:.0f} s" if asked_s else ""
            return self._failed(f"the Hub answers HTTP {status}{wait}", retryable=True)
        return self._failed(f"the Hub answers HTTP {status}") if status else self._no_answer(error)

    def _no_answer(self, error: Exception) -> SetteeError:
        """Return the error for a failed request. Goes by names: the library's HTTP client will be another."""
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"UnsupportedProtocol", "InvalidURL"}:
            return ConfigError("HF_ENDPOINT is not the address of a Hub")
        for kinds, why in (
            ({"OfflineModeIsEnabled"}, "HF_HUB_OFFLINE is set: unset it to download models"),
            ({"UnicodeEncodeError", "LocalProtocolError"}, f"{self.token_name} has characters that no token has"),
            ({"TooManyRedirects"}, "the Hub redirects without end: look at HF_ENDPOINT"),
            ({"ImportError"}, "it is served by Xet alone: pip install hf_xet"),
        ):
            if names & kinds or ("ImportError" in kinds and "hf_xet" in str(error)):
                return self._failed(why)
        late = "TimeoutException" in names
        return self._failed(
            f"the Hub at {self.endpoint} {'did not answer in time' if late else 'cannot be reached'}", retryable=True
        )

    def _failed(self, why: str, code: str | None = None, *, retryable: bool = False) -> DownloadFailed:
        details = {"reason": code} if code else {}
        return DownloadFailed(f"{self.file.where}: {why}", details=details, retryable=retryable)

    def _missing(self, problem: str, reason: str, **more: Any) -> ModelMissing:
        return ModelMissing(f"{self.file.where}: {problem}", details={"reason": reason, **more})

    def _near(self, revision: str) -> list[str]:
        """Return up to three files of the repository that may have been meant; none when they cannot be listed."""
        try:
            siblings = self._info(revision).siblings
        except _failures():
            return []
        return near_matches(self.file.filename, [sibling.rfilename for sibling in siblings or ()])


def _library() -> ModuleType:
    """Import huggingface_hub, which takes a quarter of a second, and silence it."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # Version 2 asks huggingface.co for a list of agents at the first call otherwise, and keeps it in its cache.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    return huggingface_hub


def _failures() -> tuple[type[Exception], ...]:
    """Return what the library may raise: its own errors, and those of the HTTP client that its version uses."""
    from huggingface_hub import errors

    names = {kind.__module__.partition(".")[0] for kind in errors.HfHubHTTPError.__mro__}
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in names]
    theirs = [kind for client in clients for kind in (client.HTTPError, client.InvalidURL)]
    return (errors.HfHubHTTPError, errors.EntryNotFoundError, OSError, ValueError, ImportError, *theirs)


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)
