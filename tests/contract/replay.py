"""Repeat recorded scenarios at another ComfyUI, and record what that one does:
``COMFY_URL=… python -m tests.contract.replay FROM TO [--name SCENARIO…] [--path /where/it/is=/ComfyUI…]``.

FROM is a folder of recordings (their requests are the script), TO gets one file of the same name for each. Of a new
scenario a script of the requests alone is enough.
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import io
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from settee.embedded.broadcast import PREVIEW_WITH_METADATA
from tests.contract.driver import Binary, Listener, Message, label

PATIENCE_S = 8.0
"""How long to wait for messages that the other server sent, before the next request."""
_MILESTONES = ("executed", "executing:None", "execution_", "status", "progress:1/")
_HEADERS = ("Content-", "Etag", "Last-Modified", "Accept-Ranges", "Allow", "Transfer-Encoding")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32}")
_UPLOAD = re.compile(r"multipart: (?P<form>\{.*?\}) (?P<field>\w+)=<(?P<size>\d+) bytes, filename='(?P<name>.*)'>")
_SOURCE_LINE = re.compile(r'(  File "[^\n]*\n).*', re.DOTALL)


class Replay:
    """One scenario on its way: the script's ids are replaced by those of this server as they become known."""

    def __init__(self, url: str, script: dict[str, Any], paths: dict[str, str]) -> None:
        self.events: list[dict[str, Any]] = []
        self._url, self._script, self._paths = url, script, paths
        self._started = time.monotonic()
        self._ids: dict[str, str] = {}
        self._listeners: dict[str, Listener] = {}
        self._due: dict[str, collections.Counter[str]] = {}
        self._session = requests.Session()
        self._is_brief = any(e.get("msg") == {"type": "progress_state"} for e in script["events"])

    def run(self) -> dict[str, Any]:
        """Do everything that the script did, with nothing cached at the start."""
        self._session.post(f"{self._url}/free", json={"free_memory": True}, timeout=60)
        time.sleep(0.3)  # ComfyUI does it soon, and does not tell when
        for event in self._script["events"]:
            getattr(self, "_" + event["kind"])(event)
        self._wait()
        for listener in self._listeners.values():
            listener.close()
        version = self._session.get(f"{self._url}/system_stats", timeout=60).json()["system"]["comfyui_version"]
        about = {"scenario": self._script["scenario"], "doc": self._script["doc"], "server": {"version": version}}
        return {**about, "recorded": time.strftime("%Y-%m-%d"), "events": self.events}

    def _add(self, kind: str, **more: Any) -> None:
        self.events.append(self._event(kind, **more))

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"t": round(time.monotonic() - self._started, 3), "kind": kind, **self._neutral(more)}

    def _note(self, event: dict[str, Any]) -> None:
        self._wait()
        self._add("note", text=event["text"])

    def _ws_open(self, event: dict[str, Any]) -> None:
        self._wait()
        name, (_, _, old) = event["client"], event["url"].partition("clientId=")
        client_id = self._ids.setdefault(old, uuid.uuid4().hex) if old else None
        query = f"?clientId={client_id}" if client_id else ""
        self._add("ws_open", client=name, url=f"/ws{query}")
        first = next((e for e in self._script["events"] if e["kind"] == "ws_send" and e["client"] == name), None)
        if first is not None:
            self._add("ws_send", client=name, msg=first["msg"])
        self._listeners[name] = Listener(
            self._url.replace("http", "ws", 1) + "/ws",
            client_id,
            first and json.dumps(first["msg"]),
            lambda message: self._add("ws", client=name, msg=self._recorded(message)),
        )
        self._due[name] = collections.Counter()

    def _ws_send(self, event: dict[str, Any]) -> None:
        """Sent when the socket was opened."""

    def _ws_close(self, event: dict[str, Any]) -> None:
        self._wait()
        self._listeners.pop(event["client"]).close()
        self._add("ws_close", client=event["client"])

    def _ws(self, event: dict[str, Any]) -> None:
        message = event["msg"]
        if "binary" not in message and label(message).startswith(_MILESTONES):
            self._due[event["client"]][label(message)] += 1

    def _wait(self) -> None:
        """Wait for what the script had received by now; another generation may never send some of it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(self._missing(name) for name in self._listeners):
            time.sleep(0.005)
        for name in self._listeners:
            self._due[name] -= self._missing(name)

    def _missing(self, name: str) -> collections.Counter[str]:
        return self._due[name] - collections.Counter(self._listeners[name].labels())

    def _http(self, event: dict[str, Any]) -> None:
        self._wait()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            asked_at = len(self.events)
            answer, body = self._ask(event)
            if body != {} or event.get("response_body") in ({}, None) or time.monotonic() > deadline:
                break  # not a history that the script read later
            time.sleep(0.01)
        self._learn(event.get("response_body"), body)
        made = self._event(
            "http",
            method=event["method"],
            path=self._mine(event["path"]),
            request_body=self._mine(event["request_body"]),
            request_headers=event.get("request_headers"),
            status=answer.status_code,
            response_headers={name: value for name, value in answer.headers.items() if name.startswith(_HEADERS)},
            response_body=body,
        )
        self.events.insert(asked_at, made)  # before the messages that it led to

    def _ask(self, event: dict[str, Any]) -> tuple[requests.Response, Any]:
        sent: dict[str, Any] = {"headers": event.get("request_headers")}
        body = self._mine(event["request_body"])
        upload = _UPLOAD.match(body) if isinstance(body, str) else None
        if upload:
            content = _content(upload["name"], int(upload["size"]), event)
            sent |= {"data": ast.literal_eval(upload["form"])}
            sent |= {"files": {upload["field"]: (upload["name"], content, "image/png")}}
        elif isinstance(body, str):
            sent |= {"data": body.encode()}
        elif body is not None:
            sent |= {"json": body}
        url = self._url + self._mine(event["path"])
        answer = self._session.request(event["method"], url, timeout=60, **sent)
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("application/json"):
            return answer, answer.json()
        if kind.startswith("text/") or not answer.content:
            return answer, answer.text
        digest = hashlib.sha256(answer.content).hexdigest()
        return answer, {"bytes": len(answer.content), "sha256": digest, "head_hex": answer.content[:16].hex()}

    def _recorded(self, message: Message) -> dict[str, Any]:
        if isinstance(message, Binary):
            found: dict[str, Any] = {"binary": {"event": message.event, "length": len(message.payload)}}
            if message.event == PREVIEW_WITH_METADATA:
                length = int.from_bytes(message.payload[:4], "big")
                found["decoded_metadata"] = json.loads(message.payload[4 : 4 + length])
            return found
        return {"type": "progress_state"} if self._is_brief and message["type"] == "progress_state" else message

    def _learn(self, theirs: Any, mine: Any) -> None:
        """Note which id and file name of this server stand for which of the script's."""
        if isinstance(theirs, dict) and isinstance(mine, dict):
            for key in theirs.keys() & mine.keys():
                self._learn(theirs[key], mine[key])
            for one, other in zip(_not_in(mine, theirs), _not_in(theirs, mine), strict=False):
                self._learn(one, other)
                self._learn(theirs[one], mine[other])
        elif isinstance(theirs, list) and isinstance(mine, list):
            for one, other in zip(theirs, mine, strict=False):
                self._learn(one, other)
        elif isinstance(theirs, str) and (_UUID.fullmatch(theirs) or theirs.endswith(".png")):
            self._ids[theirs] = str(mine)

    def _mine(self, value: Any) -> Any:
        text = json.dumps(value)
        for theirs, mine in self._ids.items():
            text = text.replace(theirs, mine)
        return json.loads(text)

    def _neutral(self, value: Any) -> Any:
        """Without places of this machine and lines of ComfyUI's source."""
        if isinstance(value, dict):
            return {key: self._neutral(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._neutral(item) for item in value]
        if isinstance(value, str):
            for path, stands_for in self._paths.items():
                value = value.replace(path, stands_for)
            return _SOURCE_LINE.sub(r"\1", value)
        return value


def _not_in(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in other if key not in one]


def _content(name: str, size: int, event: dict[str, Any]) -> bytes:
    """Something of the kind that the file's name says; ``content`` in an event makes it another picture."""
    if size == 0 or not name.endswith((".png", ".jpg")) or name == "corrupt.png":
        return b"x" * size
    file = io.BytesIO()
    kind = "PNG" if name.endswith(".png") else "JPEG"
    if name.startswith("trunc"):
        Image.effect_noise((256, 256), 80).convert("RGB").save(file, kind)
        return file.getvalue()[: size if size < 100 else -len(file.getvalue()) // 2]
    Image.new("RGB", (4, 4), event.get("content", "red")).save(file, kind)
    return file.getvalue()


def _main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("source", type=Path, metavar="FROM")
    arguments.add_argument("target", type=Path, metavar="TO")
    arguments.add_argument("--name", nargs="*", default=[], help="only these scenarios")
    arguments.add_argument("--path", nargs="*", default=[], help="FOLDER=WHAT_IT_IS_CALLED in the recordings")
    given = arguments.parse_args()
    paths = dict(pair.split("=", 1) for pair in given.path)
    for file in sorted(given.source.glob("*.json")):
        script = json.loads(file.read_text(encoding="utf-8"))
        if "events" in script and (not given.name or file.stem in given.name):
            made = Replay(os.environ["COMFY_URL"], script, paths).run()
            events = ",\n".join(json.dumps(event, ensure_ascii=False) for event in made.pop("events"))
            head = json.dumps(made, ensure_ascii=False, indent=1).removesuffix("\n}")
            (given.target / file.name).write_text(f'{head},\n "events": [\n{events}\n]}}\n', encoding="utf-8")
            print(file.stem, flush=True)


if __name__ == "__main__":
    _main()
