"""What ComfyUI prints, line by line, its progress bars included."""

from __future__ import annotations

import io
import logging

import pytest

from settee.comfy import console
from settee.comfy.console import Console


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
