"""Sockets: several clients, reconnecting, feature flags, previews."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.contract import recording
from tests.contract.driver import Binary, Comfy, Graph, empty_to_save, label, sampler_graph, step_of
from tests.support.embedded import EmbeddedServer

Slow = Callable[[int], Graph]
FLAGS = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})


def of_sampler(labels: list[str]) -> list[str]:
    """The labels from the sampler's start to the last one, where graphs before it do not matter."""
    return labels[labels.index("executing:3") :]


def without_status(labels: list[str]) -> list[str]:
    return [each for each in labels if not each.startswith("status")]


def test_each_step_is_told_in_the_recorded_order(comfy: Comfy, slow_graph: Slow) -> None:
    listener = comfy.listen()
    comfy.run(slow_graph(4), listener)
    got = of_sampler(listener.labels())
    want = [each for each in of_sampler(recording.labels("success_ksampler_preview")) if each != "BIN1"]
    got, want = recording.without_quick_steps(got), recording.without_quick_steps(want)
    steps = want.index("progress:4/4") + 1
    assert got[:steps] == want[:steps]


def test_two_clients_hear_their_own_prompts_and_every_status(comfy: Comfy, slow_graph: Slow) -> None:
    one, other = comfy.listen(), comfy.listen()
    slow = comfy.submit(slow_graph(20), one)
    one.wait_label("executing:3")
    fast = comfy.submit(empty_to_save(), other)
    one.wait_end(slow)
    other.wait_end(fast)
    one.wait_label("status:0+sid")
    assert without_status(other.labels()) == without_status(recording.labels("two_clients", "B"))
    assert "executed:2" not in one.labels()
    assert "executed:9" not in other.labels()
    other_status = [each for each in other.labels() if each.startswith("status")]
    assert other_status == [each for each in recording.labels("two_clients", "B") if each.startswith("status")]


def test_a_reconnect_is_told_the_node_that_runs(comfy: Comfy, slow_graph: Slow) -> None:
    listener = comfy.listen()
    prompt_id = comfy.submit(slow_graph(20), listener)
    listener.wait_for(lambda message: step_of(message) >= 2)
    listener.close()
    again = comfy.listen(listener.client_id)
    again.wait_end(prompt_id)
    want = recording.labels("reconnect_midrun", "A2")
    assert again.labels()[:2] == want[:2] == ["status:1+sid", "executing:3"]
    assert again.messages[1] == {"type": "executing", "data": {"node": "3"}}
    assert again.labels()[-5:] == want[-5:]


def test_a_reconnect_after_the_end_hears_nothing_of_it(comfy: Comfy, slow_graph: Slow) -> None:
    listener = comfy.listen()
    prompt_id = comfy.submit(slow_graph(8), listener)
    listener.wait_for(lambda message: label(message) == "progress:1/8")
    listener.close()
    comfy.wait_history(prompt_id)
    comfy.wait_idle()
    again = comfy.listen(listener.client_id)
    assert again.labels() == recording.labels("reconnect_after_end", "A2") == ["status:0+sid"]


def test_closing_the_older_of_two_sockets_deafens_the_newer(comfy: Comfy, slow_graph: Slow) -> None:
    first = comfy.listen()
    prompt_id = comfy.submit(slow_graph(20), first)
    first.wait_for(lambda message: step_of(message) >= 2)
    second = comfy.listen(first.client_id)
    second.wait_label("executing:3")
    assert second.labels()[:2] == ["status:1+sid", "executing:3"]
    second.wait_for(lambda message: label(message).startswith("progress:"))
    first.close()
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "success"
    comfy.run(empty_to_save(), client_id=first.client_id)
    assert "executing:None" not in second.labels()
    assert not second.closed


def test_feature_flags_are_answered_once_and_first_only(comfy: Comfy) -> None:
    listener = comfy.listen(first=FLAGS)
    listener.wait_label("feature_flags")
    listener.say(FLAGS)
    listener.say("no JSON")
    comfy.run(empty_to_save(), listener)
    assert listener.labels().count("feature_flags") == 1
    want = next(m for m in recording.messages("feature_flags_handshake", "A") if label(m) == "feature_flags")
    assert next(m for m in listener.messages if label(m) == "feature_flags") == want
    assert comfy.get("/features").json() == want["data"]  # type: ignore[call-overload]


def test_flags_after_another_message_are_ignored(comfy: Comfy) -> None:
    listener = comfy.listen(first="no JSON")
    listener.say('{"type": "hello"}')
    listener.say(FLAGS)
    comfy.run(empty_to_save(), listener)
    assert "feature_flags" not in listener.labels()


@pytest.fixture(scope="module")
def previewing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    if os.environ.get("COMFY_URL"):
        pytest.skip("only the embedded server can be started with previews")
    args = ["--preview-method", "auto", "--preview-size", "32", "--cache-none"]
    with EmbeddedServer(tmp_path_factory.mktemp("previewing"), args=args) as server:
        yield Comfy(server.url)


def preview_run(comfy: Comfy, first: str | None) -> list[Any]:
    listener = comfy.listen(first=first)
    comfy.run(sampler_graph(4, delay_ms=1), listener)
    comfy.close()
    return listener.messages


def test_previews_are_jpegs_after_each_step(previewing: Comfy) -> None:
    messages = preview_run(previewing, None)
    got = of_sampler([label(message) for message in messages])
    want = of_sampler(recording.labels("success_ksampler_preview"))
    assert got[: got.index("executing:9")] == want[: want.index("executing:8")]
    preview = next(message for message in messages if isinstance(message, Binary))
    assert preview.payload[:4] == b"\0\0\0\x01"
    with Image.open(BytesIO(preview.payload[4:])) as image:
        assert (image.format, image.size) == ("JPEG", (32, 32))


def test_previews_with_metadata_come_before_the_step(previewing: Comfy) -> None:
    messages = preview_run(previewing, FLAGS)
    got = of_sampler([label(message) for message in messages])
    want = of_sampler(recording.labels("success_ksampler_preview_metadata"))
    assert got[: got.index("executing:9")] == want[: want.index("executing:8")]
    preview = next(message for message in messages if isinstance(message, Binary))
    (length,) = struct.unpack(">I", preview.payload[:4])
    metadata = json.loads(preview.payload[4 : 4 + length])
    recorded = next(
        event["msg"]["decoded_metadata"]
        for event in recording.load("success_ksampler_preview_metadata")["events"]
        if event["kind"] == "ws" and "decoded_metadata" in event["msg"]
    )
    assert recording.neutral(metadata) == recording.neutral(recorded)
    assert preview.payload[4 + length : 6 + length] == b"\xff\xd8"
