"""A bare ComfyUI (the embedded one) as the client's target, for tests."""

from __future__ import annotations

from typing import Any

import requests

from settee.client.targets import Answer, Status
from settee.client.targets.comfy import Comfy
from tests.support.embedded import EmbeddedServer
from tests.support.rig import b64
from tests.support.waiting import eventually

Graph = dict[str, Any]


def sent(target: Comfy, graph: Graph, **asked: Any) -> Answer:
    return target.submit({"input": {"workflow": graph, **asked}})


def end(target: Comfy, answer: Answer, timeout_s: float = 60) -> Answer:
    """Ask without a pause until the job has ended."""

    def ended() -> Answer | None:
        now = answer if answer.status.is_terminal else target.status(answer.job_id)
        return now if now.status.is_terminal else None

    found = eventually(ended, timeout_s, "the end of the job")
    assert isinstance(found, Answer)
    return found


def ran(target: Comfy, graph: Graph, **asked: Any) -> Answer:
    return end(target, sent(target, graph, **asked))


def images(answer: Answer) -> list[dict[str, Any]]:
    """The images of a job that must have succeeded."""
    assert answer.status is Status.COMPLETED, answer
    assert answer.output is not None
    found = answer.output["images"]
    assert isinstance(found, list)
    return found


def fetched(item: dict[str, Any]) -> bytes:
    assert item["type"] == "url"
    answer = requests.get(item["data"], timeout=5)
    assert answer.status_code == 200
    assert len(answer.content) == item["size"]
    return answer.content


def running(target: Comfy, answer: Answer) -> Answer:
    """Wait until it runs, and says where."""

    def runs() -> Answer | None:
        now = target.status(answer.job_id)
        return now if now.status is Status.IN_PROGRESS and now.progress.get("node") else None

    found = eventually(runs, what="the job's start")
    assert isinstance(found, Answer)
    return found


def is_idle(server: EmbeddedServer) -> bool:
    queue = requests.get(f"{server.url}/queue", timeout=5).json()
    return not queue["queue_running"] and not queue["queue_pending"]


def loading(name: str, prefix: str = "loaded") -> Graph:
    """LoadImage "1" and SaveImage "9"."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def image(name: str, content: bytes) -> dict[str, str]:
    return {"name": name, "image": b64(content)}
