"""Who may use the agent: bearer tokens, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr


class Auth:
    """The tokens of the configuration. Without any, everybody is allowed: the agent then listens on loopback only."""

    def __init__(self, tokens: Iterable[SecretStr]) -> None:
        self._digests = [_digest(token.get_secret_value()) for token in tokens]

    @property
    def is_open(self) -> bool:
        """Whether no token is asked for."""
        return not self._digests

    def is_allowed(self, header: str | None) -> bool:
        """Whether an Authorization header (None: there was none) carries one of the tokens.

        How long it takes tells nothing of how much of a token was right, nor which token it was: digests of equal
        length are compared, with every token.
        """
        if self.is_open:
            return True
        scheme, _, token = (header or "").partition(" ")
        digest = _digest(token.strip(" "))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        # RFC 9110, 11.1: the scheme's name has no case.
        return any(matches) and scheme.lower() == "bearer"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


__all__ = ["Auth"]
