"""The command's standard streams. Outputs are worth more than a line about them: a closed stream ends no job."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from typing import TextIO

from settee.base.terminal import Stream
from settee.base.text import printable

#: Why standard output takes no more; of this process.
_broken: list[OSError] = []


def prepare() -> None:
    """Open the null device for each stream that was closed at the start (``>&-``, a service): a file that we open could
    get its number. Call before anything is written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Not closed: it is what the name stands for from now on.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    _broken.clear()


def line(text: object) -> None:
    """Write a line to standard output. One that its reader closed (``| head``), or that is full, gets no more."""
    if _broken:
        return
    try:
        try:
            sys.stdout.write(f"{text}\n")
        except UnicodeEncodeError:
            # A file's name has bytes, whatever the stream's characters are.
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
        sys.stdout.flush()
    except OSError as error:
        _broken.append(error)
        _end(sys.stdout)


def close() -> None:
    """Write what is still buffered. What a closed reader does not take must not fail when Python ends, which would make
    the exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _end(stream)


def _end(stream: TextIO) -> None:
    """Let the null device take what is still in a stream's buffer."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def document(found: object, *, indent: int | None = None) -> None:
    """Write JSON to standard output, whatever characters and numbers are in it."""
    # A worker's NaN or infinity, which JSON cannot express, becomes null.
    known = json.loads(json.dumps(found), parse_constant=lambda _: None)
    text = json.dumps(known, ensure_ascii=False, indent=indent)
    with contextlib.suppress(UnicodeError):
        # A name beyond the locale's characters is nearly always UTF-8, as the document is.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8")
    try:
        text.encode("utf-8")
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeError, LookupError):
        text = json.dumps(json.loads(text), indent=indent)
    line(text)


def say(text: str) -> None:
    """Write lines to standard error. They may quote a worker, a server or a file: nothing in them steers a terminal."""
    Stream(sys.stderr).write(printable(f"{text}\n", keep="\n"))


def lost() -> str | None:
    """Return why standard output was not written completely; None when it was, or when its reader closed it."""
    if _broken and _broken[0].errno != errno.EPIPE:
        return f"standard output cannot be written: {_broken[0].strerror}"
    return None
