"""Log lines for a person and for a machine."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from settee.base import logs
from settee.base.settings import Settings

OURS = ("settee", "comfyui", *logs.QUIET)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in OURS}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_text_lines_carry_the_job() -> None:
    stream = io.StringIO()
    logs.setup(Settings(), stream)
    with logs.job("job-7"):
        logging.getLogger("settee.engine").info("took %d ms", 12)
    logging.getLogger("settee.engine").info("idle")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("INFO settee.engine [job-7] took 12 ms")
    assert second.endswith("INFO settee.engine idle")


def test_a_door_spells_our_lines_and_nobody_elses() -> None:
    stream = io.StringIO()
    logs.setup(Settings(), stream, spelled=str.upper)
    logging.getLogger("settee.engine").info("look at %s", "a")
    logging.getLogger("comfyui").info("look at %s", "b")
    assert [line.partition(" INFO ")[2] for line in stream.getvalue().splitlines()] == [
        "settee.engine LOOK AT A",
        "comfyui look at b",
    ]


def test_json_lines_are_objects() -> None:
    stream = io.StringIO()
    logs.setup(Settings(log_format="json"), stream)
    with logs.job("job-7"):
        try:
            raise ValueError("broken\nin two")
        except ValueError:
            logging.getLogger("settee.engine").exception("oh é")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["job_id"] == "job-7"
    assert entry["level"] == "ERROR"
    assert entry["logger"] == "settee.engine"
    assert entry["message"] == "oh é"
    assert "ValueError: broken" in entry["exception"]


def test_names_from_outside_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    logs.setup(Settings(), stream)
    with logs.job("x\n12:00:00 ERROR settee all is lost\x1b[2J"):
        logging.getLogger("settee").info("a name: %s", "y\r\nz")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_the_level_is_ours_and_libraries_stay_quiet() -> None:
    stream = io.StringIO()
    logs.setup(Settings(log_level="DEBUG"), stream)
    logs.setup(Settings(log_level="DEBUG"), stream)
    logging.getLogger("settee.x").debug("ours")
    logging.getLogger("comfyui").debug("prompt")
    logging.getLogger("asyncio").info("theirs")
    logging.getLogger("asyncio").warning("theirs, loud")
    logging.getLogger("urllib3.connectionpool").warning("Retrying after a reset: /bucket/key?X-Amz-Signature=abc")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["ours", "prompt", "loud"]
