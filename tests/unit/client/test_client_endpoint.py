"""What an endpoint is made of, before anything is asked."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from settee.base.sealing import generate_key
from settee.client import Endpoint, Environment, UsageError
from settee.client.arguments import files_from, parameters_from, sets_from
from tests.support.file_server import FileServer

KEY = "rpa_SECRET"


def test_a_key_that_was_given_is_not_ignored_by_a_bare_comfyui() -> None:
    key = generate_key()
    for given in ({"encryption_key": key}, {"key_file": "key.txt"}):
        options: dict[str, Any] = {"comfy": True, "environment": Environment(), **given}
        with (
            pytest.raises(UsageError, match="cannot open sealed jobs"),
            Endpoint("http://127.0.0.1:1", **options) as it,
        ):
            _ = it.target
    # The environment's is for the workers that are reached from here.
    with Endpoint("http://127.0.0.1:1", comfy=True, environment=Environment(encryption_key=key)) as endpoint:
        assert endpoint.target.name == "ComfyUI at http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("given", "environments", "sent"),
    [(None, KEY, None), (KEY, KEY, f"Bearer {KEY}"), (KEY, None, f"Bearer {KEY}"), (None, None, None)],
)
def test_the_environments_key_is_runpods_own(given: str | None, environments: str | None, sent: str | None) -> None:
    with (
        FileServer(b"{}").running() as server,
        Endpoint(server.url, api_key=given, environment=Environment(api_key=environments)) as endpoint,
    ):
        endpoint.health()
        assert {asked.headers.get("Authorization") for asked in server.asked} == {sent}


def test_what_a_caller_gives() -> None:
    assert sets_from("6.text=a fox") == ("6.text=a fox",)
    assert sets_from({"6.text": "a fox", "3.steps": 20, "5.on": True}) == ("6.text=a fox", "3.steps=20", "5.on=true")
    assert parameters_from({"lora": "a.safetensors:0.5"}).lora == ("a.safetensors:0.5",)
    with pytest.raises(UsageError, match="give files as a list"):
        files_from("a.png")
    with pytest.raises(TypeError, match="unknown arguments: stepps"):
        parameters_from({"stepps": 3})


LOADER: dict[str, Any] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ({}, "the workflow has no nodes"),
        ({"1": [LOADER]}, "a node must be an object"),
        ({"1": {"inputs": {}}}, "the workflow: 1: the node has no class_type"),
        ({"input": {"workflow": {"1": LOADER}}}, "give the content of its 'input.workflow'"),
        ({"1": {**LOADER, "inputs": {"x": float("nan")}}}, r"the workflow: 1\.x holds NaN"),
        ({"1": {**LOADER, "inputs": {"image": Path("a.png")}}}, r"the workflow: 1\.image is not a JSON value"),
        ({1: LOADER}, "the node id 1 must be a string"),
        ({"nodes": [], "links": []}, "Export"),
    ],
)
def test_a_workflow_given_as_one_is_checked_as_a_file_is(workflow: Any, words: str) -> None:
    with (
        Endpoint("http://127.0.0.1:1", environment=Environment()) as endpoint,
        pytest.raises(UsageError, match=words),
    ):
        endpoint.prepare(workflow)


def test_what_a_run_has_left_in_a_workflow_is_not_sent_again() -> None:
    """A loader that finds an ``is_changed`` answers with the file that it read then."""
    given = MappingProxyType({"1": {**LOADER, "is_changed": ["x"]}})
    with Endpoint("http://127.0.0.1:1", environment=Environment()) as endpoint:
        assert endpoint.prepare(given).workflow == {"1": LOADER}
