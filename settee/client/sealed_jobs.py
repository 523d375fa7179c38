"""Jobs that are encrypted on the way (docs/api.md, "Sealed jobs"): the key, sealing requests, opening answers."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settee.base import sealing
from settee.base.errors import ConfigError, SealBroken
from settee.client.client_errors import UsageError

log = logging.getLogger(__name__)

_MAX_KEY_FILE = 64 * 1024
_NEW_KEY = "make one with `settee-client keygen`"


class Sealer(sealing.Sealer):
    """Seals jobs with the first of its keys, and opens answers with any of them.

    ``keys``: Fernet keys, comma-separated, newest first. ``origin``: what to call where they come from. Raises
    UsageError for invalid keys, and where `cryptography` is not installed.
    """

    def __init__(self, keys: str, *, origin: str = "ENCRYPTION_KEY") -> None:
        try:
            import cryptography.fernet  # noqa: F401
        except ImportError as error:
            raise UsageError("sealed jobs need one more package: pip install 'settee[sealed]'") from error
        self.origin = origin
        try:
            super().__init__(keys)
        except ConfigError:
            # `from None`: its words are the worker's.
            raise UsageError(
                f"{origin} holds no Fernet key, or something in addition to one (a key is 32 bytes in url-safe base64, "
                f"44 characters): {_NEW_KEY}"
            ) from None

    def opened(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a sealed answer (``{"encrypted_output": token, …}``). Raises UsageError where the keys
        do not open it."""
        try:
            answer = self.open(output["encrypted_output"])
        except SealBroken:
            raise self._misfit("the answer does not open", "") from None
        if not isinstance(answer, dict):
            raise UsageError("the sealed answer holds no result: is it a settee worker's?")
        return answer

    def unseal(self, sealed: Path, target: sealing.Writes) -> None:
        """Write the content of a sealed file (``….sealed``, from S3) to ``target``; nothing when it does not open.

        Raises UsageError where the keys do not open it, and OSError.
        """
        with sealed.open("rb") as source:
            try:
                self.open_file(source, target)
            except SealBroken:
                raise self._misfit("it does not open", ", or fetch it again") from None

    def _misfit(self, what: str, otherwise: str) -> UsageError:
        return UsageError(f"{what} with the key of {self.origin}: give the key that the job was sealed with{otherwise}")


def read_key(path: Path) -> str:
    """Return the keys in a file, one a line or comma-separated, as a comma-separated string. ``#`` begins a comment
    line. Warns of a file that others may read."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_FILE + 1)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be read: {error.strerror or type(error).__name__}") from error
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        log.warning("%s holds a key, and others on this machine may read it: chmod 600 %s", path, path)
    if len(content) > _MAX_KEY_FILE:
        raise UsageError(f"{path} is too large for a key file: {_NEW_KEY}")
    # A key is ASCII; whatever else stands there is refused as one.
    lines = content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    return ",".join(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
