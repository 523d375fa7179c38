"""Files as base64 in the result itself: one pass over the file, one copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from settee.base.text import join_ascii
from settee.delivery.blob import CHUNK, Blob, Digest
from settee.delivery.item import Item
from settee.job import Output


def encode(item: Item, check: Callable[[], None]) -> Output:
    """The item as an Output of type base64 (text for shown text).

    Raises OutputMissing, DeliveryError, what ``check`` raises between chunks, and what fetching raises.
    """
    check()  # preparing may be a conversion
    with item.prepare() as prepared:
        digest = Digest(check)
        if item.is_text:
            assert isinstance(prepared.content, Blob)
            content = b"".join(digest.through(prepared.content.chunks()))
            where = {"data": content.decode("utf-8", "replace")}
            return item.output(prepared, digest, "text", **where)
        chunks = digest.through(prepared.content.chunks())
        data = join_ascii(_encoded(chunks if isinstance(prepared.content, Blob) else _regrouped(chunks)))
        item.forget()
        return item.output(prepared, digest, "base64", data=data)


def _encoded(chunks: Iterator[bytes | memoryview]) -> Iterator[str]:
    import pybase64

    for chunk in chunks:
        yield pybase64.b64encode_as_string(chunk)


def _regrouped(chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Chunks of any length, regrouped into CHUNK bytes: base64 joins only at multiples of three."""
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        whole = len(rest) - len(rest) % CHUNK
        if whole:
            yield bytes(rest[:whole])
            del rest[:whole]
    yield bytes(rest)
