"""What may be shown to a caller of text that a program on this host printed."""

from __future__ import annotations

import re

#: Absolute paths of two parts and more, also behind a colon or file://, but not the path of an http URL.
_PATHS = re.compile(r"(?:(?<=file://)|(?<![\w/.]))(?:/[\w.+@~%-]+){2,}/?")
#: A terminal's escape sequences, ended or not, and control characters that are no white space.
_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*[\x07\x9c]?|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
#: A traceback's head and frames, also those whose head is not there; what they lead to, the error, is not indented.
_FRAMES = re.compile(
    r"(?:Traceback \(most recent call last\):(?!\\n).*\n?|^[ \t]+File \".*\", line \d+.*\n?)(?:[ \t].*\n?|\n)*"
    # One within a value that was printed, as ComfyUI prints why it refuses a prompt.
    r"|Traceback \(most recent call last\):\\n(?:[ \t](?:(?!\\n).)*\\n)*"
    # PyTorch's, of its C++ code.
    r"|^frame #\d+: .*\n?",
    re.MULTILINE,
)


def uncoloured(text: str) -> str:
    """Return the text without a terminal's codes: ComfyUI's log has colours since 0.33, on a terminal or not."""
    return _CODES.sub("", text)


def neutral(text: str) -> str:
    """Return the text without colours and tracebacks (their error stays), and with this host's paths cut to their
    last part."""
    text = _FRAMES.sub("", uncoloured(text))
    return _PATHS.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)
