"""Texts of any script as metadata of S3 objects."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

#: Metadata of one object, names included, as Amazon limits it.
METADATA_BYTES = 2048


def encode_metadata(values: Mapping[str, str]) -> dict[str, str]:
    """Object metadata for any text: percent-encoded UTF-8, so ``urllib.parse.unquote`` gives it back.

    S3 sends metadata as HTTP headers, which are ASCII. Spaces stay as they are inside a value. The whole keeps to
    Amazon's 2 KB: the longest values are cut, and end with "..." then.
    """
    texts = {name: value.encode("utf-8", "replace").decode("utf-8") for name, value in values.items()}
    budget = METADATA_BYTES - sum(len(name) for name in texts)
    encoded = {name: _percent(text) for name, text in texts.items()}
    shorten = sorted(encoded, key=lambda name: len(encoded[name]))
    for position, name in enumerate(shorten):
        share = max(0, budget) // (len(shorten) - position)
        if len(encoded[name]) > share:
            encoded[name] = _cut(texts[name], share)
        budget -= len(encoded[name])
    return encoded


def _percent(text: str) -> str:
    encoded = quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    # HTTP trims spaces at the ends of a header.
    inner = encoded.strip(" ")
    start = len(encoded) - len(encoded.lstrip(" "))
    return "%20" * start + inner + "%20" * (len(encoded) - len(inner) - start) if inner else "%20" * len(encoded)


def _cut(text: str, limit: int) -> str:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_percent(text[:middle])) + 3 <= limit else (low, middle - 1)
    return (_percent(text[:low]) + "...")[:limit]
