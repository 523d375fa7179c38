"""Progress of many transfers: what a terminal shows in the end, and what a log says."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.models.bars import Bars, amount, duration
from tests.support.clock import Clock
from tests.support.screen import Screen, Terminal

MB, GB = 10**6, 10**9


def on(terminal: Terminal, clock: Clock) -> Bars:
    """Bars there, without a thread of their own: nothing is drawn but what the test makes happen."""
    return Bars(terminal, size=terminal.size, clock=clock)


def end(bars: Bars) -> None:
    bars.__exit__(None, None, None)


# --- on a terminal -----------------------------------------------------------------------------------------


def test_a_bar_has_the_name_the_share_the_size_the_speed_and_the_time_left() -> None:
    terminal, clock = Terminal(), Clock()
    bars = on(terminal, clock)
    for second in range(5):
        clock.now = 100.0 + second
        bars.update("vae/x.safetensors", second * 100 * MB, GB)
    line = "vae/x.safetensors  ████░░░░░░░░   40%    0.40 of 1.00 GB   100 MB/s   0:06 left"
    assert terminal.screen.text == [line]
    end(bars)
    assert terminal.screen.text == [line, ""]
    assert terminal.screen.cursor_shown


def test_bars_stay_in_place_and_ended_ones_scroll_up() -> None:
    terminal, clock = Terminal(), Clock()
    bars = on(terminal, clock)
    for step in range(20):
        clock.now += 0.2
        bars.update("one", step * MB, 100 * MB)
        bars.update("two", step * MB, 200 * MB)
    clock.now += 0.2
    bars.finish("one", "downloaded in 4.0 s (25 MB/s)")
    clock.now += 0.2
    bars.update("two", 50 * MB, 200 * MB)
    first, second = terminal.screen.text
    assert first == "one: downloaded in 4.0 s (25 MB/s)"
    assert second.startswith("two  ")
    assert "25%" in second
    bars.finish("two", "failed: the server hung up")
    end(bars)
    assert terminal.screen.text == [first, "two: failed: the server hung up", ""]


def test_at_most_ten_frames_a_second_and_nothing_is_lost() -> None:
    terminal, clock = Terminal(), Clock()
    bars = on(terminal, clock)
    for number in range(1000):
        clock.now += 0.002
        bars.update("large", number * MB, GB)
        bars.finish(f"linked-{number}", "linked from the host cache")
    assert terminal.frames <= 21
    end(bars)
    assert [line.partition(":")[0] for line in terminal.screen.text[:1000]] == [f"linked-{n}" for n in range(1000)]
    assert terminal.screen.text[1000].startswith("large")


def test_more_files_than_lines() -> None:
    terminal, clock = Terminal(lines=6), Clock()
    bars = on(terminal, clock)
    for number in range(9):
        clock.now += 1
        bars.update(f"file-{number}", 1, 100)
    assert [line.split()[0] for line in terminal.screen.text] == ["file-0", "file-1", "file-2", "and"]
    assert terminal.screen.text[3] == "and 6 more"
    end(bars)


@pytest.mark.parametrize("columns", [1, 5, 20, 30, 45, 60, 80, 200])
def test_it_fits_any_width(columns: int) -> None:
    terminal, clock = Terminal(columns), Clock()
    bars = on(terminal, clock)
    for step in range(3):
        clock.now += 1
        bars.update("loras/日本語の長い名前のファイル－スタイル.safetensors", step * MB, 3 * GB)
        bars.update("unknown", step * MB, None)
    assert terminal.screen.widest <= columns
    assert len(terminal.screen.rows) == 2
    end(bars)


def test_names_cannot_steer_the_terminal() -> None:
    terminal, clock = Terminal(), Clock()
    bars = on(terminal, clock)
    bars.update("evil\x1b[2J\r\n\x9b1A", 1, 10)
    clock.now += 1
    bars.finish("evil\x1b[2J\r\n\x9b1A", "failed: \x1b]0;title\x07")
    end(bars)
    assert terminal.screen.text == ["evil[2J 1A: failed: ]0;title", ""]


def test_a_terminal_that_knows_ascii_only() -> None:
    terminal, clock = Terminal(encoding="ascii"), Clock()
    bars = on(terminal, clock)
    bars.update("modèle", 50, 100)
    assert terminal.screen.text[0].startswith("mod?le")
    assert "#" in terminal.screen.text[0]
    end(bars)


def test_a_stream_that_is_gone_fails_nobody() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Bars(Gone(), size=lambda: (80, 24)) as bars:
        bars.update("file", 1, 2)
        bars.finish("file", "downloaded")


def test_an_exception_leaves_the_last_bars_above_the_cursor() -> None:
    terminal, clock = Terminal(), Clock()
    bars = on(terminal, clock)

    def interrupted() -> None:
        with bars:
            bars.update("file", 1, 4)
            clock.now += 1
            bars.update("file", 2, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    screen = terminal.screen
    assert "50%" in screen.text[0]
    assert (screen.row, screen.column, screen.wraps, screen.cursor_shown) == (1, 0, True, True)


# --- speed -------------------------------------------------------------------------------------------------


def shown_speed(points: list[tuple[float, int]]) -> str:
    log: list[str] = []
    clock = Clock()
    bars = Bars(io.StringIO(), clock=clock, interval_s=0.0, log=log.append)
    for moment, done in points:
        clock.now = 100 + moment
        bars.update("file", done, 100 * GB)
    return next(part for part in log[-1].split(", ") if part.endswith("/s"))


def test_speed_is_that_of_the_last_seconds() -> None:
    assert shown_speed([(second, second * 100 * MB) for second in range(20)]) == "100 MB/s"
    slower = [(second, second * 100 * MB) for second in range(20)] + [(20 + n, (1900 + n * 10) * MB) for n in range(7)]
    assert shown_speed(slower) == "10 MB/s"


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


def test_a_resumed_download_did_not_fetch_what_it_had() -> None:
    assert shown_speed([(0, 50 * GB), (1, 50 * GB + 20 * MB)]) == "20 MB/s"


def test_a_download_that_begins_again_has_no_negative_speed() -> None:
    assert shown_speed([(0, 0), (2, GB), (3, 0), (4, 30 * MB)]) == "30 MB/s"


# --- in a log ----------------------------------------------------------------------------------------------


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


def test_a_stalled_transfer_keeps_telling() -> None:
    stream, clock = io.StringIO(), Clock()
    told = threading.Event()
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            told.set()

    with Bars(stream, clock=clock, interval_s=0.01, log=log) as bars:
        bars.update("file", MB, None)
        clock.now += 10
        assert told.wait(10)
    assert lines == ["file: size unknown", "file: 1 MB, 0 kB/s"]


# --- from many threads, on a real terminal -------------------------------------------------------------------


def test_many_threads_on_one_terminal() -> None:
    terminal = Terminal()

    def transfer(number: int) -> None:
        for step in range(200):
            bars.update(f"file-{number}", step, 200)
        bars.finish(f"file-{number}", "downloaded")

    with Bars(terminal, size=terminal.size) as bars:
        threads = [threading.Thread(target=transfer, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(terminal.screen.text) == ["", *(f"file-{number}: downloaded" for number in range(8))]


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
    assert screen.text[0] == "linked.safetensors: linked from the host cache"
    assert screen.text[1].startswith("checkpo")
    assert " 48%" in screen.text[1]
    assert len(screen.text) == 3
    assert screen.widest < 50
    assert (screen.wraps, screen.cursor_shown, screen.column) == (True, True, 0)
    assert b"\x1b[3" not in written  # no colours


# --- words -------------------------------------------------------------------------------------------------


@given(
    st.text(max_size=60), st.integers(0, 10**13), st.none() | st.integers(0, 10**13), st.integers(1, 200), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_a_bar_is_never_too_wide(name: str, done: int, total: int | None, columns: int, ascii_only: bool) -> None:
    terminal = Terminal(columns, encoding="ascii" if ascii_only else "utf-8")
    bars = on(terminal, Clock())
    bars.update(name, done, total)
    end(bars)
    assert terminal.screen.widest <= columns
    assert len(terminal.screen.rows) == 2


def test_names_are_shortened_in_their_middle() -> None:
    terminal = Terminal(24)
    bars = on(terminal, Clock())
    bars.update("diffusers/model-00001-of-00002.safetensors", 0, 100)
    assert terminal.screen.text[0] == "diffuser…etensors    0%"
    end(bars)


def test_units() -> None:
    assert [amount(size) for size in (0, 999_000, 84_200_000, 6_620_000_000)] == ["0 kB", "999 kB", "84 MB", "6.62 GB"]
    assert [duration(seconds) for seconds in (5.6, 750, 3723)] == ["0:06", "12:30", "1:02:03"]
