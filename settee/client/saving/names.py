"""What a file of a job is called here. The server's name is a hint: it may hold anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from settee.client.ledger import LEDGER
from settee.client.results import Output

#: Bytes of a name, its suffix included: eCryptfs takes 143, and "-1000", ".json" are still to be put behind it.
MOST_BYTES = 120
_MOST_HINT = 4096
_MOST_SUFFIX = 12

#: Media types of docs/api.md, for a hint without a suffix.
_SUFFIXES = {
    "image/png": "png",
    "image/apng": "apng",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "model/gltf-binary": "glb",
    "model/gltf+json": "gltf",
    "model/obj": "obj",
    "model/stl": "stl",
    "text/plain": "txt",
    "text/markdown": "md",
    "text/csv": "csv",
    "application/json": "json",
    "application/zip": "zip",
    "application/pdf": "pdf",
}
_WORDS = {
    "images": "image",
    "videos": "video",
    "audio": "audio",
    "models_3d": "model",
    "texts": "text",
    "files": "file",
}
#: What a desktop runs, or lets do as it likes, at a double click. None of it is what a workflow makes.
_RUN_ON_CLICK = re.compile(
    """app|appimage|application|bat|chm|cmd|com|command|cpl|desktop|dll|exe|gadget|hta|html?|jar|jse?|lnk|mht|mhtml
    |ms[ci]|msi[px]|pif|pkg|ps1|ps1xml|psm1|py[cw]?|reg|scf|scr|sct|sh|shb|shtml|svgz|sys|terminal|url|vb|vb[es]
    |webloc|workflow|ws[cfh]?|xhtml""",
    re.IGNORECASE | re.VERBOSE,
)
#: Names that Windows gives to devices, with any suffix.
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
#: Scripts and emoji are written with these two; every other invisible character only hides what a name says.
_JOINERS = "\u200c\u200d"


def plain_name(output: Output) -> str:
    """A name for the output: one part, that every file system takes and no shell, desktop or device takes amiss.

    Letters of every script stay. It has a suffix: the hint's, else the media type's; one that a desktop would run at
    a click gets ``.bin`` behind it.
    """
    hint = re.split(r"[/\\]", unicodedata.normalize("NFC", output.filename[-_MOST_HINT:]))[-1]
    name = "".join(char for char in hint if not _is_hidden(char))
    name = _trimmed(re.sub(r"\s+", " ", re.sub(r'[<>:"|?*]', "_", name)))
    stem, suffix = _split(name)
    stem = _trimmed(stem) or _WORDS.get(output.kind, "file")
    if not suffix:
        suffix = _suffix_of(output)
    elif _RUN_ON_CLICK.fullmatch(suffix):
        suffix += ".bin"
    if stem.split(".")[0].rstrip(" ").upper() in _DEVICES:
        stem = f"_{stem}"
    if f"{stem}.{suffix}".casefold() == LEDGER:
        stem = f"_{stem}"  # a file by this name would tell the next batch what is done
    return f"{_shortened(stem, MOST_BYTES - len(suffix) - 1)}.{suffix}"


def numbered(name: str) -> Iterator[str]:
    """``a.png``, ``a-2.png``, ``a-3.png`` and on."""
    stem, _, suffix = name.rpartition(".")
    yield name
    count = 2
    while True:
        yield f"{stem}-{count}.{suffix}"
        count += 1


def same(name: str) -> str:
    """Equal for names that some file system takes for one: macOS and Windows do not tell cases apart."""
    return unicodedata.normalize("NFC", name.casefold())


def _is_hidden(char: str) -> bool:
    """Controls, marks of direction, halves of surrogates, characters that Unicode says are none."""
    category = unicodedata.category(char)
    if category == "Cf":
        return char not in _JOINERS
    return category in ("Cc", "Cs", "Zl", "Zp") or ord(char) & 0xFFFE == 0xFFFE or "\ufdd0" <= char <= "\ufdef"


def _trimmed(text: str) -> str:
    """A dot in front hides a file, a dash makes it an option; Windows drops dots and spaces at the end."""
    return text.lstrip(" .-~" + _JOINERS).rstrip(" .")


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix; no suffix where what follows the last dot does not look like one."""
    stem, _, suffix = name.rpartition(".")
    if stem and suffix.isascii() and suffix.isalnum() and len(suffix) <= _MOST_SUFFIX:
        return stem, suffix
    return name, ""


def _suffix_of(output: Output) -> str:
    media_type = (output.media_type or "").split(";")[0].strip().lower()
    return _SUFFIXES.get(media_type) or ("txt" if output.type == "text" or output.kind == "texts" else "bin")


def _shortened(stem: str, most: int) -> str:
    """At most so many bytes, not in the middle of a character or before the marks that belong to one."""
    if len(stem.encode()) <= most:
        return stem
    cut = stem.encode()[:most].decode(errors="ignore")
    if unicodedata.combining(stem[len(cut)]) or stem[len(cut)] in _JOINERS:
        while cut and unicodedata.combining(cut[-1]):
            cut = cut[:-1]
        cut = cut[:-1]
    return cut.rstrip(" ." + _JOINERS) or "file"
