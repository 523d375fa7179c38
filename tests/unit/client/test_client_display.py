"""What a person sees of jobs: rows on a terminal, lines in a file, and the table of changes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.client.display import Display
from settee.client.targets import Answer, Status
from settee.client.targets.runpod import read_envelope
from tests.support.clock import Clock
from tests.support.screen import Screen, Terminal
from tests.support.waiting import eventually

KSAMPLER = {"percent": 41.4, "node": "12", "node_type": "KSampler", "step": 8, "max": 20}


class Stage(contextlib.AbstractContextManager["Stage"]):
    """A display on a terminal, with a clock that stands still until it is told."""

    def __init__(self, columns: int = 80, encoding: str = "utf-8", **keys: Any) -> None:
        self.clock, self.terminal = Clock(), Terminal(columns, encoding=encoding)
        self.display = Display(self.terminal, width=columns, clock=self.clock, **keys)

    def __enter__(self) -> Stage:
        self.display.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.display.__exit__()
        assert self.terminal.screen.text[-1] == ""
        assert self.terminal.screen.cursor_shown

    def update(self, *args: Any, after_s: float = 1.0, **keys: Any) -> list[str]:
        """What the screen shows after this update."""
        self.clock.now += after_s
        self.display.update(*args, **keys)
        return self.shown()

    def shown(self) -> list[str]:
        """The next frame, without waiting for it."""
        if self.display._live is not None:
            self.display._live.refresh()
        rows = self.terminal.screen.text
        while rows and not rows[-1]:
            rows.pop()
        return rows


def running(job_id: str = "job-1", progress: dict[str, Any] | None = None) -> Answer:
    return Answer(job_id, Status.IN_PROGRESS, progress=KSAMPLER if progress is None else progress)


def queued(job_id: str = "job-1", position: int | None = None) -> Answer:
    return Answer(job_id, Status.IN_QUEUE, queue_position=position)


def ended(job_id: str = "job-1", status: Status = Status.COMPLETED, error: str | None = None) -> Answer:
    return Answer(job_id, status, error=error)


# --- one job ---------------------------------------------------------------------------------------------------


def test_a_row_says_how_the_job_stands() -> None:
    with Stage(columns=200) as stage:
        assert stage.update(queued()) == ["in queue · 0:00"]
        assert stage.update(queued(position=3)) == ["in queue, 3 ahead · 0:01"]
        assert stage.update(queued(position=0)) == ["in queue, next · 0:02"]
        assert stage.update(running(progress={"phase": "models", "message": "sd15 30%"}), after_s=60) == [
            "running · 1:02 · models · sd15 30%"
        ]
        assert stage.update(running()) == ["running ██████░░░░░░░░░░ 41% · step 8/20 · 1:03 · 12 KSampler"]
        stage.update(ended())
    assert stage.shown() == []


@pytest.mark.parametrize("columns", [1, 5, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("total", [1, 50])
def test_no_row_is_wider_than_the_terminal(columns: int, total: int) -> None:
    with Stage(columns=columns, total=total) as stage:
        for number in range(3):
            words = {**KSAMPLER, "node": "57:8", "node_type": "ネコ" * 50, "message": "👩‍🚀 very " * 50}
            stage.update(running(f"job-{number}-" + "名" * 40, words))
    assert stage.terminal.screen.widest <= columns


def test_a_narrow_terminal_shows_the_most_important_first() -> None:
    with Stage(columns=40) as stage:
        assert stage.update(running()) == ["running 41% · step 8/20 · 0:00 · 12 KSa…"]


def test_a_terminal_without_signs() -> None:
    with Stage(columns=100, encoding="ascii") as stage:
        assert stage.update(running(progress={**KSAMPLER, "node_type": "Größe"})) == [
            "running ######---------- 41% - step 8/20 - 0:00 - 12 Gr??e"
        ]


@pytest.mark.parametrize(("percent", "shown"), [(-5, "0%"), (1e8, "100%"), (99.4, "99%")])
def test_a_percentage_stays_one(percent: float, shown: str) -> None:
    with Stage(columns=200) as stage:
        assert f" {shown} · " in stage.update(running(progress={"percent": percent}))[0]


_JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*KSAMPLER, "phase", "message"]), _JSON), st.text(), st.integers(1, 200))
def test_nothing_that_a_worker_says_steers_the_terminal(progress: Any, job_id: str, columns: int) -> None:
    # The screen takes no control characters, and knows no other codes than the display's own.
    with Stage(columns=columns, total=2) as stage:
        answer = read_envelope({"id": "j", "status": "IN_PROGRESS", "output": progress}, name="n")
        stage.update(replace(answer, job_id=job_id))
        assert len(stage.update(queued(job_id + "2"))) == 3
        assert stage.terminal.screen.widest <= columns
    log = io.StringIO()
    lines = Display(log, is_terminal=False)
    lines.update(ended(job_id, Status.FAILED, job_id))
    assert log.getvalue().count("\n") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", log.getvalue())


# --- when it is drawn --------------------------------------------------------------------------------------------


def test_frames_come_by_themselves_and_time_goes_on() -> None:
    with Stage(columns=100) as stage:
        stage.display.update(running(progress={"percent": 1}))
        stage.display.update(running(progress={"percent": 99}))
        eventually(lambda: "99%" in stage.terminal.screen.text[0])
        stage.clock.now += 5
        eventually(lambda: "0:05" in stage.terminal.screen.text[0])
    assert stage.shown() == []


def test_lines_stand_above_the_rows() -> None:
    with Stage() as stage:
        stage.update(running(progress={}))
        stage.display.line("out/a.png\x1b[2J [bold]")
        stage.display.line("two places:\n  6 CLIPTextEncode\n  7 CLIPTextEncode")
        assert stage.shown() == [
            *("out/a.png[2J [bold]", "two places:", "  6 CLIPTextEncode", "  7 CLIPTextEncode"),
            "running · 0:00",
        ]


def test_hidden_rows_leave_the_terminal_to_others() -> None:
    with Stage() as stage:
        stage.update(running(progress={}))
        with stage.display.hidden():
            assert stage.shown() == []
            assert stage.terminal.screen.cursor_shown
            assert stage.update(running()) == []
        assert stage.update(running(progress={})) == ["running · 0:02"]


def test_rows_stay_away_until_the_last_one_is_through() -> None:
    with Stage() as stage:
        first, second = stage.display.hidden(), stage.display.hidden()
        with first:
            second.__enter__()
        assert stage.update(running()) == []
        second.__exit__(None, None, None)
        assert stage.update(running(progress={})) == ["running · 0:01"]


def test_a_stream_that_is_gone_fails_no_job() -> None:
    stream = io.StringIO()
    with Display(stream, is_terminal=True, width=80) as display:
        display.update(running())
        stream.close()
        display.update(ended())
        display.line("saved")


# --- many jobs ---------------------------------------------------------------------------------------------------


def test_many_jobs_have_a_summary() -> None:
    with Stage(columns=100, total=50, done=10) as stage:
        stage.update(queued("a"), "row 1")
        stage.update(running("b"), "row 2")
        stage.update(ended("c", Status.FAILED), "row 3")
        stage.display.lost("row 4")
        assert stage.update(ended("d"), "row 5") == [
            "13 of 50 done · 2 failed · 1 running · 1 in queue · 27% · 0:04",
            "row 1 · in queue · 0:03",
            "row 2 · running ██████░░░░░░░░░░ 41% · step 8/20 · 0:02 · 12 KSampler",
        ]
        for number in range(4):
            rows = stage.update(running(f"n{number}"))
        assert rows == ["13 of 50 done · 2 failed · 5 running · 1 in queue · 30% · 0:08"]
        for name in ("n0", "n1"):
            rows = stage.update(ended(name))
        assert [row.split(" · ")[0] for row in rows] == ["15 of 50 done", "row 1", "row 2", "n2", "n3"]


def test_a_job_fails_once_whoever_says_so() -> None:
    with Stage(total=9) as stage:
        for status in (Status.COMPLETED, Status.FAILED, Status.IN_PROGRESS):
            stage.update(ended(status.value, status))
            stage.display.lost(status.value)
        assert stage.update(queued("x"))[0] == "3 of 9 done · 3 failed · 1 in queue · 33% · 0:04"


def test_the_last_job_takes_the_summary_with_it() -> None:
    with Stage(total=2) as stage:
        stage.update(ended("a"))
        assert stage.update(ended("b")) == []


# --- not a terminal ----------------------------------------------------------------------------------------------


def test_a_file_gets_a_line_for_every_change_of_status() -> None:
    stream, clock = io.StringIO(), Clock()
    with Display(stream, clock=clock) as display:
        for answer in (queued(), queued(), queued(position=2), running(), running(progress={"percent": 50})):
            display.update(answer)
        clock.now += 62
        display.update(ended(status=Status.FAILED, error="a\x1b[31m node\nfailed [execution_failed]"))
        display.update(ended("job-2", Status.TIMED_OUT), "row 2")
        display.line("saved")
    assert stream.getvalue().splitlines() == [
        "job-1: in queue",
        "job-1: running",
        "job-1: failed after 1:02",
        "row 2: timed out after 0:00",
        "saved",
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_quiet_shows_only_what_it_is_told_to(is_terminal: bool) -> None:
    stream = io.StringIO()
    with Display(stream, is_terminal=is_terminal, width=80, quiet=True, total=2) as display:
        display.update(queued())
        display.update(running("job-2"))
        display.line("a warning")
        display.update(ended())
    assert stream.getvalue() == "a warning\n"


# --- a real terminal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 200])
def test_in_a_real_terminal(columns: int) -> None:
    script = f"""
        import sys, time
        from settee.client.display import Display
        from settee.client.targets import Answer, Status
        with Display(sys.stderr, total=3) as display:
            for number in range(2):
                display.update(Answer(f"job-{{number}}", Status.IN_PROGRESS, progress={KSAMPLER!r}))
            display.line("saved")
            time.sleep(0.3)
    """
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=terminal)
    os.close(terminal)
    written = b""
    # Reading ends with an error once nobody has the terminal open any more.
    try:
        while piece := os.read(control, 4096):
            written += piece
    except OSError:
        pass
    finally:
        os.close(control)
    assert process.wait(30) == 0
    screen = Screen(columns)
    screen.feed(written.decode().replace("\r\n", "\n"))
    assert [row for row in screen.text if row] == ["saved"]
    assert ("░" in written.decode()) is (columns == 200)
    assert 20 < screen.widest <= columns
