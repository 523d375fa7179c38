"""A job's outputs: as the worker's result lists them, and the names they get here. The server's name is only a hint."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from settee.base.text import DEVICES
from settee.client.client_errors import JobFailed
from settee.comfyui.media import suffix_of

if TYPE_CHECKING:
    from settee.base.sealing import Writes

#: Outputs of every kind come in these lists of a worker's result, by what a file is.
KINDS = ("images", "videos", "audio", "models_3d", "texts", "files")
#: Writes what a sealed file holds. Raises ClientError, OSError.
Unseal: TypeAlias = "Callable[[Path, Writes], None]"


@dataclass(frozen=True)
class Output:
    """One file that a job made. Everything but ``data`` is the worker's statement, and only a hint."""

    kind: str
    filename: str
    #: ``base64``; ``s3_url`` and ``url``: to be fetched; ``text``; ``path``: on the worker's network volume. Any other
    #: is an output that cannot be saved, unlike the others.
    type: str
    data: str = field(repr=False)
    node_id: str | None = None
    media_type: str | None = None
    #: Bytes.
    size: int | None = None
    #: Hex.
    sha256: str | None = None


def outputs_of(output: Mapping[str, Any], job_id: str | None = None) -> tuple[Output, ...]:
    """Return the outputs in a worker's result, in its order. Raises JobFailed for an invalid one."""
    found = []
    for kind in KINDS:
        items = output.get(kind) or []
        for item in items if isinstance(items, list) else [items]:
            if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("data", "type")):
                raise JobFailed(
                    f"the worker's result lists something under {kind!r} that is not an output: is it a settee worker?",
                    job_id=job_id,
                )
            hints = {key: item[key] for key in ("node_id", "media_type", "sha256") if isinstance(item.get(key), str)}
            size = item["size"] if type(item.get("size")) is int else None
            name = str(item.get("filename") or "")
            found.append(Output(kind, name, type=item["type"], data=item["data"], size=size, **hints))
    return tuple(found)


#: The ledger of a batch, in the folder of its results: no output may take its name.
LEDGER = "settee-batch.jsonl"
#: Bytes of a name, its suffix included: eCryptfs takes 143, and "-1000", ".json" are still to be put behind it.
MAX_BYTES = 120
_MAX_HINT = 4096
_MAX_SUFFIX = 12

#: What a desktop runs, or lets do as it likes, at a double click. None of it is what a workflow makes.
_RUN_ON_CLICK = re.compile(
    """app|appimage|application|bat|chm|cmd|com|command|cpl|desktop|dll|exe|gadget|hta|html?|jar|jse?|lnk|mht|mhtml
    |ms[ci]|msi[px]|pif|pkg|ps1|ps1xml|psm1|py[cw]?|reg|scf|scr|sct|sh|shb|shtml|svgz|sys|terminal|url|vb|vb[es]
    |webloc|workflow|ws[cfh]?|xhtml""",
    re.IGNORECASE | re.VERBOSE,
)
#: Scripts and emoji are written with these two; every other invisible character only hides part of a name.
_JOINERS = "\u200c\u200d"


def plain_name(output: Output) -> str:
    """Return a name for the output: one part, that every file system takes and no shell, desktop or device misreads.

    Letters of every script stay. It has a suffix: the hint's, else the media type's; one that a desktop would run at a
    click gets ``.bin`` behind it.
    """
    hint = re.split(r"[/\\]", unicodedata.normalize("NFC", output.filename[-_MAX_HINT:]))[-1]
    name = "".join(char for char in hint if not _is_hidden(char))
    name = _trimmed(re.sub(r"\s+", " ", re.sub(r'[<>:"|?*]', "_", name)))
    stem, suffix = _split(name)
    stem = _trimmed(stem) or output.kind.split("_")[0].removesuffix("s") or "file"
    if not suffix:
        is_text = output.type == "text" or output.kind == "texts"
        suffix = suffix_of(output.media_type or "") or ("txt" if is_text else "bin")
    elif _RUN_ON_CLICK.fullmatch(suffix):
        suffix += ".bin"
    if stem.split(".")[0].rstrip(" ").upper() in DEVICES:
        stem = f"_{stem}"
    if f"{stem}.{suffix}".casefold() == LEDGER:
        stem = f"_{stem}"  # the next batch would read a file by this name
    room = MAX_BYTES - len(suffix) - 1
    if len(stem.encode()) > room:  # cut, not in the middle of a character
        stem = stem.encode()[:room].decode(errors="ignore").rstrip(" ." + _JOINERS) or "file"
    return f"{stem}.{suffix}"


def numbered(name: str) -> Iterator[str]:
    """Yield ``a.png``, ``a-2.png``, ``a-3.png`` and on."""
    stem, _, suffix = name.rpartition(".")
    yield name
    yield from (f"{stem}-{number}.{suffix}" for number in itertools.count(2))


def same(name: str) -> str:
    """Return equal strings for names that some file system takes for one: macOS and Windows ignore case."""
    return unicodedata.normalize("NFC", name.casefold())


def _is_hidden(char: str) -> bool:
    """Controls, marks of direction, halves of surrogates, characters that Unicode says are none."""
    category = unicodedata.category(char)
    if category == "Cf":
        return char not in _JOINERS
    return category in ("Cc", "Cs", "Zl", "Zp") or ord(char) & 0xFFFE == 0xFFFE or "\ufdd0" <= char <= "\ufdef"


def _trimmed(text: str) -> str:
    """Return the name without a dot in front, which hides a file, a dash, which makes it an option, and dots and spaces
    at the end, which Windows drops."""
    return text.lstrip(" .-~" + _JOINERS).rstrip(" .")


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix; no suffix where what follows the last dot does not look like one."""
    stem, _, suffix = name.rpartition(".")
    if stem and suffix.isascii() and suffix.isalnum() and len(suffix) <= _MAX_SUFFIX:
        return stem, suffix
    return name, ""
