"""A job's data without its secrets, for what is kept of it. Pure.

Gone are the values under names that say so (``cancelToken``, ``api_key``, ``Authorization``), credentials and
signatures in addresses wherever they stand, all of a callback address but scheme and host, and values that are known
to be secret, as :func:`secret_values` finds them. Keys of objects (``minioKey``, ``key``) and numbers (``max_tokens``)
are not secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GONE = "[removed]"

#: Between the words of a name: apiKey, APIKey, api-key.
_PARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z]+")
#: In a name of lower-case words with _ between: a token at its end, or one of these anywhere.
_SECRET = re.compile(
    r"(?:^|_)(?:tokens?_?$|(?:secrets?|password|passwd|passphrase|pwd|credentials?|authorization|apikey|cookie|bearer"
    r"|signature|sig|jwt|(?:api|access|private|signing|encryption|auth|account|master|service|session)_keys?)(?:_|$))"
)
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)([^\s\"'<>\\]+)")
#: Scheme, and host with port, of an absolute address.
_HOST = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#\\]*@)?((?:\[[0-9A-Fa-f:.]+\]|[^/?#\\@:\[\]]+)(?::\d+)?)")
_PARAMETER = re.compile(r"([?&;])([^=&#;]+)=([^&#;]*)")
#: Parameters of signed addresses whose names do not say it.
_SIGNED = frozenset(("x-amz-credential", "x-amz-signature", "x-amz-security-token", "awsaccesskeyid", "sig", "key"))
_MIN_SECRET = 6
_MAX_DEPTH = 100


def without_secrets(value: Any, secrets: Iterable[str] = ()) -> Any:
    """A copy that JSON can hold. ``secrets`` shorter than 6 characters, which may be in any text, go as whole texts."""
    known = sorted(filter(None, {*secrets}), key=len, reverse=True)
    return _clean(value, known, _MAX_DEPTH, is_callback=False)


def secret_values(shown: Mapping[str, Any]) -> set[str]:
    """The secret texts of an envelope (Envelope.shown()), for wherever else they get: into the graph, say.

    They are the texts under a secret name, those of an override whose path has one, and a key of extra that is bound
    to such a path.
    """
    found = _texts(shown, is_secret=False)
    extra = shown["parameters"].get("extra") or {}
    placed = [(each["path"], each["value"]) for each in shown.get("workflowOverrides") or ()]
    placed += [(each["path"], extra.get(each["parameter"])) for each in shown.get("workflowParameters") or ()]
    for path, value in placed:
        if any(map(is_secret_name, path.split("."))) and _may_be_secret(value):
            found |= _texts(value)
    return found


def _texts(value: Any, *, is_secret: bool = True) -> set[str]:
    """Return the texts in a value, or those under secret names alone; not recursive, as a caller's JSON may be deep."""
    found, waiting = {""}, [(value, is_secret)]
    while waiting:
        each, is_secret = waiting.pop()
        if isinstance(each, Mapping):
            waiting += [
                (inner, is_secret or (is_secret_name(str(name)) and _may_be_secret(inner)))
                for name, inner in each.items()
            ]
        elif isinstance(each, (list, tuple)) and (not is_secret or _may_be_secret(each)):
            waiting += [(inner, is_secret) for inner in each]
        elif is_secret and isinstance(each, str):
            found.add(each)
    return found - {""}


def is_secret_name(name: str) -> bool:
    """Return True if a value under this name is a credential."""
    return _SECRET.search(_PARTS.sub("_", name).lower()) is not None


def _clean(value: Any, known: Sequence[str], depth: int, *, is_callback: bool) -> Any:
    if isinstance(value, str):
        return GONE if value in known else _clean_text(value, known, is_callback)
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


def _clean_text(text: str, known: Sequence[str], is_callback: bool) -> str:
    for secret in known:
        if len(secret) >= _MIN_SECRET:
            text = text.replace(secret, GONE)
    if is_callback:
        return _host_only(text)
    return _URL.sub(_clean_url, text) if "://" in text else text


def _host_only(address: str) -> str:
    """Some services have the secret in the path of their addresses; relative ones are nothing but path."""
    host = _HOST.match(address)
    shown, rest = (host[1] + host[2], address[host.end() :]) if host else ("", address)
    return shown + ("/" if host and rest else "") + (GONE if rest.strip("/") else "")


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
