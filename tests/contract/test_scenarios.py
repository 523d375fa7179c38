"""Whole recorded scenarios, repeated: every request is answered, and every message sent, as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import recording
from tests.contract.conftest import place_models, small_checkpoint
from tests.contract.driver import Comfy, label
from tests.contract.replay import Replay
from tests.support.embedded import EmbeddedServer

SCENARIOS = ("prompt_ids", "validation_errors_since_0.33", "intermediate_output", "load_image", "new_endpoints")
_OF_THE_EDITOR = ("jobs",)
"""What the embedded server does not have: its editor's list of jobs."""
_MORE_THERE = ("/node_replacements", "/api/node_replacements")
"""Answers of which the embedded server has a part."""


Server = tuple[str, Path | None]
"""Where it is, and the folder that is /ComfyUI in recordings."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An embedded server whose sampler takes its time."""
    if os.environ.get("COMFY_URL"):
        pytest.skip("the real server is repeated at")
    folder = tmp_path_factory.mktemp("scenarios")
    place_models(folder)
    with EmbeddedServer(folder, faults={"step_slow": 0.01}) as server:
        yield server.url, server.root


@pytest.fixture
def real(comfy: Comfy) -> Server:
    if not comfy.is_real:
        pytest.skip("there is no real server")
    small_checkpoint(comfy)
    return comfy.url, comfy.input_dir and comfy.input_dir.parent


def answers(scenario: dict[str, Any]) -> list[Any]:
    """What was asked and answered, comparable."""
    found = []
    for event in scenario["events"]:
        if event["kind"] == "http":
            body = recording.neutral(event["response_body"])
            if event["path"] in _MORE_THERE:
                body = "SOME"
            elif event["path"].startswith("/history/"):
                body = {prompt_id: {**entry, "prompt": entry["prompt"][1:]} for prompt_id, entry in body.items()}
            found.append((event["method"], recording.neutral(event["path"]), event["status"], body))
    return found


def told(scenario: dict[str, Any]) -> list[str]:
    """The messages that do not depend on time, sorted: which of two nodes comes first is chance in ComfyUI."""
    labels = [label(event["msg"]) for event in scenario["events"] if event["kind"] == "ws"]
    return sorted(each for each in labels if not each.startswith(("status", "progress")))


def repeat(server: Server, name: str) -> None:
    recorded, (url, folder) = recording.load(name), server
    made = Replay(url, recorded, {str(folder): "/ComfyUI"} if folder else {}).run()
    assert answers(made) == answers(recorded)
    assert told(made) == told(recorded)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if recording.has(name)])
def test_the_embedded_server_repeats_a_scenario(own: Server, name: str) -> None:
    repeat(own, name)


@pytest.mark.parametrize("name", [name for name in (*SCENARIOS, *_OF_THE_EDITOR) if recording.has(name)])
def test_a_real_server_repeats_a_scenario(real: Server, name: str) -> None:
    repeat(real, name)
