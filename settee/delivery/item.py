"""One artifact on its way out: where its bytes come from, and what the caller wants done to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from settee.base.errors import DeliveryError
from settee.base.job import Artifact, Job, Kind, Output
from settee.base.settings import Settings
from settee.base.text import join_ascii
from settee.delivery.blob import CHUNK, Blob, Digest, Size, Stream, image_size, open_file

Fetch = Callable[[Artifact], Iterator[bytes]]

#: Formats with no room for a prompt beside what they are for.
_BARE = (".bmp", ".tga", ".hdr", ".txt", ".md", ".srt", ".vtt", ".csv", ".json", ".yaml", ".yml")
_SAME = {"png": (".png",), "jpeg": (".jpg", ".jpeg", ".jfif"), "webp": (".webp",)}


@dataclass
class Prepared:
    """An artifact's bytes as they will be delivered. Use as a context manager: it may hold an open file."""

    content: Blob | Stream
    filename: str
    media_type: str
    pixels: Size | None = None

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *exc: object) -> None:
        self.content.close()


@dataclass
class Item:
    """An artifact, its place in the result and its delivery. ``warnings`` fill up as it is prepared."""

    index: int
    artifact: Artifact
    job: Job
    settings: Settings
    fetch: Fetch
    warnings: list[str] = field(default_factory=list)
    _kept: bytes | None = None
    _kept_name: tuple[str, str] = ("", "")

    @property
    def is_text(self) -> bool:
        """Return True for text that a node showed, which goes back as text."""
        return self.artifact.kind is Kind.TEXT and self.artifact.content is not None

    @property
    def is_converted(self) -> bool:
        """Return True if its bytes, and so their number, are known only after work."""
        wanted = self.job.request.delivery
        suffix = PurePosixPath(self.artifact.filename).suffix.lower()
        return (
            self.artifact.kind is Kind.IMAGE
            and wanted.image_format is not None
            and suffix not in _SAME[wanted.image_format]
        )

    def prepare(self, *, keep: int = 0) -> Prepared:
        """Return the bytes to deliver. A converted image of up to ``keep`` bytes is remembered for the next call.

        Raises OutputMissing, DeliveryError, and what ``fetch`` raises.
        """
        if self._kept is not None:
            blob = Blob([self._kept])
            return Prepared(blob, *self._kept_name, image_size(blob) if self.artifact.kind is Kind.IMAGE else None)
        self.warnings.clear()
        wanted = self.job.request.delivery
        artifact = self.artifact
        content = self._open()
        prepared = Prepared(content, artifact.filename, artifact.media_type)
        try:
            if (
                artifact.kind is Kind.IMAGE
                and isinstance(content, Stream)
                and (wanted.strip_metadata or self.is_converted)
            ):
                prepared.content = Blob([b"".join(content.chunks())])
            if self.is_converted:
                self._convert(prepared)
            if wanted.strip_metadata and not self.is_text:
                self._strip(prepared)
            if isinstance(prepared.content, Blob) and artifact.kind is Kind.IMAGE:
                prepared.pixels = image_size(prepared.content)
        except BaseException:
            prepared.content.close()
            raise
        if self.is_converted and isinstance(prepared.content, Blob) and 0 < prepared.content.size <= keep:
            self._kept = prepared.content.read_at(0, prepared.content.size)
            self._kept_name = prepared.filename, prepared.media_type
        return prepared

    def forget(self) -> None:
        """Drop what ``prepare`` remembered."""
        self._kept = None

    def measure(self, check: Callable[[], None], *, keep: int = 0) -> int:
        """Return the number of bytes to deliver, found in the cheapest way: usually no byte is read.

        What had to be made or fetched for it is remembered for the next ``prepare``, if it is ``keep`` bytes at most.
        """
        with self.prepare(keep=keep) as prepared:
            if prepared.content.size > 0 or isinstance(prepared.content, Blob):
                return prepared.content.size
            size = 0
            chunks: list[bytes] = []
            for chunk in prepared.content.chunks():
                check()
                size += len(chunk)
                chunks.append(chunk)
                if size > keep:
                    chunks.clear()
            if size <= keep:
                self._kept, self._kept_name = b"".join(chunks), (prepared.filename, prepared.media_type)
            return size

    def _open(self) -> Blob | Stream:
        if self.artifact.content is not None:
            return Blob([self.artifact.content])
        if self.artifact.path is not None:
            return open_file(self.artifact)
        return Stream(self.artifact, self.fetch)

    def _convert(self, prepared: Prepared) -> None:
        from settee.delivery.convert import Kept, convert

        wanted = self.job.request.delivery
        assert wanted.image_format is not None
        assert isinstance(prepared.content, Blob)
        try:
            done = convert(
                prepared.content,
                prepared.filename,
                image_format=wanted.image_format,
                quality=wanted.quality,
                strip_metadata=wanted.strip_metadata,
                max_pixels=self.settings.max_pixels,
            )
        except Kept as reason:
            self.warnings.append(f"{prepared.filename} was not converted to {wanted.image_format}: it {reason}")
            return
        prepared.content.close()
        prepared.content, prepared.filename, prepared.media_type = done.blob, done.filename, done.media_type
        self.warnings += done.warnings

    def _strip(self, prepared: Prepared) -> None:
        from settee.delivery.strip import Unreadable, strip

        name = prepared.filename
        if PurePosixPath(name).suffix.lower() in _BARE:
            return
        try:
            stripped = strip(prepared.content) if isinstance(prepared.content, Blob) else None
        except Unreadable as error:
            # Handing it over with the prompt still in it is what the caller asked us not to do.
            raise DeliveryError(
                f"the metadata of {name} cannot be removed: {error}",
                details={"filename": name, "node_id": self.artifact.node_id},
            ) from error
        if stripped is None:
            self.warnings.append(
                f"the metadata of {name} was not removed: strip_metadata works on PNG, JPEG and WEBP images"
            )
        else:
            prepared.content = stripped

    def output(self, prepared: Prepared, digest: Digest, type: str, **where: str) -> Output:
        """Return the Output for its bytes, which all went through ``digest``; ``where`` is ``data`` or ``url``."""
        pixels = prepared.pixels
        if pixels is None and self.artifact.kind is Kind.IMAGE:
            pixels = image_size(Blob([digest.head]))
        width, height = pixels or (None, None)
        return Output(
            filename=prepared.filename,
            subfolder=self.artifact.subfolder,
            comfy_subfolder=self.artifact.comfy_subfolder,
            kind=self.artifact.kind,
            node_id=self.artifact.node_id,
            media_type=prepared.media_type,
            size=digest.size,
            sha256=digest.sha256,
            type=type,
            width=width,
            height=height,
            **where,
        )


def encode(item: Item, check: Callable[[], None]) -> Output:
    """Return the item as an Output of type base64 (text for shown text).

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
    """Regroup chunks of any length into CHUNK bytes: base64 joins only at multiples of three."""
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        whole = len(rest) - len(rest) % CHUNK
        if whole:
            yield bytes(rest[:whole])
            del rest[:whole]
    yield bytes(rest)
