"""One artifact on its way out: where its bytes come from, and what the caller wants done to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from settee.base.errors import DeliveryError
from settee.base.job import Artifact, Kind, Output
from settee.base.text import join_ascii
from settee.delivery.blob import Blob, Digest, Prepared, Stream, open_file

if TYPE_CHECKING:
    from settee.delivery import Delivery

#: Formats with no room for a prompt beside what they are for.
_BARE = (".bmp", ".tga", ".hdr", ".txt", ".md", ".srt", ".vtt", ".csv", ".json", ".yaml", ".yml")


@dataclass
class Item:
    """An artifact and its place in the result. ``warnings`` fill up as it is prepared."""

    index: int
    artifact: Artifact
    delivery: Delivery
    warnings: list[str] = field(default_factory=list)
    #: What has been made or fetched already, held in memory.
    _kept: Prepared | None = None

    @property
    def is_text(self) -> bool:
        """Return True for text that a node showed, which goes back as text."""
        return self.artifact.kind is Kind.TEXT and self.artifact.content is not None

    @property
    def is_converted(self) -> bool:
        """Return True if its bytes, and so their number, are known only after work."""
        wanted, artifact = self.delivery.wanted.image_format, self.artifact
        return artifact.kind is Kind.IMAGE and wanted is not None and artifact.media_type != f"image/{wanted}"

    def prepare(self, *, keep: int = 0) -> Prepared:
        """Return the bytes to deliver. A converted image of up to ``keep`` bytes is remembered for the next call.

        Raises OutputMissing, DeliveryError, and what ``fetch`` raises.
        """
        if self._kept is not None:
            return self._kept
        self.warnings.clear()
        prepared = Prepared(self._open(), self.artifact.filename, self.artifact.media_type)
        try:
            is_image, strips = self.artifact.kind is Kind.IMAGE, self.delivery.wanted.strip_metadata
            if is_image and isinstance(prepared.content, Stream) and (strips or self.is_converted):
                prepared.content = Blob(b"".join(prepared.content.chunks()))
            if is_made := self.is_converted and (converted := self._converted(prepared)) is not None:
                prepared.content.close()
                prepared = converted
            if strips and not self.is_text:
                self._strip(prepared)
        except BaseException:
            prepared.content.close()
            raise
        if is_made and prepared.content.size <= keep:
            self._kept = prepared
        return prepared

    def forget(self) -> None:
        """Drop what ``prepare`` remembered."""
        self._kept = None

    def measure(self, *, keep: int = 0) -> int:
        """Return the number of bytes to deliver, found in the cheapest way: usually no byte is read.

        What had to be made or fetched for it is remembered for the next ``prepare``, if it is ``keep`` bytes at most.
        """
        with self.prepare(keep=keep) as prepared:
            if prepared.content.size > 0 or isinstance(prepared.content, Blob):
                return prepared.content.size
            size = 0
            chunks: list[bytes] = []
            for chunk in prepared.content.chunks():
                size += len(chunk)
                chunks.append(chunk)
                if size > keep:
                    chunks.clear()
            if size <= keep:
                self._kept = replace(prepared, content=Blob(b"".join(chunks)))
            return size

    def _open(self) -> Blob | Stream:
        if self.artifact.content is not None:
            return Blob(self.artifact.content)
        return open_file(self.artifact) if self.artifact.path else Stream(self._fetched, self.artifact.size)

    def _fetched(self) -> Iterator[bytes]:
        """Fetch it from ComfyUI. Raises DeliveryError when it has fewer or more bytes than were announced."""
        artifact, count = self.artifact, 0
        for chunk in self.delivery.fetch(artifact):
            self.delivery.check()
            count += len(chunk)
            yield chunk
        if artifact.size > 0 and count != artifact.size:
            raise DeliveryError(
                f"ComfyUI sent {count} of the {artifact.size} bytes of {artifact.filename}",
                details={"filename": artifact.filename, "node_id": artifact.node_id},
                retryable=True,
            )

    def _converted(self, prepared: Prepared) -> Prepared | None:
        """Return the image in the format asked for; None, with a warning, where it stays as it is."""
        from settee.delivery import convert

        wanted, name = self.delivery.wanted, prepared.filename
        assert isinstance(prepared.content, Blob)
        try:
            return convert.convert(prepared.content, name, wanted, self.delivery.settings.max_pixels, self.warnings)
        except convert.NotConverted as reason:
            self.warnings.append(f"{name} was not converted to {wanted.image_format}: it {reason}")
            return None

    def _strip(self, prepared: Prepared) -> None:
        from settee.comfyui.media import Unreadable
        from settee.delivery.strip import strip

        name = prepared.filename
        if PurePosixPath(name).suffix.lower() in _BARE:
            return
        try:
            stripped = strip(prepared.content) if isinstance(prepared.content, Blob) else None
        except Unreadable as error:
            # Handing it over with the prompt still in it is what the caller asked us not to do.
            raise DeliveryError(
                f"the metadata of {name} cannot be removed: it {error}",
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
        pixels = digest.pixels if self.artifact.kind is Kind.IMAGE else None
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


def encode(item: Item) -> Output:
    """Return the item as an Output of type base64 (text for shown text).

    Raises OutputMissing, DeliveryError, and what checking and fetching raise.
    """
    item.delivery.check()  # preparing may be a conversion
    digest = Digest(item.delivery.check)
    with item.prepare() as prepared:
        chunks = digest.through(prepared.content.chunks())
        if item.is_text:
            return item.output(prepared, digest, "text", data=b"".join(chunks).decode("utf-8", "replace"))
        import pybase64

        data = join_ascii(map(pybase64.b64encode_as_string, chunks))
        item.forget()
        return item.output(prepared, digest, "base64", data=data)
