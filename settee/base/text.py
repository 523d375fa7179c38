"""Text from outside, made fit for a line, an error or a terminal; and large strings without a second copy."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHOWN = 80
#: Of the signs that we draw with.
_PLAIN = str.maketrans("·█░…", "-#-.")

#: Names that Windows gives to devices, with any suffix.
DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
#: Absolute paths of two parts and more, also behind a colon or file://, but not the path of an http URL.
_PATHS = re.compile(r"(?:(?<=file://)|(?<![\w/.]))(?:/[\w.+@~%-]+){2,}/?")
#: A terminal's escape sequences, ended or not, and control characters that are not white space.
_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*[\x07\x9c]?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
#: A traceback's head and frames, also those whose head is missing; the error that they lead to is not indented.
_FRAMES = re.compile(
    r"(?:Traceback \(most recent call last\):(?!\\n).*\n?|^[ \t]+File \".*\", line \d+.*\n?)(?:[ \t].*\n?|\n)*"
    # One within a value that was printed, as ComfyUI prints why it refuses a prompt.
    r"|Traceback \(most recent call last\):\\n(?:[ \t](?:(?!\\n).)*\\n)*"
    # PyTorch's, of its C++ code.
    r"|^frame #\d+: .*\n?",
    re.MULTILINE,
)


def printable(text: str, instead: str = " ", *, keep: str = "") -> str:
    """Replace every character that cannot be seen, but those to ``keep``: none is left that steers a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else instead for char in text)


def one_line(text: str, limit: int | None = None) -> str:
    """Return the text without line breaks and control characters, runs of white space as one space.

    What is longer than ``limit`` characters ends with an ellipsis.
    """
    text = " ".join(printable(text).split())
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"


def escaped(text: str) -> str:
    """Return the text with every control character as its escape: an id from outside must not forge a log line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def shown(name: object) -> str:
    """Return a name as an error shows it: quoted, escaped, shortened."""
    text = repr(name)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 + 1 :]}"


def for_terminal(text: str, *, most: int = 100_000) -> str:
    """Return one line of characters that can be seen.

    No control characters, no marks of direction, no joiners, about whose width terminals differ; a question mark for
    what Unicode does not know. White space becomes a single space. Of what is longer than ``most`` characters only the
    front is looked at.
    """
    import unicodedata  # the client's --help does without it

    kept = []
    for char in text[:most]:
        category = unicodedata.category(char)
        if category in ("Zs", "Zl", "Zp") or char in "\t\n\r\v\f\x85":
            kept.append(" ")
        elif category not in ("Cc", "Cs", "Cf"):
            kept.append(char if char.isprintable() else "?")
    return " ".join("".join(kept).split())


def encodable(text: str, encoding: str) -> str:
    """Return the text in characters that the stream can take: plain ones for our signs, else question marks."""
    try:
        text.encode(encoding)
    except UnicodeError:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def uncoloured(text: str) -> str:
    """Return the text without a terminal's codes: ComfyUI's log has colours since 0.33, on a terminal or not."""
    return _CODES.sub("", text)


def neutral(text: str) -> str:
    """Return the text without colours and tracebacks (their error stays), and with this host's paths cut to their
    last part."""
    text = _FRAMES.sub("", uncoloured(text))
    return _PATHS.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


def first_of(lines: Iterable[str], most: int) -> list[str]:
    """Return the first lines, and one that states how many more there are."""
    all_ = list(lines)
    return [*all_[:most], *([f"… and {len(all_) - most} more"] if len(all_) > most else [])]


def megabytes(size: float) -> str:
    """Return a size in millions of bytes, as RunPod counts them, or a small one in thousands."""
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else f"{size / 1e3:,.1f} kB"


def join_ascii(pieces: Iterable[str]) -> str:
    """Like ``"".join`` for an iterator of many pieces, in memory for the result plus one piece.

    ``"".join`` keeps every piece until the result is whole: twice the memory. CPython appends in place to a string
    without other references (``realloc``, which moves pages of large blocks instead of copying them); since 3.11
    only once the instruction has specialised itself, so let the pieces be small in comparison.
    """
    text = ""
    for piece in pieces:
        text += piece
    return text
