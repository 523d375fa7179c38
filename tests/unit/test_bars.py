"""Progress of many transfers: what a terminal shows, and what a log says."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path

import pytest

from settee.base.text import encodable
from settee.models.bars import Bars, amount
from tests.support.clock import Clock
from tests.support.screen import Screen, Terminal

MB, GB = 10**6, 10**9


# --- on a terminal -----------------------------------------------------------------------------------------


def test_bars_go_and_the_lines_of_what_ended_stay() -> None:
    terminal = Terminal()
    with Bars(terminal) as bars:
        bars.finish("linked", "linked from the host cache")
        bars.update("one\x1b[2J\r\n", MB, 100 * MB)
        bars.update("two", MB, 200 * MB)
        bars.finish("one\x1b[2J\r\n", "failed: \x1b]0;title\x07")
    assert terminal.screen.text == ["linked: linked from the host cache", "one[2J : failed: ]0;title", ""]
    assert terminal.screen.cursor_shown


@pytest.mark.parametrize(("encoding", "row"), [("utf-8", "████████░░░░░░░░"), ("ascii", "########--------")])
def test_a_row_has_a_bar_what_is_known_and_the_name(encoding: str, row: str) -> None:
    clock = Clock()
    bars = Bars(Terminal(encoding=encoding), clock=clock)
    for second in range(6):
        clock.now = 100.0 + second
        bars.update("vae/x.safetensors", second * 100 * MB, GB)
    assert (
        encodable(bars.rows(80)[0], encoding) == f"{row}  50%, 0.50 of 1.00 GB, 100 MB/s, 0:05 left  vae/x.safetensors"
    )


def test_many_threads_on_one_terminal() -> None:
    terminal = Terminal()

    def transfer(number: int) -> None:
        for step in range(200):
            bars.update(f"file-{number}", step, 200)
        bars.finish(f"file-{number}", "downloaded")

    with Bars(terminal) as bars:
        threads = [threading.Thread(target=transfer, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(terminal.screen.text) == ["", *(f"file-{number}: downloaded" for number in range(8))]


def test_a_stream_that_is_gone_fails_nothing() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Bars(Gone()) as bars:
        bars.update("file", 1, 2)
        bars.finish("file", "downloaded")


SCRIPT = """
    import sys, time
    from settee.models.bars import Bars
    with Bars(sys.stderr) as bars:
        bars.finish("linked.safetensors", "linked from the host cache")
        for step in range(30):
            bars.update("checkpoints/a-model-with-quite-a-long-name.safetensors", step * 10**8, 6 * 10**9, "a mirror")
            time.sleep(0.01)
        raise SystemExit(3)
"""


def test_a_real_terminal() -> None:
    """What the stream says of itself: that it is a terminal, and its width; and how it is left."""
    terminal, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    with subprocess.Popen(command, stderr=slave, cwd=Path(__file__).parents[2]) as child:
        assert child.wait(30) == 3
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(terminal, 65536):
            written += chunk
    except OSError:  # Linux: the other side is closed
        pass
    os.close(terminal)
    screen = Screen(50)
    screen.feed(written.decode().replace("\r\n", "\n"))
    assert screen.text == ["linked.safetensors: linked from the host cache", ""]
    assert " 48%, 2.90 of 6.00 GB, " in written.decode()
    assert screen.widest <= 50
    assert (screen.wraps, screen.cursor_shown, screen.column) == (True, True, 0)
    assert b"\x1b[3" not in written  # no colours


# --- speed, and lines in a log -----------------------------------------------------------------------------


def shown_speed(points: list[tuple[float, int]]) -> str:
    log: list[str] = []
    clock = Clock()
    bars = Bars(io.StringIO(), clock=clock, interval_s=0.0, log=log.append)
    for moment, done in points:
        clock.now = 100 + moment
        bars.update("file", done, 100 * GB)
    return next(part for part in log[-1].split(", ") if part.endswith("/s"))


STEADY = [(second, second * 100 * MB) for second in range(20)]


@pytest.mark.parametrize(
    ("points", "speed"),
    [
        (STEADY, "100 MB/s"),
        ([*STEADY, *((20 + n, (1900 + n * 10) * MB) for n in range(7))], "10 MB/s"),
        # What a resumed download had counts for nothing, and one that begins again has no negative speed.
        ([(0, 50 * GB), (1, 50 * GB + 20 * MB)], "20 MB/s"),
        ([(0, 0), (2, GB), (3, 0), (4, 30 * MB)], "30 MB/s"),
    ],
)
def test_speed_is_that_of_the_last_seconds(points: list[tuple[float, int]], speed: str) -> None:
    assert shown_speed(points) == speed


def test_what_stalls_has_no_speed_and_no_time_left() -> None:
    log: list[str] = []
    clock = Clock()
    bars = Bars(io.StringIO(), clock=clock, log=log.append)
    for _ in range(8):
        clock.now += 1
        bars.update("stalled", int(clock.now) * 100 * MB, 100 * GB)
    clock.now += 6
    bars.update("other", 1, None)
    assert log[-2:] == ["other: size unknown", "stalled: 10%, 10.80 of 100.00 GB, 0 kB/s"]


def test_a_log_gets_a_line_at_the_start_now_and_then_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    bars = Bars(stream, clock=clock)
    for step in range(111):
        clock.now = 100 + step / 10
        bars.update("vae/x.safetensors", step * 10 * MB, 10 * GB, source="Hugging Face")
    bars.finish("vae/x.safetensors", "downloaded in 11.1 s (100 MB/s)")
    bars.finish("loras/y.safetensors", "linked from the host cache")
    assert stream.getvalue().splitlines() == [
        "vae/x.safetensors: 10.00 GB from Hugging Face",
        "vae/x.safetensors: 5%, 0.50 of 10.00 GB, 100 MB/s, 1:35 left",
        "vae/x.safetensors: 10%, 1.00 of 10.00 GB, 100 MB/s, 1:30 left",
        "vae/x.safetensors: downloaded in 11.1 s (100 MB/s)",
        "loras/y.safetensors: linked from the host cache",
    ]


def test_units() -> None:
    assert [amount(size) for size in (0, 999_000, 84_200_000, 6_620_000_000)] == ["0 kB", "999 kB", "84 MB", "6.62 GB"]
