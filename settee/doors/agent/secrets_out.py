"""A job's data without its secrets, for what is kept of it. Pure.

Gone are the values under names that say so (``cancelToken``, ``api_key``, ``Authorization``), credentials and
signatures in addresses wherever they stand, all of a callback address behind its path, and values that are known to
be secret. Keys of objects (``minioKey``, ``key``) and numbers (``max_tokens``) are none.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

GONE = "[removed]"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET = frozenset(
    (
        *("secret", "secrets", "password", "passwd", "passphrase", "pwd", "credential", "credentials"),
        *("authorization", "apikey", "cookie", "bearer", "signature", "sig", "jwt"),
    )
)
_TOKEN = frozenset(("token", "tokens"))
#: In front of "key" they make it one.
_OF_KEYS = frozenset(
    ("api", "access", "secret", "private", "signing", "encryption", "auth", "account", "master", "service", "session")
)
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)([^\s\"'<>\\]+)")
_PARAMETER = re.compile(r"([?&;])([^=&#;]+)=([^&#;]*)")
#: Parameters of signed addresses whose names do not say it.
_SIGNED = frozenset(("x-amz-credential", "x-amz-signature", "x-amz-security-token", "awsaccesskeyid", "sig", "key"))
_MIN_SECRET = 6
_MAX_DEPTH = 100


def without_secrets(value: Any, secrets: Iterable[str] = ()) -> Any:
    """A copy that JSON can hold. ``secrets`` shorter than 6 characters are not looked for: they are in any text."""
    known = sorted({secret for secret in secrets if len(secret) >= _MIN_SECRET}, key=len, reverse=True)
    return _clean(value, known, _MAX_DEPTH, is_callback=False)


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a credential."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if words[-1] in _TOKEN or _SECRET.intersection(words):
        return True
    return any(before in _OF_KEYS and word in ("key", "keys") for before, word in itertools.pairwise(words))


def _clean(value: Any, known: list[str], depth: int, *, is_callback: bool) -> Any:
    if isinstance(value, str):
        return _clean_text(value, known, is_callback)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        return {
            _clean_text(str(name), known, False): GONE
            if is_secret_name(str(name)) and _may_be_secret(each)
            else _clean(each, known, depth - 1, is_callback=is_callback or str(name).lower() == "callbacks")
            for name, each in value.items()
        }
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(each, known, depth - 1, is_callback=is_callback) for each in value]
    return _clean_text(str(value)[:1000], known, is_callback)


def _may_be_secret(value: Any) -> bool:
    """Numbers count tokens; None and "" hide nothing; a link of a graph is [node id, output number]."""
    is_link = isinstance(value, (list, tuple)) and len(value) == 2 and type(value[1]) is int
    return bool(value) and not isinstance(value, (bool, int, float)) and not is_link


def _clean_text(text: str, known: list[str], is_callback: bool) -> str:
    for secret in known:
        if secret in text:
            text = text.replace(secret, GONE)
    if is_callback:
        text = re.split(r"[?#]", text, maxsplit=1)[0]
    return _URL.sub(_clean_url, text) if "://" in text else text


def _clean_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    host, slash, tail = re.fullmatch(r"([^/?#]*)([/?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in host:
        host = f"{GONE}@{host.rsplit('@', 1)[1]}"
    return scheme + host + _PARAMETER.sub(_clean_parameter, slash + tail)


def _clean_parameter(match: re.Match[str]) -> str:
    separator, name, value = match.groups()
    if value and (name.lower() in _SIGNED or is_secret_name(name)):
        return f"{separator}{name}={GONE}"
    return match[0]
