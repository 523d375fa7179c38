"""The table of changes that is shown before a job is sent."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from settee.base.terminal import duration
from settee.base.text import encodable
from settee.client.display import table
from settee.client.inject import Change

WORKFLOW = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "Positive\x1b[31m"}},
    "57:8": {"class_type": "LoadImage", "inputs": {"image": "x"}, "_meta": {"title": "ネコの絵"}},
}
PROMPT = "a fox in the snow,\n\tbest quality, " * 20
CHANGES = [
    Change("6", "text", "overridden", "--prompt"),
    Change("3", "seed", 8423942394, "seed"),
    Change("57:8", "image", "57_8_photo.png", "--img"),
    Change("6", "text", PROMPT, "--set"),
]


def test_a_table_of_changes() -> None:
    shown = table(WORKFLOW, CHANGES, 100)
    assert shown.splitlines() == [
        '--set  6 CLIPTextEncode "Positive[31m"  text   a fox in the snow, best quality, a fox in the snow, …',
        "seed   3 KSampler                       seed   8423942394",
        '--img  57:8 LoadImage "ネコの絵"        image  57_8_photo.png',
    ]


@pytest.mark.parametrize("width", [1, 10, 30, 40, 60, 80, 200, 1000])
def test_a_table_fits(width: int) -> None:
    lines = table(WORKFLOW, CHANGES, width).splitlines()
    assert len(lines) == 3 or width == 1
    assert max(cell_len(line) for line in lines) <= width
    if width >= 60:
        assert all(word in "\n".join(lines) for word in ("8423942394", "57_8_photo", "a fox in the"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [("", '""'), ("  ", '" "'), (7.5, "7.5"), (True, "true"), (None, "null"), (["4", 0], '["4", 0]'), ("\ud800x", "x")],
)
def test_values_are_shown_as_they_are_written(value: Any, shown: str) -> None:
    assert table(WORKFLOW, [Change("3", "seed", value, "--set")], 80) == f"--set  3 KSampler  seed  {shown}"


def test_without_changes_there_is_no_table() -> None:
    assert table(WORKFLOW, [], 80) == ""


def test_a_table_where_there_are_no_signs() -> None:
    assert encodable("Größe · ██░…", "ascii") == "Gr??e - ##-."
    assert encodable("Größe · ██░…", "utf-8") == "Größe · ██░…"


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0:00"), (6.9, "0:06"), (750, "12:30"), (3723, "1:02:03")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
