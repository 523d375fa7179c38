"""What ComfyUI prints, line by line, its progress bars included."""

from __future__ import annotations

import io
import logging

import pytest

from settee.backends.comfy import console
from settee.backends.comfy.console import Console
from settee.base.text import neutral
from settee.comfyui.problems import sentence


class Chunks(io.RawIOBase):
    """A pipe that gives what it is given, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def lines(caplog: pytest.LogCaptureFixture, *pieces: bytes) -> list[str]:
    caplog.set_level(logging.INFO, "comfyui")
    caplog.clear()
    Console(lambda _: None).follow(io.BufferedReader(Chunks(*pieces)))
    return [record.message for record in caplog.records if record.name == "comfyui"]


def test_lines_come_whole_however_they_arrive(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, b"one\ntw", b"o\n", b"\nthree\r", b"\nend") == ["one", "two", "three", "end"]


def test_a_progress_bar_is_its_last_state(caplog: pytest.LogCaptureFixture) -> None:
    bar = [b"\r%3d%%|#|" % percent for percent in range(0, 101, 10)]
    assert lines(caplog, *bar, b"\nafter\n") == ["100%|#|", "after"]
    ended_by = [b"%3d%%\r" % percent for percent in range(0, 101, 10)]
    assert lines(caplog, *ended_by, b"\nafter\n") == ["100%", "after"]


def test_a_bar_that_takes_long_is_shown_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_BAR_S", 0.0)
    assert lines(caplog, b"\r 10%", b"\r 20%", b"\r100%\n") == ["10%", "20%", "100%"]


def test_a_line_without_end_comes_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    pieces = lines(caplog, *[b"x" * 8192] * 20, b"\n")
    assert sum(map(len, pieces)) == 20 * 8192
    assert max(map(len, pieces)) <= 2 * 64 * 1024


#: As ComfyUI 0.33 prints it, its own colours and level in front of the first line only.
FAILURE = (
    b"\x1b[32m[INFO]\x1b[0m got prompt\n"
    b"\x1b[1m\x1b[31m[ERROR]\x1b[0m !!! Exception during processing !!! no such file: '/opt/secret/models/x.bin'\n"
    b"\x1b[1m\x1b[31m[ERROR]\x1b[0m Traceback (most recent call last):\n"
    b'  File "/opt/ComfyUI/execution.py", line 545, in execute\n'
    b"    output_data, output_ui = await get_output_data(prompt_id, unique_id)\n"
    b"                             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
    b"\n"
    b"FileNotFoundError: no such file: '/opt/secret/models/x.bin'\n"
    b"\x1b[32m[INFO]\x1b[0m \x1b[32mPrompt executed in 0.02 seconds\x1b[0m\n"
)


def test_callers_see_what_was_printed_without_colours_tracebacks_and_paths() -> None:
    printed = Console(lambda _: None)
    printed.follow(io.BufferedReader(Chunks(FAILURE)))
    assert printed.tail() == [
        "[INFO] got prompt",
        "[ERROR] !!! Exception during processing !!! no such file: 'x.bin'",
        "[ERROR] FileNotFoundError: no such file: 'x.bin'",
        "[INFO] Prompt executed in 0.02 seconds",
    ]


def test_the_log_keeps_tracebacks_and_no_colours(caplog: pytest.LogCaptureFixture) -> None:
    logged = lines(caplog, FAILURE)
    assert '  File "/opt/ComfyUI/execution.py", line 545, in execute' in logged
    assert not any("\x1b" in line for line in logged)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (  # faulthandler's, of a crash
            'Fatal Python error: Aborted\nStack (most recent call first):\n  File "/a/b.py", line 3 in f\n',
            "Fatal Python error: Aborted\nStack (most recent call first):\n",
        ),
        ('  File "/a/b.py", line 3, in f\n    f()\nValueError: x', "ValueError: x"),  # its head was printed earlier
        (
            'loading failed: Traceback (most recent call last):\n  File "/a/b.py", line 3, in f\nOSError: gone\n',
            "loading failed: OSError: gone\n",
        ),
        (  # a value of several lines, printed in one
            "invalid prompt: {'details': 'bad: Traceback (most recent call last):"
            '\\n  File "/a/b.py", line 3\\n    f()\\nOSError: x\'}',
            "invalid prompt: {'details': 'bad: OSError: x'}",
        ),
        ("CUDA error\nframe #0: c10::Error + 0x9 (0x7f in /opt/torch/lib/libc10.so)\n", "CUDA error\n"),
        ("\x1b]0;a title\x07\x1b[1;31mred\x1b[0m\x1b[", "red"),
        ("\x9d0;a title\x9c\x9b1;31mred\x9b0m", "red"),  # the same codes in one byte
        ("Traceback (most recent call last):", ""),
        ("a list:\n  one\n  two", "a list:\n  one\n  two"),
    ],
)
def test_only_a_tracebacks_error_is_shown(text: str, shown: str) -> None:
    assert neutral(text) == shown


def test_a_refusal_says_why_without_the_traceback_around_it() -> None:
    """ComfyUI puts what a node's own check raises, or returns, into the details."""
    trace = (
        'Traceback (most recent call last):\n  File "/opt/nodes/mine.py", line 3, in VALIDATE_INPUTS\n    '
        + 300 * "f()"
    )
    error = {
        "message": "Custom validation failed for node",
        "details": f"x - bad: {trace}\nOSError: no '/opt/models/x'",
    }
    assert sentence(error) == "Custom validation failed for node: x - bad: OSError: no 'x'"
